"""What a fault is to its drivers: the tests (``fast``) and ``python -m tests.campaign`` (all)."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign.world import Backing, World

EMBEDDED, PRODUCTION = "embedded", "production"
BOTH = (EMBEDDED, PRODUCTION)
#: Seconds until work in hand goes on, or is enqueued again, if nothing else is said of a fault.
BOUND = 120
#: A poll that could not write down its end holds its account until its lease is over (120 s), and
#: the scheduler looks every minute. A shorter lease would be lost by polls of slow servers.
LEASE_BOUND = 120 + 60
#: A message that was claimed, and whose worker could neither finish it nor give it back, is left
#: alone for as long as an attempt may take (300 s), and the sweeper looks every minute. It may be
#: under way still: a shorter time would let a large message be parsed twice at once.
ATTEMPT_BOUND = 300 + 60

#: Does a fault to a world, and waits until it has settled.
Run = Callable[[World, str], None]


@dataclass(frozen=True)
class Case:
    """One fault in one variant on one backing set.

    Parameters:
      fault: its number, as in ``docs/reliability.md``.
      words: what happens.
      options: of the world.
      bound: seconds from the end of the fault until all is quiet, hurried or not.
    """

    fault: str
    words: str
    variant: str
    backing: str
    run: Run
    fast: bool
    bound: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join(filter(None, (self.fault, self.variant, self.backing)))


CASES: list[Case] = []


def fault(
    number: str,
    words: str,
    *,
    variants: Sequence[str] = ("",),
    sets: Sequence[str] = BOTH,
    fast: bool = False,
    bound: float = BOUND,
    **options: Any,
) -> Callable[[Run], Run]:
    """Register a function as a fault in each of its variants on each of the sets."""

    def register(run: Run) -> Run:
        for variant in variants:
            for backing in sets:
                case = Case(number, words, variant, backing, run, fast, bound, options)
                CASES.append(case)
        return run

    return register


def fast_cases() -> Iterator[Case]:
    return (case for case in CASES if case.fast)


@dataclass
class Result:
    """How a case went. ``recovery`` is in seconds; ``error`` is empty when it passed."""

    case: Case
    seed: int
    recovery: float
    seconds: float
    fired: list[str]
    facts: dict[str, Any]
    error: str = ""


def play(case: Case, backing: Backing, directory: Path, seed: int, **options: Any) -> Result:
    """Run one case in a world of its own; a recovery after its bound is an error of the result.

    Raises:
      AssertionError: something was lost, doubled, wrong or left, or it was never quiet.
    """
    start = time.monotonic()
    with World(directory, backing, seed, **{**case.options, **options}) as world:
        case.run(world, case.variant)
        report = world.finish()
    seconds = time.monotonic() - start
    late = _late(case, world.recovery)
    return Result(case, seed, world.recovery, seconds, world.fired(), report["facts"], late)


def _late(case: Case, recovery: float) -> str:
    """What to say of a recovery that took longer than the case allows; '' if it did not."""
    if recovery <= case.bound:
        return ""
    return f"recovered in {recovery:.1f} s, later than its bound of {case.bound:.0f} s"
