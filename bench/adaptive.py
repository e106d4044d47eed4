"""``python -m bench.adaptive``: logins saved by polling in a mailbox's rhythm, against latency.

Simulated: mail at known times over four weeks, polls at a fixed interval or as ``mailpoll.rhythm``
says, and nothing else. The first two weeks are for learning; the last two count.
"""

import argparse
import random
import statistics
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from bench.results import DIRECTORY, Cell, Result, Table
from mailpoll import rhythm

START = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
DAYS, LEARNED = 28, 14
LEAST, MOST = 60, 1_800
Trace = list[float]


def poisson(rate: Callable[[datetime], float], rng: random.Random) -> Iterator[float]:
    """Arrivals in seconds from the start; ``rate`` is messages an hour."""
    highest = 120.0
    moment = 0.0
    while (moment := moment + rng.expovariate(highest / 3_600)) < DAYS * 86_400:
        if rng.random() < rate(START + timedelta(seconds=moment)) / highest:
            yield moment


def office(moment: datetime) -> float:
    return 5.0 if moment.weekday() < 5 and 8 <= moment.hour < 18 else 0.15


def shared(moment: datetime) -> float:
    return 60.0 if 7 <= moment.hour < 20 else 10.0


def quiet(moment: datetime) -> float:  # noqa: ARG001
    return 0.04


def night(moment: datetime) -> float:
    return 4.0 if moment.hour >= 22 or moment.hour < 6 else 0.2


def newsletters(rng: random.Random) -> Trace:
    """Thirty messages within a few minutes each morning, and little else."""
    found: Trace = []
    for day in range(DAYS):
        first = day * 86_400 + 6 * 3_600 + rng.uniform(-1_800, 1_800)
        found += [first + rng.uniform(0, 300) for _ in range(30)]
    return sorted(found)


def conversations(rng: random.Random) -> Trace:
    """Bursts of answers that follow each other after some minutes, a few a day, at any time."""
    found: Trace = []
    for start in poisson(lambda _: 0.15, rng):
        moment = start
        for _ in range(rng.randint(2, 10)):
            found.append(moment)
            moment += rng.expovariate(1 / 240)
    return sorted(found)


def traces(seed: int) -> dict[str, Trace]:
    rng = random.Random(seed)
    return {
        "office, 5 an hour by day": list(poisson(office, rng)),
        "shared inbox, 60 an hour": list(poisson(shared, rng)),
        "one a day": list(poisson(quiet, rng)),
        "night shift": list(poisson(night, rng)),
        "newsletters at six": newsletters(rng),
        "conversations": conversations(rng),
    }


def simulate(trace: Trace, adaptive: bool, fixed: int = LEAST) -> tuple[float, list[float]]:
    """Polls a day, and how long each message waited in seconds."""
    waits: list[float] = []
    now, seen, polls, known = 0.0, 0, 0, None
    while now < DAYS * 86_400:
        first = seen
        while seen < len(trace) and trace[seen] <= now:
            if now >= LEARNED * 86_400:
                waits.append(now - trace[seen])
            seen += 1
        polls += now >= LEARNED * 86_400
        moment = START + timedelta(seconds=now)
        known = rhythm.updated(known, moment, seen - first)
        now += rhythm.interval(known, moment, LEAST, MOST) if adaptive else fixed
    return polls / (DAYS - LEARNED), waits


def run(seed: int) -> Result:
    rows: list[list[Cell]] = []
    for name, trace in traces(seed).items():
        for how, adaptive, fixed in (
            ("every 60 s", False, 60),
            ("every 300 s", False, 300),
            ("60 to 1800 s, by its rhythm", True, 0),
        ):
            polls, waits = simulate(trace, adaptive, fixed)
            mean = statistics.mean(waits)
            p95 = statistics.quantiles(waits, n=20)[-1]
            rows.append([name, how, round(polls), round(mean), round(p95)])
    columns = ["mailbox", "polls", "logins a day", "mean wait, s", "p95 wait, s"]
    text = [
        "Four weeks of mail at simulated times (`python -m bench.adaptive`, the same each time), "
        "the last two counted. A wait is from the arrival at the server to the poll that finds it."
    ]
    return Result("Polling by rhythm", text, [Table("Logins against latency", columns, rows)], [])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.adaptive", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="keep the result for the report")
    options = parser.parse_args()
    result = run(options.seed)
    print("\n\n".join(table.markdown() for table in result.tables))
    if options.json:
        result.save(DIRECTORY / "adaptive.json")


if __name__ == "__main__":
    main()
