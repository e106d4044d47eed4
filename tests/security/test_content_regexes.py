"""No pattern of mailpoll takes the square of a hostile text."""

import ast
import importlib
import itertools
import pkgutil
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import mailpoll
from mailpoll.imap import responses
from mailpoll.imap.errors import HINTS, TEXTS, Fault, refusal

LENGTH = 100_000
#: Shorter texts, by which a pattern that takes long is known early.
SHORTER = (300, 3_000, 12_000)
#: Seconds of CPU.
LIMIT = 0.05
TRIES = 24
METHODS = ("match", "fullmatch", "search", "finditer", "findall", "sub", "split")
#: What does not come to them whole, and what stands before: see the name's own module.
BEHIND: dict[str, Callable[[str], object]] = {
    "mailpoll.imap.errors": lambda text: refusal(text, Fault.AUTH_FAILED),
    "mailpoll.imap.responses.TOKEN": lambda text: responses.unclosed([text.encode()]),
}
#: Packages that have texts of strangers before them; the others are run by hand.
SKIPPED = ("mailpoll.demo", "mailpoll.__main__")


@dataclass(frozen=True)
class Case:
    """A pattern and a way in which it is used."""

    where: str
    name: str
    pattern: re.Pattern[str] | re.Pattern[bytes]
    method: str

    def __str__(self) -> str:
        return f"{self.where}.{self.name}.{self.method}"


def sources() -> dict[str, str]:
    root = Path(mailpoll.__file__).parent
    found = {}
    for info in pkgutil.walk_packages([str(root)], "mailpoll."):
        if info.name.startswith(SKIPPED):
            continue
        path = root.joinpath(*info.name.split(".")[1:])
        file = path / "__init__.py" if info.ispkg else path.with_suffix(".py")
        found[info.name] = file.read_text()
    return found


def cases() -> Iterator[Case]:
    """Every pattern that is compiled in a module, or given to ``re`` inside a function."""
    texts = sources()
    for where, source in texts.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                module = node.func.value
                if isinstance(module, ast.Name) and module.id == "re" and node.func.attr in METHODS:
                    first = node.args[0]
                    if isinstance(first, ast.Constant):
                        yield Case(
                            where, repr(first.value), re.compile(first.value), node.func.attr
                        )
        if "re.compile(" not in source:
            continue
        if where == "mailpoll.actors" or where.startswith("mailpoll.actors."):
            pytest.fail(f"{where} compiles patterns: let this test import it")
        for name, value in vars(importlib.import_module(where)).items():
            if not isinstance(value, re.Pattern) or f"{name} = re.compile(" not in source:
                continue
            used = uses(name, [source]) or uses(name, texts.values())
            assert used, f"{where}.{name} is not used"
            for method in sorted(used):
                yield Case(where, name, value, method)


def uses(name: str, texts: Iterable[str]) -> set[str]:
    """The methods by which texts use a pattern of this name."""
    found = (re.findall(rf"\b{name}\.(\w+)", text) for text in texts)
    return set(METHODS).intersection(itertools.chain.from_iterable(found))


CASES = list(cases())
CHARACTERS = 'a0 \t\r\n"\\()<[=?;:,.@-\u200b'


def pumps(pattern: str) -> Iterator[str]:
    """Texts of nothing but repetition, out of what the pattern looks for."""
    words = re.findall(r"[A-Za-z][A-Za-z :@*-]{2,}", pattern)
    units = [*CHARACTERS, *words, "b'", "=?a?q?", "a@", "<a@a>", "; a=", '"\\', "BODY[", "--", "()"]
    units += ["".join(pair) for pair in itertools.permutations(' "(=\r\n', 2)]
    for unit in units:
        whole = unit * (LENGTH // len(unit))
        yield whole + "\0"
        for start in ("", "a", '"', ";a="):
            yield start + whole


def run(case: Case) -> Callable[[str], object]:
    behind = BEHIND.get(case.where) or BEHIND.get(f"{case.where}.{case.name}")
    if behind:
        return behind
    is_bytes = isinstance(case.pattern.pattern, bytes)

    def call(text: str) -> object:
        given = text.encode("utf-8", "replace") if is_bytes else text
        if case.method == "sub":
            return case.pattern.sub(b"" if is_bytes else "", given)  # type: ignore[arg-type]
        found = getattr(case.pattern, case.method)(given)
        return deque(found, maxlen=0) if case.method == "finditer" else found

    return call


def seconds(call: Callable[[str], object], text: str) -> float:
    """Of this thread's CPU: of the fastest try, or that of a part of the text if that tells enough.

    Other work on the machine doubles the CPU time that a try takes, for a while.
    """
    spent = 0.0
    for length in (*SHORTER, LENGTH):
        part = text[: length - 1] + text[-1]
        for number in range(TRIES):
            time.sleep(min(0.02 * number, 0.2))
            started = time.thread_time()
            call(part)
            spent = time.thread_time() - started
            if spent <= LIMIT:
                break
        else:
            return spent
        if length == SHORTER[-1] and spent <= LIMIT * (length / LENGTH) ** 2:
            return spent  # the square of the whole is within the limit, and a cube was seen before
    return spent


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_pattern_takes_long_over_100_kb(case: Case) -> None:
    """S54"""
    pattern = case.pattern.pattern
    text = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
    call = run(case)
    slow = {pump[:20]: spent for pump in pumps(text) if (spent := seconds(call, pump)) > LIMIT}
    assert slow == {}


@pytest.mark.parametrize("pattern", [pattern for _, pattern in (*TEXTS, *HINTS)])
def test_a_servers_words_are_classified_in_no_time(pattern: str) -> None:
    """S54: patterns in tables, behind the cut that all of a server's words go through."""
    slow = [p[:20] for p in pumps(pattern) if seconds(BEHIND["mailpoll.imap.errors"], p) > LIMIT]
    assert slow == []


def test_the_test_finds_a_pattern_that_takes_the_square() -> None:
    """S54"""
    bad = Case("x", "BAD", re.compile(r"\s+$"), "search")
    assert any(seconds(run(bad), pump) > LIMIT for pump in pumps(r"\s+$"))
    assert len(CASES) > 40
