"""The server's answers as Python values: pure functions over bytes (RFC 9051 section 9).

A response arrives as one or more pieces: text with the literals between. ``tokens`` turns the
pieces into nested lists of ``bytes`` and ``None``; the functions below read what mailpoll asks for.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

from . import flags
from .errors import Fault, ImapError

#: Ranges of UIDs that a VANISHED answer may name; honest ones are as many as were removed.
RANGES_LIMIT = 200_000
#: Deepest nesting of parentheses that is read; honest answers to our questions have three levels.
DEPTH_LIMIT = 20
#: UIDs of one listing that are held at once.
UIDS_LIMIT = 5_000_000
PARENTHESES = rb"(\()|(\))"
QUOTED = rb'|"((?:[^"\\]|\\.)*+)"'
#: ``BODY[…]<…>``, whose section may hold blanks; anything else.
OTHERS = rb"|(BODY(?:\.PEEK)?\[[^][]*\](?:<\d+>)?)|([^\s()\"]+)"
#: The last is a quote that nothing ends.
TOKEN = re.compile(PARENTHESES + QUOTED + OTHERS + rb'|(")', re.IGNORECASE | re.DOTALL)
#: The groups of both.
OPEN, CLOSE, WORD_IN_QUOTES, SECTION, ATOM, UNENDED = range(1, 7)
#: The same behind a quote that nothing ends: there are no quoted strings any more.
BARE_TOKEN = re.compile(PARENTHESES + rb"|(\Z.)" + OTHERS, re.IGNORECASE | re.DOTALL)
OBJECT_ID = re.compile(rb"[A-Za-z0-9_-]{1,255}")
UNESCAPE = re.compile(rb"\\(.)", re.DOTALL)
INTERNALDATE = re.compile(
    r"\s*(\d{1,2})-(\w{3})-(\d{4}) (\d{2}):(\d{2}):(\d{2})(?: ([+-]\d{4}))?", re.ASCII
)
MONTHS = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1
    )
}


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes that the server sent by length."""

    data: bytes


@dataclass(slots=True)
class Fetched:
    """One FETCH answer. ``body`` is ``None`` when the server sent none or NIL."""

    uid: int | None = None
    size: int | None = None
    internal_date: datetime | None = None
    body: bytes | None = None
    #: EMAILID (RFC 8474) or Gmail's X-GM-MSGID: the same in every folder that has the message.
    email_id: str | None = None
    #: The offset that the server says a partial body begins at.
    origin: int | None = None
    #: As ``mailpoll.imap.flags`` makes them; ``None`` when the server told none.
    flags: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """One LIST answer: the wire name is to be sent back unchanged."""

    wire_name: bytes
    delimiter: bytes | None
    flags: frozenset[str]


@dataclass(slots=True)
class Status:
    """What STATUS or EXAMINE says of a folder; ``None`` where the server says nothing."""

    uidvalidity: int | None = None
    uidnext: int | None = None
    messages: int | None = None
    #: All messages together, where it was asked for and the server knows it (RFC 8438).
    bytes: int | None = None
    #: HIGHESTMODSEQ (RFC 7162), where it was asked for; it says nothing when it is 1.
    modseq: int | None = None


def tokens(pieces: Sequence[bytes | Literal]) -> list[Any]:
    """Nested lists of a response's words.

    Raises:
      ImapError: unbalanced or absurdly deep parentheses.
    """
    root: list[Any] = []
    stack = [root]
    for kind, value in _words(pieces):
        if kind == "open":
            if len(stack) > DEPTH_LIMIT:
                raise ImapError(Fault.PROTOCOL, "parentheses nested too deep")
            inner: list[Any] = []
            stack[-1].append(inner)
            stack.append(inner)
        elif kind == "close":
            if len(stack) == 1:
                raise ImapError(Fault.PROTOCOL, "unbalanced parentheses")
            stack.pop()
        else:
            stack[-1].append(value)
    if len(stack) != 1:
        raise ImapError(Fault.PROTOCOL, "unbalanced parentheses")
    return root


def _words(pieces: Sequence[bytes | Literal]) -> Iterator[tuple[str, bytes | None]]:
    for piece in pieces:
        if isinstance(piece, Literal):
            yield "word", piece.data
            continue
        for match in _matches(piece):
            group = match.lastindex
            if group == OPEN:
                yield "open", None
            elif group == CLOSE:
                yield "close", None
            elif group == WORD_IN_QUOTES:
                yield "word", UNESCAPE.sub(rb"\1", match[WORD_IN_QUOTES])
            elif group == SECTION:
                yield "word", match[SECTION].upper()
            else:
                atom = match[ATOM]
                yield "word", None if atom.upper() == b"NIL" else atom


def _matches(piece: bytes) -> Iterator[re.Match[bytes]]:
    """The tokens, in linear time: after a quote without an end none is looked for again."""
    for match in TOKEN.finditer(piece):
        if match.lastindex == UNENDED:
            yield from BARE_TOKEN.finditer(piece, match.end())
            return
        yield match


