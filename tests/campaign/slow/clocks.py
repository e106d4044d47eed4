"""Clocks are wrong, or jump."""

from pathlib import Path

from tests.campaign.case import EMBEDDED, fault
from tests.campaign.slow.load import AWAY, REAL
from tests.campaign.world import World

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
#: libfaketime 0.9.10 lets every clock_nanosleep() until a moment fail when the monotonic clock is
#: to be right, and that is what time.sleep() calls; a process would end at its first one.
SLEEP = """
import select
import time

time.sleep = lambda seconds: select.select([], [], [], seconds)
"""
SHIFTS = {"plus-90s": "+90s", "minus-1h": "-1h", "plus-1d": "+1d"}


def _faked(world: World, role: str, shift: str, file: Path | None = None) -> None:
    """Let the clock of a role be wrong; the monotonic one is right."""
    assert Path(FAKETIME).exists(), "install libfaketime"
    customized = world.directory / "faked" / "sitecustomize.py"
    customized.parent.mkdir(exist_ok=True)
    customized.write_text(SLEEP)
    words = [f"LD_PRELOAD={FAKETIME}", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"]
    words.append(f"PYTHONPATH={customized.parent}")
    if file is None:
        words.append(f"FAKETIME={shift}")
    else:
        file.write_text(shift)
        words += [f"FAKETIME_TIMESTAMP_FILE={file}", "FAKETIME_NO_CACHE=1"]
    world.commands[role] = ["env", *words, *world.commands[role]]


@fault(
    "F63",
    "the clock of the poller's host is wrong, and set right",
    variants=(*SHIFTS, "jumping"),
    bound=240,
    **REAL,
)
def wrong_clock(world: World, how: str) -> None:
    # What waits until a moment may be told that it is over, or far: a process may end of it.
    world.announced.append(f"Traceback|{AWAY}")
    right, world.commands = world.commands, dict(world.commands)
    file = world.directory / "clock"
    # SQLite has no clock but its writers', which are all on one host.
    roles = world.commands if world.backing.name == EMBEDDED else ("poller",)
    for role in tuple(roles):
        _faked(world, role, SHIFTS.get(how, "+0"), file if how == "jumping" else None)
    posts = [world.account(interval=60) for _number in range(3)]
    for post in posts:
        world.deliver(post, 10)
    world.start()
    if how == "jumping":
        for shift in ("+1h", "-1h", "+1d", "+0"):
            world.run_for(15)
            file.write_text(shift)
            world.deliver(posts[0], 3)
    else:
        world.run_for(60)
        world.deliver(posts[0], 3)
        world.stop()
        world.commands = right
        world.start()
    world.healed()
    world.settle(240)


@fault("F64", "the scheduler's clock is 31 seconds off", bound=150, **REAL)
def skewed_scheduler(world: World, _: str) -> None:
    world.commands = dict(world.commands)
    _faked(world, "scheduler", "-31s")
    posts = [world.account() for _number in range(3)]
    for post in posts:
        world.deliver(post, 5)
    world.start()
    world.run_for(70)
    for post in posts:
        world.deliver(post, 5)
    world.healed()
    world.settle(150)
