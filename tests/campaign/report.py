"""The results of the campaign: a JSON file of all runs, and the table of ``docs/reliability.md``.

``python -m tests.campaign.report docs/reliability.json docs/reliability.md`` writes the table
between the two marks of the page.
"""

import fcntl
import json
import sys
from pathlib import Path
from typing import Any

from tests.campaign.case import Result

BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def line(result: Result) -> str:
    """How a case went, for people."""
    words = "passed" if not result.error else f"FAILED\n{result.error}"
    return (
        f"    {words}; recovered in {result.recovery:.1f} s, {result.seconds:.0f} s in all, "
        f"seed {result.seed}"
    )


def add(path: Path, result: Result) -> None:
    """Append a run to the file of all runs."""
    case = result.case
    run = {
        "fault": case.fault,
        "words": case.words,
        "variant": case.variant,
        "set": case.backing,
        "seed": result.seed,
        "passed": not result.error,
        "recovery": round(result.recovery, 1),
        "seconds": round(result.seconds, 1),
        "real_time": case.options.get("hurry", True) is False,
        "messages": result.facts.get("messages", 0),
        "error": result.error[:500],
    }
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # tests run side by side
        file.seek(0)
        runs = [*json.loads(file.read() or "[]"), run]
        file.truncate(0)
        file.write(json.dumps(runs, indent=1) + "\n")


def table(runs: list[dict[str, Any]]) -> str:
    """One row for each fault and set: the latest run of each variant."""
    latest = {(run["fault"], run["set"], run["variant"]): run for run in runs}
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (fault, name, _), run in sorted(latest.items()):
        rows.setdefault((fault, name), []).append(run)
    lines = [
        "| fault | what happens | set | runs | passed | longest recovery | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (fault, name), group in rows.items():
        every = [r for r in runs if (r["fault"], r["set"]) == (fault, name)]
        passed = sum(run["passed"] for run in group)
        longest = max(run["recovery"] for run in group)
        clock = "" if group[0]["real_time"] else " (hurried)"
        seeds = ", ".join(str(seed) for seed in sorted({run["seed"] for run in group}))
        lines.append(
            f"| {fault} | {group[0]['words']} | {name} | {len(every)} | {passed} of {len(group)} "
            f"| {longest:.0f} s{clock} | {seeds} |"
        )
    return "\n".join(lines)


def main(source: Path, page: Path) -> None:
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    runs = json.loads(source.read_text())
    page.write_text(f"{before}{BEGIN}\n{table(runs)}\n{END}{after}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
