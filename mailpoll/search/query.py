"""What people write into a search box, read into a tree; what is wrong is told with its place.

``words "a phrase" from:ana -draft invoi* has:attachment after:2026-01-01 larger:1M (a OR b)``:
see docs/search.md. Words, phrases and the fields that are made of words may be joined by OR and
parentheses; the other fields (times, sizes, folders, states, threads) hold for the whole query.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from ..models import UNSEEN
from ..words import sought
from .document import ATTACHMENT, FROM, NAME, REPLY, SUBJECT, TO

#: Characters of a query, words in it, and how deep parentheses may go.
MAX_QUERY, MAX_TERMS, MAX_DEPTH = 1_000, 50, 10
#: Letters that a word must have before "*": fewer begin too many words.
MIN_PREFIX = 2

#: Fields made of words, and how their words are marked.
MARKS = {"from": FROM, "to": TO, "subject": SUBJECT, "filename": NAME}
#: What ``has:`` and ``is:`` find as a word.
HAS = {"attachment": ATTACHMENT}
IS_WORDS = {"reply": REPLY}
#: What ``is:`` asks of the message's row.
IS_STATES = ("imported", "expunged")
#: What ``is:`` asks of the flags of a place (RFC 9051, 2.3.2), as their index has them.
IS_FLAGS = {
    "read": "\\seen",
    "unread": UNSEEN,
    "flagged": "\\flagged",
    "answered": "\\answered",
    "draft": "\\draft",
}
UNITS = {"": 1, "b": 1, "k": 1_000, "kb": 1_000, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9}
DAYS = {"d": 1, "w": 7, "m": 30, "y": 365}
#: The largest size and thread that databases can hold.
MAX_NUMBER = 2**63 - 1
YEARS = range(1970, 9_999)

_TOKEN = re.compile(r'\s*(?:(-?)([()])|(-?)([A-Za-z_]+:)?("[^"]*"?\*?|[^\s()"]*))')
_DATE = re.compile(r"(\d{4})(?:[-/](\d{1,2})(?:[-/](\d{1,2}))?)?")
_SIZE = re.compile(r"(\d{1,18})([A-Za-z]{0,2})")
_AGE = re.compile(r"(\d{1,5})([dwmy])")


class QueryError(ValueError):
    """A query that cannot be read.

    Parameters:
      offset: the character, from 0, at which it goes wrong.
    """

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"{reason} (at character {offset})")
        self.reason = reason
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Words:
    """Words that stand one after the other, in one field or anywhere.

    Parameters:
      mark: that of the field; '' for any.
      prefix: the last one may go on.
    """

    words: tuple[str, ...]
    mark: str = ""
    prefix: bool = False

    @property
    def stored(self) -> tuple[str, ...]:
        return tuple(self.mark + word for word in self.words)


@dataclass(frozen=True, slots=True)
class Not:
    item: "Node"


@dataclass(frozen=True, slots=True)
class And:
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Or:
    items: tuple["Node", ...]


Node = Words | Not | And | Or


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on the message's row.

    Parameters:
      name: ``after``, ``before``, ``larger``, ``smaller``, ``in``, ``is``, ``flag``, ``label`` or
        ``thread``.
    """

    name: str
    value: datetime | int | str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """A query that was read. ``node`` is None when it only has conditions on rows."""

    node: Node | None
    filters: tuple[Filter, ...] = ()

    def needles(self) -> list[Words]:
        """What is asked for, without what is asked to be absent: to rank hits and to show them."""
        return list(_positive(self.node)) if self.node else []


def _positive(node: Node) -> Iterator[Words]:
    match node:
        case Words():
            if node.stored not in ((ATTACHMENT,), (REPLY,)):
                yield node
        case And(items) | Or(items):
            for item in items:
                yield from _positive(item)


def parse(text: str, now: datetime | None = None) -> Query:
    """Read a query.

    Parameters:
      now: what ``newer_than`` and ``older_than`` count from; default: this moment.

    Raises:
      QueryError: says what is wrong, and where.
    """
    if len(text) > MAX_QUERY:
        raise QueryError(f"should have at most {MAX_QUERY:,} characters", MAX_QUERY)
    reader = _Reader(text, now or datetime.now(UTC))
    node = reader.all()
    if node is None and not reader.filters:
        raise QueryError("has nothing to search for", 0)
    return Query(node, tuple(reader.filters))


