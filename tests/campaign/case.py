"""What a fault is to its drivers: the tests (``fast``) and ``python -m tests.campaign`` (all)."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign.world import Backing, World

EMBEDDED, PRODUCTION = "embedded", "production"
BOTH = (EMBEDDED, PRODUCTION)

#: Does a fault to a world, and waits until it has settled.
Run = Callable[[World, str], None]


@dataclass(frozen=True)
class Case:
    """One fault in one variant on one backing set.

    Parameters:
      fault: its number, as in ``docs/reliability.md``.
      words: what happens.
      options: of the world.
      bound: seconds from the end of the fault until all is quiet, in real time.
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
    bound: float = 120,
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
    """Run one case in a world of its own.

    Raises:
      AssertionError: something was lost, doubled, wrong or left, or it took too long.
    """
    start = time.monotonic()
    with World(directory, backing, seed, **{**case.options, **options}) as world:
        case.run(world, case.variant)
        report = world.finish()
    seconds = time.monotonic() - start
    return Result(case, seed, world.recovery, seconds, world.fired(), report["facts"])
