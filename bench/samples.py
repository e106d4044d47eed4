"""What a soak sees, and what is made of it: slopes, promises, tables and pictures."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.results import Cell, Plot, Result, Table
from bench.usage import PAGE, Usage
from bench.wide import percentile

ROLES = ("poller", "worker", "scheduler", "web", "notifier", "watcher")
#: What is seen of each process.
SEEN = ("MB", "files", "threads", "sockets")
#: Seconds of a process that are left out, as it fills what it keeps, and that must remain.
SETTLED, LEAST = 1_800, 1_200
#: What may grow in an hour at most, by what is seen; of the rest less than one.
MAY_GROW = {"MB": 1.0}
#: Of what is seen around the processes, what is worth a picture.
DRAWN = ("Redis keys", "age of the oldest, s", "database connections")

COLUMNS = {
    "messages": "messages",
    "lost": "lost",
    "doubled": "doubled",
    "fsck": "fsck's exit code",
    "late_p95_first_s": "polls late p95, first half, s",
    "late_p95_second_s": "second half, s",
    "api_p99_ms": "a page of accounts p99, ms",
    "age_p95_s": "oldest that waits p95, s",
    "without_empty_s": "longest without an empty queue, s",
    "rows_left": "rows left after deletion of all",
    "files_left": "files left",
}


@dataclass
class Samples:
    """What was seen every ten seconds: by pid for processes, by name for the rest."""

    moments: list[float] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)
    processes: dict[tuple[str, int], list[tuple[float, dict[str, float]]]] = field(
        default_factory=dict
    )

    def add(self, moment: float, figures: dict[str, float]) -> None:
        self.moments.append(moment)
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    def look(self, usage: Usage, moment: float) -> None:
        for pid, role in list(usage.names.items()):
            with suppress(OSError, ValueError, IndexError):
                files = list(_open_files(pid))
                seen = {
                    "MB": int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6,
                    "files": float(len(files)),
                    "threads": float(sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())),
                    "sockets": float(sum(name.startswith("socket:") for name in files)),
                }
                self.processes.setdefault((role, pid), []).append((moment, seen))

    def slopes(self) -> dict[str, dict[str, float]]:
        """Per role: the steepest growth per hour of any process, once it has settled."""
        found: dict[str, dict[str, float]] = {}
        for (role, _pid), series in self.processes.items():
            begun = series[0][0]
            kept = [one for one in series if one[0] >= begun + SETTLED]
            if role not in ROLES or not kept or kept[-1][0] - kept[0][0] < LEAST:
                continue
            for name in SEEN:
                slope = theil_sen([(at / 3600, seen[name]) for at, seen in kept])
                known = found.setdefault(role, {}).setdefault(name, slope)
                found[role][name] = max(known, slope)
        return found


def _open_files(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed by now
            yield str(path.readlink())


def theil_sen(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes between any two points, which outliers do not move."""
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(points) for b in points[i + 1 :]]
    return statistics.median(slopes) if slopes else 0.0


def figures_of(
    samples: Samples,
    halves: dict[str, list[int]],
    waits: list[float],
    broken: list[tuple[int, str]],
    seconds: float,
) -> dict[str, Any]:
    late = {half: percentile(sorted(values), 95) / 1_000 for half, values in halves.items()}
    since = [place for place, moment in enumerate(samples.moments) if moment >= seconds / 2]
    return {
        "late_p95_first_s": late.get("first"),
        "late_p95_second_s": late.get("second"),
        "api_p99_ms": round(percentile(sorted(waits), 99) * 1_000),
        "growth_per_hour": samples.slopes(),
        "around_per_hour": {
            name: theil_sen([(samples.moments[at] / 3600, values[at]) for at in since])
            for name, values in samples.figures.items()
        },
        "waiting_p95": percentile(sorted(samples.figures["waiting"]), 95),
        "age_p95_s": percentile(sorted(samples.figures["age of the oldest, s"]), 95),
        "without_empty_s": longest_without_empty(samples),
        "faults": broken,
        "moments": [round(moment) for moment in samples.moments],
        "figures": samples.figures,
        "memory": memory(samples),
    }