def fetch(words: list[Any]) -> Fetched:
    """Read the list of a FETCH answer: items in any order, unknown ones ignored."""
    answer = Fetched()
    for name, value in zip(words[::2], words[1::2], strict=False):
        if not isinstance(name, bytes):
            raise ImapError(Fault.PROTOCOL, "a FETCH item has no name")
        key = name.upper()
        if key == b"UID":
            answer.uid = number(value)
        elif key == b"RFC822.SIZE":
            answer.size = number(value)
        elif key == b"INTERNALDATE":
            answer.internal_date = internal_date(value)
        elif key in (b"EMAILID", b"X-GM-MSGID"):
            answer.email_id = _email_id(value)
        elif key == b"FLAGS":
            answer.flags = flags.flags(value)
        elif key == b"X-GM-LABELS":
            answer.labels = flags.labels(value)
        elif key.startswith(b"BODY["):
            answer.body = value if isinstance(value, bytes) else None
            answer.origin = number(key.rpartition(b"<")[2].removesuffix(b">"))
    return answer


def _email_id(value: Any) -> str | None:
    """``(M6d99ac3275bb4e)`` or a number; ``None`` for NIL, which servers send that have none."""
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    usable = isinstance(value, bytes) and OBJECT_ID.fullmatch(value)
    return value.decode("ascii") if usable else None


def listed(words: list[Any]) -> Listed | None:
    """Read ``(flags) delimiter name`` of a LIST answer; ``None`` when there is no usable name."""
    if len(words) < 3 or not isinstance(words[0], list):
        return None
    # Some servers send names with blanks, or the name NIL, without quotes.
    parts = [b"NIL" if word is None else word for word in words[2:] if not isinstance(word, list)]
    name = b" ".join(parts)
    if not name:
        return None
    flags = frozenset(
        flag.decode("latin-1").lower() for flag in words[0] if isinstance(flag, bytes)
    )
    return Listed(name, words[1] if isinstance(words[1], bytes) else None, flags)


def searched(words: list[Any], last: int) -> list[int]:
    """The numbers of an ESEARCH answer's ALL item (RFC 4731 3.1); none above ``last``.

    Raises:
      ImapError: the set is not one.
    """
    found: list[int] = []
    for name, value in pairwise(words):
        if not isinstance(name, bytes) or name.upper() != b"ALL" or not isinstance(value, bytes):
            continue
        for one in value.split(b","):
            first, _, end = one.partition(b":")
            low, high = number(first), number(end or first)
            if low is None or high is None:
                raise ImapError(Fault.PROTOCOL, "an ESEARCH answer is not a set of numbers")
            low, high = sorted((low, high))
            high = min(high, last)
            if len(found) + high - low > UIDS_LIMIT:
                raise ImapError(Fault.PROTOCOL, "an ESEARCH answer is absurdly large")
            found.extend(range(low, high + 1))
    return found


def vanished(words: list[Any]) -> list[tuple[int, int]]:
    """The ranges of UIDs that a VANISHED answer names (RFC 7162 3.2.10).

    What is no set of numbers is passed over: nothing depends on this alone.
    """
    found: list[tuple[int, int]] = []
    for part in words[-1].split(b",") if words and isinstance(words[-1], bytes) else ():
        first, _, end = part.partition(b":")
        low, high = number(first), number(end or first)
        if low and high and len(found) < RANGES_LIMIT:
            found.append((min(low, high), max(low, high)))
    return found


def unclosed(pieces: Sequence[bytes | Literal]) -> bool:
    """Whether a parenthesis is still open: the response goes on, unless it is refused anyway."""
    depth = 0
    for piece in pieces:
        if isinstance(piece, bytes):
            for match in _matches(piece):
                group = match.lastindex
                if group == OPEN:
                    depth += 1
                    if depth > DEPTH_LIMIT:
                        return False
                elif group == CLOSE:
                    depth -= 1
    return depth > 0


def status(words: list[Any]) -> Status:
    """Read the list of a STATUS answer; a missing or absurd number is ``None``."""
    found = Status()
    for name, value in zip(words[::2], words[1::2], strict=False):
        if not isinstance(name, bytes):
            continue
        match name.upper():
            case b"UIDVALIDITY":
                found.uidvalidity = number(value) or None
            case b"UIDNEXT":
                found.uidnext = number(value) or None
            case b"MESSAGES":
                found.messages = number(value)
            case b"SIZE":
                found.bytes = number(value)
            case b"HIGHESTMODSEQ":
                found.modseq = number(value) or None
    return found


def number(value: Any) -> int | None:
    """A non-negative number that a database can hold, or ``None`` for anything else."""
    return int(value) if isinstance(value, bytes) and value.isdigit() and len(value) < 19 else None


def internal_date(value: Any) -> datetime | None:
    """An INTERNALDATE in UTC; ``None`` when it is missing or no date (``00-Jan-0000``)."""
    match = (
        INTERNALDATE.match(value.decode("ascii", "replace")) if isinstance(value, bytes) else None
    )
    if not match:
        return None
    day, month, year, *clock, zone = match.groups()
    hour, minute, second = map(int, clock)
    offset = (
        timedelta(hours=int(zone[:3]), minutes=int(zone[0] + zone[3:])) if zone else timedelta()
    )
    try:
        zoned = timezone(offset)
        moment = datetime(
            int(year), MONTHS[month.lower()], int(day), hour, minute, second, tzinfo=zoned
        )
        return moment.astimezone(UTC)
    except (KeyError, ValueError, OverflowError):
        return None
