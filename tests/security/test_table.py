"""``SECURITY.md`` speaks of what there is."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "SECURITY.md").read_text()
ROW = re.compile(r"^\| (S\d\d) \| (.+?) \| (.+?) \| (.*?) \|$", re.MULTILINE)
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
ROWS = {row[1]: row for row in ROW.finditer(TABLE)}


def functions(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_every_attack_has_its_row() -> None:
    assert list(ROWS) == [f"S{number:02}" for number in range(1, 66)]


@pytest.mark.parametrize("number", list(ROWS))
def test_the_tests_of_a_row_are_there(number: str) -> None:
    attack, defence, tests = ROWS[number].groups()[1:]
    assert attack.strip()
    assert defence.strip()
    named = TEST.findall(tests)
    assert named, f"{number} names no test"
    for path, name in named:
        assert name.startswith("test_")
        assert name in functions(ROOT / "tests" / path), f"{path}::{name}"


def test_every_test_here_says_which_attack_it_is_about() -> None:
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.name == Path(__file__).name:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert re.match(r"S\d\d", ast.get_docstring(node) or ""), (
                    f"{path.name}::{node.name}"
                )