def longest_without_empty(samples: Samples) -> float:
    """Seconds between two moments in which nothing waited to be processed, at most."""
    pairs = zip(samples.moments, samples.figures["waiting"], strict=True)
    empty = [0.0, *(moment for moment, waiting in pairs if not waiting), samples.moments[-1]]
    return round(max(after - before for before, after in pairwise(empty)))


def promises(figures: dict[str, Any]) -> dict[str, bool]:
    """What is promised, and whether it held."""
    grown = [
        f"{role}: {name}"
        for role, by in figures["growth_per_hour"].items()
        for name, slope in by.items()
        if slope >= MAY_GROW.get(name, 1.0)
    ]
    return {
        "nothing lost or doubled": not figures["lost"] and not figures["doubled"],
        "fsck finds nothing": figures["fsck"] == 0,
        "no growth" + (f" (not: {', '.join(grown)})" if grown else ""): not grown
        and set(figures["growth_per_hour"]) == set(ROLES),
        "polls in the second half not later": figures["late_p95_second_s"]
        <= max(1.0, 1.1 * figures["late_p95_first_s"]),
        "nothing left of deleted accounts": not figures["rows_left"] and not figures["files_left"],
    }


def brief(figures: dict[str, Any]) -> dict[str, Any]:
    """Without the samples that pictures are made of."""
    samples = ("figures", "memory", "moments")
    return {key: value for key, value in figures.items() if key not in samples}


def memory(samples: Samples) -> dict[str, list[float | None]]:
    """Megabytes of the largest process of each role at each moment."""
    found: dict[str, dict[float, float]] = {}
    for (role, _pid), series in samples.processes.items():
        if role in ROLES:
            for moment, seen_then in series:
                by = found.setdefault(role, {})
                by[moment] = max(by.get(moment, 0.0), seen_then["MB"])
    return {
        role: [round(by[moment], 1) if moment in by else None for moment in samples.moments]
        for role, by in found.items()
    }


def document(found: dict[str, dict[str, Any]], minutes: float) -> Result:
    plots: list[Plot] = []
    rows: list[list[Cell]] = []
    growth: list[list[Cell]] = []
    others: list[list[Cell]] = []
    held: list[list[Cell]] = []
    for backing, figures in found.items():
        plots.append(
            Plot(
                f"soak-{backing}",
                f"Memory of the largest process of each kind, {backing} set",
                "lines",
                [round(moment / 60, 1) for moment in figures["moments"][::6]],
                "minutes",
                "MB",
                False,
                {role: values[::6] for role, values in figures["memory"].items()},
            )
        )
        rows.append([backing, *(figures[key] for key in COLUMNS)])
        plots += [around(backing, figures, name) for name in DRAWN if name in figures["figures"]]
        growth += [
            [f"{backing}, {role}", *(by[name] for name in SEEN)]
            for role, by in sorted(figures["growth_per_hour"].items())
        ]
        others += [
            [f"{backing}, {name}", max(figures["figures"][name]), slope]
            for name, slope in figures["around_per_hour"].items()
        ]
        held += [
            [f"{backing}: {what}", "yes" if kept else "**no**"]
            for what, kept in promises(figures).items()
        ]
    text = [
        f"{minutes:g} minutes with mail of all sizes, accounts that come and go, and every five "
        "minutes a fault: "
        + "; ".join(
            f"{backing}: " + ", ".join(f"{what} ({at // 60} min)" for at, what in figures["faults"])
            for backing, figures in found.items()
        )
        + ". Processes are killed once in each half, in the same order: early in the first and "
        "late in the second, so that each lives for long between. Growth is the median of the "
        "slopes between any two samples (Theil-Sen) of a process, without its first half hour. "
        "Made by `make soak`."
    ]
    tables = [
        Table("Soak", ["set", *COLUMNS.values()], rows),
        Table("Held", ["what", "held"], held),
        Table("Growth per hour", ["process", *SEEN], growth),
        Table("Around them", ["what", "most", "growth per hour"], others),
    ]
    return Result("Soak", text, tables, plots)


def around(backing: str, figures: dict[str, Any], name: str) -> Plot:
    places = [round(moment / 60, 1) for moment in figures["moments"][::6]]
    file = f"soak-{backing}-{name.partition(',')[0].replace(' ', '-').lower()}"
    values = {name: figures["figures"][name][::6]}
    return Plot(
        file, f"{name}, {backing} set", "lines", list(places), "minutes", name, False, values
    )
