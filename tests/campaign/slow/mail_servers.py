"""Mail servers that are slow, silent or far."""

from typing import Any

from tests.campaign.case import fault
from tests.campaign.slow.load import REAL, sessions
from tests.campaign.world import World
from tests.servers.proxy import BlackHole, Slicer, bandwidth


def _beside(world: World, faults: tuple[Any, ...], seconds: float) -> None:
    """One mailbox is hard to reach; the others are polled in time all the while."""
    ill, *well = [world.account(proxy=True) for _number in range(4)]
    for post in (ill, *well):
        world.deliver(post, 5)
    world.proxies[ill.address].faults = faults
    world.start()
    world.until(lambda: sessions(well[0]) > 1, 120, "no polls")
    before = [sessions(post) for post in well]
    world.run_for(seconds)
    for post, count in zip(well, before, strict=True):
        assert sessions(post) - count >= seconds / 10 - 1, "others were held up"
    world.proxies[ill.address].faults = ()
    world.proxies[ill.address].cut()
    world.healed()
    world.settle(150)


@fault("F45", "a mail server sends one byte every two seconds", **REAL)
def dripping(world: World, _: str) -> None:
    _beside(world, (Slicer(size=1, pause=2),), 90)


@fault(
    "F46",
    "a mail server falls silent",
    variants=("connected", "greeted", "logged-in", "in-a-message"),
    **REAL,
)
def silent(world: World, where: str) -> None:
    after = {"connected": 0, "greeted": 12, "logged-in": 150, "in-a-message": 900}[where]
    _beside(world, (BlackHole(after=after),), 60)


@fault("F47", "a far and narrow way to a mail server", **REAL)
def far_and_narrow(world: World, _: str) -> None:
    # A round trip is no `Latency` beside a bandwidth: that would hold up each slice by itself, and
    # leave 9 KB of the 100 KB a second.
    post, other = world.account(proxy=True, round_trip=1.0), world.account()
    world.proxies[post.address].faults = (bandwidth(100_000),)
    world.deliver(post, 1, size=3_000_000)
    world.deliver(other, 5)
    world.start()
    world.healed()
    world.settle(300)
