"""mbox, as the dialect "mboxrd" writes it: the bytes of every message can be had back.

The line before a message names its SHA-256, which tells whether its last line end is its own. When
others' files are read, a message begins at a line ``From …`` with a date, behind an empty line;
``Content-Length`` is never believed.
"""

import re
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime

from .contents import Collector, Content, Readable, opened, pieces
from .manifest import Manifest
from .selection import Entry

#: Bytes of a line that are looked at together.
LINE = 65_536
#: Bytes of a line that may begin a message.
BEGIN = 1_000
#: What such a line begins with, also where it is quoted.
WORD = b"From "
BLANK = (b"\n", b"\r\n")
QUOTABLE = re.compile(rb">*+From ")
SENDER = re.compile(rb"From ([0-9a-f]{64})@mailpoll\.invalid ")
DAYS = {b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"}
MONTHS = {
    name: number
    for number, name in enumerate(
        b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), start=1
    )
}
TIME = re.compile(rb"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?")
YEAR = re.compile(rb"[0-9]{4}")
ZONE = re.compile(rb"([+-])([0-9]{2})([0-9]{2})")


def message(entry: Entry, content: Content) -> Iterator[bytes]:
    """A message as a file has it."""
    when = time.asctime(entry.internal_date.astimezone(UTC).timetuple())
    yield f"From {entry.sha256}@mailpoll.invalid {when}\n".encode()
    last = b""
    plain = isinstance(content, bytes) and WORD not in content
    for piece in pieces(content) if plain else _quoted(content):
        yield piece
        last = piece[-1:] or last
    yield b"\n" if last == b"\n" else b"\n\n"


def _quoted(content: Content) -> Iterator[bytes]:
    """The same bytes; lines that begin as a message does, quoted or not, are quoted once more."""
    with opened(content) as file:
        for fresh, piece in _lines(file):
            found = QUOTABLE.match(piece) if fresh else None
            if found:
                end = found.end() - len(WORD)
                yield piece[:end] + b">" + piece[end:]
            else:
                yield piece


def _lines(file: Readable) -> Iterator[tuple[bool, bytes]]:
    """Pieces of lines, and whether each begins one, but for signs of quotation before it."""
    fresh = True
    while piece := file.readline(LINE):
        if fresh and not piece.endswith(b"\n"):
            rest = piece.lstrip(b">")
            if len(rest) < len(WORD) and WORD.startswith(rest):
                piece += file.readline(len(WORD))  # cut within the word
        yield fresh, piece
        fresh = piece.endswith(b"\n") or (fresh and not piece.strip(b">"))


def messages(
    file: Readable, account_uuid: str, limit: int, manifest: Manifest, *, quoted_once: bool = False
) -> Iterator[tuple[Collector, str, datetime | None]]:
    """The messages of a file, each with its SHA-256 and the date in the line before it.

    Parameters:
      limit: bytes that a message may have.
      quoted_once: the file is of the older dialect "mboxo", which quotes ``From`` alone.
    """
    reader = _Reader(account_uuid, limit, manifest, quoted_once)
    try:
        yield from _read(file, reader)
    finally:
        reader.discard()  # what a damaged file leaves unfinished


def _read(file: Readable, reader: "_Reader") -> Iterator[tuple[Collector, str, datetime | None]]:
    kept = b""
    for fresh, line in _lines(file):
        piece, kept = kept + line, b""
        begins = fresh and line.startswith(WORD) and len(piece) == len(line)
        if begins and reader.may_begin(piece):
            if (found := reader.end()) is not None:
                yield found
            reader.begin(piece)
            continue
        if fresh and not piece.strip(b">"):
            piece, kept = piece[:-1], piece[-1:]  # it may be the sign that was added
        reader.add(fresh, piece)
    if kept:
        reader.add(False, kept)
    if (found := reader.end()) is not None:
        yield found


class _Reader:
    """Takes lines, and knows where a message begins and ends."""

    def __init__(
        self, account_uuid: str, limit: int, manifest: Manifest, quoted_once: bool
    ) -> None:
        self._uuid, self._limit = account_uuid, limit
        self._manifest = manifest
        self._quoted_once = quoted_once
        self._collector: Collector | None = None
        self._expected = ""
        self._date: datetime | None = None
        #: The last two lines: one may be the file's own, and the line end of the other too.
        self._held: deque[bytes] = deque()

    def may_begin(self, line: bytes) -> bool:
        if self._collector is None:
            return True
        blank = self._held and self._held[-1] in BLANK
        return bool(blank) and date_of(line) is not None

    def begin(self, line: bytes) -> None:
        named = SENDER.match(line)
        self._expected = named[1].decode() if named else ""
        self._date = date_of(line)
        self._collector = Collector(self._uuid, self._limit)
        self._held.clear()

    def add(self, fresh: bool, piece: bytes) -> None:
        if self._collector is None or not piece:
            return  # before the first message
        quoted = QUOTABLE.match(piece) if fresh else None
        if quoted and quoted.end() > len(WORD):
            end = quoted.end() - len(WORD)
            if end == 1 or not self._quoted_once:
                piece = piece[: end - 1] + piece[end:]
        if not fresh and self._held and piece in BLANK:
            self._held[-1] += piece  # the end of a long line is no empty one
            return
        self._held.append(piece)
        while len(self._held) > 2:
            self._collector.write(self._held.popleft())

    def end(self) -> tuple[Collector, str, datetime | None] | None:
        """The message that ends here, if one has begun."""
        collector, self._collector = self._collector, None
        if collector is None:
            return None
        if self._held and self._held[-1] in BLANK:
            self._held.pop()
        whole = b"".join(self._held)
        if whole.endswith(b"\n") and not self._known(collector.sha256(whole)):
            without = whole[:-1]
            if self._known(collector.sha256(without)):
                whole = without
        collector.write(whole)
        return collector, collector.sha256(), self._date

    def discard(self) -> None:
        """Drop the message that has begun and not ended."""
        if self._collector is not None:
            self._collector.discard()

    def _known(self, sha256: str) -> bool:
        """Whether it is a message's; where that is told, of this one and not of any other."""
        return sha256 == self._expected if self._expected else sha256 in self._manifest


def date_of(line: bytes) -> datetime | None:
    """The date at the end of a line that begins a message (RFC 4155, and what programs write).

    ``From sender Thu Feb  1 12:00:00 2018``, with a time zone before or behind the year or none.
    """
    words = line[:BEGIN].split()[1:]
    for place, word in enumerate(words[-9:], max(0, len(words) - 9)):
        rest = words[place + 1 : place + 7]
        if word in DAYS and len(rest) >= 4 and rest[0] in MONTHS:
            return _date(MONTHS[rest[0]], rest[1:])
    return None


def _date(month: int, words: list[bytes]) -> datetime | None:
    day, clock, *rest = words
    found = TIME.fullmatch(clock)
    year = next((word for word in rest if YEAR.fullmatch(word)), None)
    if found is None or year is None or not day.isdigit() or len(day) > 2:
        return None
    zone = next((match for word in rest if (match := ZONE.fullmatch(word))), None)
    try:
        hour, minute, second = (int(part or 0) for part in found.groups())
        moment = datetime(int(year), month, int(day), hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    if zone:
        minutes = int(zone[2]) * 60 + int(zone[3])
        seconds = minutes * 60 * (-1 if zone[1] == b"+" else 1)
        try:
            moment = datetime.fromtimestamp(moment.timestamp() + seconds, UTC)
        except (ValueError, OverflowError, OSError):
            return None
    return moment
