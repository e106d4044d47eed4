"""``docs/reliability.md`` speaks of what there is, and of results that there are."""

import json
import re
from pathlib import Path

import pytest

from tests.campaign import fast, operations, report, slow  # noqa: F401 - they register the faults
from tests.campaign.case import CASES
from tests.security.test_table import TEST, functions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
RUNS = json.loads((ROOT / "docs" / "reliability.json").read_text())
PROMISES = {
    row[1]: row
    for row in re.finditer(r"^\| (I\d+) \| (.+?) \| (.+?) \| (.*?) \|$", PAGE, re.MULTILINE)
}
ELSEWHERE = PAGE.partition("## What is tested elsewhere")[2].partition("\n## ")[0]
#: Faults that are tests of their own, not cases of the campaign.
ELSEWHERE_TESTED = set(re.findall(r"F\d\d", ELSEWHERE))


def test_every_promise_has_its_row() -> None:
    assert list(PROMISES) == [f"I{number}" for number in range(1, 26)]


@pytest.mark.parametrize("number", list(PROMISES))
def test_the_tests_of_a_promise_are_there(number: str) -> None:
    tests, faults = PROMISES[number].groups()[2:]
    named = TEST.findall(tests)
    assert named, f"{number} names no test"
    assert len(named) == tests.count("`") // 2, f"{number} names what is no test"
    for path, name in named:
        assert name.startswith("test_")
        assert name in functions(ROOT / "tests" / path), f"{path}::{name}"
    known = {case.fault for case in CASES} | ELSEWHERE_TESTED
    assert set(re.findall(r"F\d\d", faults)) <= known


def test_every_case_has_been_run_and_passed_when_it_was_last() -> None:
    latest = {(run["fault"], run["variant"], run["set"]): run["passed"] for run in RUNS}
    failed = [case for case in CASES if not latest.get((case.fault, case.variant, case.backing))]
    assert list(map(str, failed)) == []


def test_the_results_are_made_from_the_runs() -> None:
    made = PAGE.partition(report.BEGIN)[2].partition(report.END)[0]
    assert made.strip() == report.table(RUNS)