@dataclass(frozen=True, slots=True)
class _Token:
    """``kind`` is "(", ")", "or", "and" or "item"; ``at`` is where it begins."""

    kind: str
    at: int
    negated: bool = False
    name: str = ""
    value: str = ""
    value_at: int = 0


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        assert found is not None  # each of its parts may be empty
        at = found.end()
        minus, bracket, dash, name, value = found.groups()
        if bracket:
            yield _Token(bracket, found.start(1), bool(minus))
        elif name or value or dash:
            joint = not dash and not name and value in ("OR", "AND")
            kind = value.lower() if joint else "item"
            place = found.start(3)
            yield _Token(kind, place, bool(dash), name or "", value, found.start(5))


@dataclass
class _Reader:
    text: str
    now: datetime
    filters: list[Filter] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tokens = list(_tokens(self.text))
        self._next = 0
        self._terms = 0
        self._depth = 0

    def all(self) -> Node | None:
        node = self._sequence()
        if self._next < len(self._tokens):
            self._wrong("there is no ( for this )", self._tokens[self._next].at)
        return node

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _sequence(self) -> Node | None:
        """Items and groups joined by OR, all of which must hold, up to the end or a ")"."""
        found: list[Node] = []
        while (token := self._peek()) and token.kind != ")":
            if token.kind == "and":
                self._joint(token, found)
                continue
            if token.kind == "or":
                self._wrong("OR needs something before it", token.at)
            node = self._alternatives()
            if node is not None:
                found.append(node)
        if not found:
            return None
        return found[0] if len(found) == 1 else And(tuple(found))

    def _joint(self, token: _Token, before: list[Node]) -> None:
        self._next += 1
        following = self._peek()
        if not (before or self.filters) or following is None or following.kind in (")", "or"):
            self._wrong(f"{token.value} needs something on both sides", token.at)

    def _alternatives(self) -> Node | None:
        first_at = self._tokens[self._next].at
        found = [self._item()]
        while (token := self._peek()) and token.kind == "or":
            self._next += 1
            following = self._peek()
            if following is None or following.kind in (")", "or", "and"):
                self._wrong("OR needs something behind it", token.at)
            if found[-1] is None:
                self._wrong("OR joins words and fields of words only", first_at)
            first_at = following.at
            found.append(self._item())
            if found[-1] is None:
                self._wrong("OR joins words and fields of words only", first_at)
        nodes = tuple(node for node in found if node is not None)
        if not nodes:
            return None
        return nodes[0] if len(nodes) == 1 else Or(nodes)

    def _item(self) -> Node | None:
        token = self._tokens[self._next]
        self._next += 1
        node = self._group(token) if token.kind == "(" else self._single(token)
        if node is not None and token.negated:
            return Not(node)
        return node

    def _group(self, token: _Token) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._wrong(f"parentheses go more than {MAX_DEPTH} deep", token.at)
        before = len(self.filters)
        node = self._sequence()
        closing = self._peek()
        if closing is None:
            self._wrong("there is no ) for this (", token.at)
        self._next += 1
        self._depth -= 1
        if len(self.filters) > before:
            names = "times, sizes, folders, labels, states and threads"
            self._wrong(f"{names} cannot stand in parentheses", token.at)
        if node is None:
            self._wrong("there is nothing in these parentheses", token.at)
        return node

    def _single(self, token: _Token) -> Node | None:
        name = token.name.removesuffix(":").lower()
        value = token.value
        if name and name not in READERS and not value.startswith("/"):
            known = ", ".join(READERS)
            self._wrong(f'"{name}" is no field: quote it, or use one of {known}', token.at)
        if name in READERS:
            if not value.strip('"'):
                self._wrong(f"{name}: has no value", token.at)
            return READERS[name](self, name, token)
        node = self._words("", token, token.name + value)
        if node is None and (token.negated or value.startswith('"')):
            self._wrong("has no letters or digits", token.at)
        return node

    # Fields

    def marked(self, name: str, token: _Token) -> Node:
        node = self._words(MARKS[name], token, token.value)
        if node is None:
            self._wrong(f"{name}: has no letters or digits", token.value_at)
        return node

    def _words(self, mark: str, token: _Token, text: str) -> Words | None:
        prefix = text.endswith("*")
        text = text.removesuffix("*")
        if text.startswith('"'):
            if len(text) == 1 or not text.endswith('"'):
                self._wrong('there is no second " for this one', token.value_at)
            text = text[1:-1]
        if "\0" in text:
            self._wrong("has a NUL in it", token.value_at)
        found, single = sought(text)
        if not found:
            return None
        self._terms += len(found)
        if self._terms > MAX_TERMS:
            self._wrong(f"has more than {MAX_TERMS} words", token.at)
        if prefix and not single and len(found[-1]) < MIN_PREFIX:
            self._wrong(f"* needs {MIN_PREFIX} letters before it", token.value_at)
        return Words(tuple(found), mark, prefix or single)

    def has(self, name: str, token: _Token) -> Node:  # noqa: ARG002
        return Words((self._choice(token, HAS),))

    def state(self, name: str, token: _Token) -> Node | None:
        states = {state: state for state in IS_STATES}
        chosen = self._choice(token, {**IS_WORDS, **states, **{flag: flag for flag in IS_FLAGS}})
        if chosen in IS_FLAGS:
            self._filter("flag", IS_FLAGS[chosen], token)
        elif chosen in IS_STATES:
            self._filter(name, chosen, token)
        else:
            return Words((chosen,))
        return None

    def _choice(self, token: _Token, choices: dict[str, str]) -> str:
        value = _unquoted(token.value).lower()
        if value not in choices:
            self._wrong(f"{token.name} should be one of {', '.join(choices)}", token.value_at)
        return choices[value]

    def time(self, name: str, token: _Token) -> None:
        value = _date(_unquoted(token.value))
        if value is None:
            self._wrong(f"{name}: should be a date such as 2026-01-31", token.value_at)
        self._filter(name, value, token)

    def age(self, name: str, token: _Token) -> None:
        found = _AGE.fullmatch(_unquoted(token.value).lower())
        if found is None:
            self._wrong(f"{name}: should be an age such as 7d, 2w, 3m or 1y", token.value_at)
        days = int(found[1]) * DAYS[found[2]]
        earliest = datetime(YEARS[0], 1, 1, tzinfo=UTC)
        value = max(earliest, self.now - timedelta(days=min(days, 300_000)))
        self._filter("after" if name == "newer_than" else "before", value, token)

    def size(self, name: str, token: _Token) -> None:
        found = _SIZE.fullmatch(_unquoted(token.value))
        unit = UNITS.get(found[2].lower()) if found else None
        if found is None or unit is None:
            self._wrong(f"{name}: should be a size such as 500k or 10M", token.value_at)
        self._filter(name, min(int(found[1]) * unit, MAX_NUMBER), token)

    def folder(self, name: str, token: _Token) -> None:
        value = _unquoted(token.value)
        if "\0" in value:
            self._wrong("has a NUL in it", token.value_at)
        self._filter(name, value, token)

    def thread(self, name: str, token: _Token) -> None:
        value = _unquoted(token.value)
        if not (value.isascii() and value.isdecimal() and int(value[:20]) <= MAX_NUMBER):
            self._wrong("thread: should be the id of a thread", token.value_at)
        self._filter(name, int(value[:20]), token)

    def _filter(self, name: str, value: datetime | int | str, token: _Token) -> None:
        self._terms += 1
        if self._terms > MAX_TERMS:
            self._wrong(f"has more than {MAX_TERMS} words", token.at)
        self.filters.append(Filter(name, value, token.negated))

    def _wrong(self, reason: str, at: int) -> NoReturn:
        raise QueryError(reason, at)


def _unquoted(value: str) -> str:
    return value.strip('"')


def _date(text: str) -> datetime | None:
    """The first moment of a year, a month or a day, in UTC."""
    found = _DATE.fullmatch(text)
    if found is None or int(found[1]) not in YEARS:
        return None
    try:
        year, month, day = (int(part or 1) for part in found.groups())
        return datetime(year, month, day, tzinfo=UTC)
    except ValueError:
        return None


READERS: dict[str, Callable[[_Reader, str, _Token], Node | None]] = {
    **dict.fromkeys(MARKS, _Reader.marked),
    "has": _Reader.has,
    "is": _Reader.state,
    "in": _Reader.folder,
    "label": _Reader.folder,
    "after": _Reader.time,
    "before": _Reader.time,
    "newer_than": _Reader.age,
    "older_than": _Reader.age,
    "larger": _Reader.size,
    "smaller": _Reader.size,
    "thread": _Reader.thread,
}
