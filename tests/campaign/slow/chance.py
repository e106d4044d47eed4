"""Anything that can be broken, two or three at a time."""

import os
import time
from contextlib import suppress

from tests.campaign.case import ATTEMPT_BOUND, fault
from tests.campaign.nemesis import NEMESES, plan
from tests.campaign.slow.load import AWAY, REAL, stream
from tests.campaign.world import World

#: What the faults of `nemesis` explain beside what is away: a lease that another took, a deletion
#: under way, a Redis that is full, bytes that the store keeps cut.
OF_NEMESES = "LeaseLost|AccountGone|OutOfMemory|post_process_message|BlobCorrupt"


@fault(
    "F73",
    "two or three faults at a time, at random",
    bound=ATTEMPT_BOUND,
    through=("redis", "database"),
    layer=True,
    **REAL,
)
def random_faults(world: World, _: str) -> None:
    seconds = 60 * float(os.environ.get("MAILPOLL_CAMPAIGN_MINUTES", "5"))
    events = plan(world.seed, seconds, world.backing.name)
    print(*(f"    {event}" for event in events), sep="\n", flush=True)
    world.announced.append(f"{AWAY}|{OF_NEMESES}")
    posts = [world.account(proxy=True) for _number in range(20)]
    world.start()
    deliver = stream(world, posts, seconds * 0.9, min(5_000, int(seconds * 10)))
    doomed = world.chance.sample(posts, 3)
    start = time.monotonic()
    running: list[tuple[float, str]] = []

    def each() -> None:
        now = time.monotonic() - start
        deliver()
        while events and events[0].start <= now:
            event = events.pop(0)
            NEMESES[event.name].begin(world)
            running.append((event.start + event.length, event.name))
        for entry in [one for one in running if one[0] <= now]:
            running.remove(entry)
            NEMESES[entry[1]].end(world)
        if doomed and now > seconds * (0.8 - 0.2 * len(doomed)):
            gone = doomed.pop()
            posts.remove(gone)
            with suppress(Exception):  # the database may be away: then it is asked again
                world.delete(gone)
                return
            posts.append(gone)

    world.run_for(seconds, each)
    for _end, name in running:
        NEMESES[name].end(world)
    world.healed()
    world.settle(300)
