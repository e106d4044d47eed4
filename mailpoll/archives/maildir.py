"""Maildir (Maildir++ for folders): in a tar (POSIX.1-2001, pax), or as a directory.

The tar is written and read here too: ``tarfile`` keeps every member in memory, and takes headers
of any length from whoever made the file.
"""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from imapclient import imap_utf7

from .contents import Content, pieces
from .selection import Entry

BLOCK = 512
#: Bytes of a header that gives a longer name.
LONG_HEADER = 100_000
#: Bytes of a directory's name on every file system.
NAME_BYTES = 255
INBOX = "INBOX"
#: Maildir's letters for IMAP's flags.
FLAGS = {"\\Draft": "D", "\\Flagged": "F", "\\Answered": "R", "\\Seen": "S", "\\Deleted": "T"}
#: When a message was delivered, at the begin of its file's name.
DELIVERED = re.compile(r"([0-9]{1,12})\.")
PLAIN = re.compile(r"[\w ,()@+=-]+", re.ASCII)
PAX_FIELD = re.compile(rb"([0-9]{1,6}) (path|size)=")


def file_name(entry: Entry) -> str:
    """The same for the same message, so that an export to a directory can be resumed."""
    when = entry.internal_date.astimezone(UTC)
    letters = "".join(sorted(FLAGS.get(flag, "") for flag in entry.flags or ()))
    name = f"{int(when.timestamp())}.M{when.microsecond}P{entry.id}.mailpoll"
    return f"{name},S={entry.size}:2,{letters}"


def unique_name(name: str) -> str:
    """A file's name without its flags."""
    return name.partition(":")[0]


def directory_of(folder: str | None) -> str:
    """The directory of a folder: '' for the inbox, ``.A.B`` for ``A/B``.

    What a directory's name should not have is spelt in modified UTF-7; the manifest has the name.
    """
    if folder is None or folder.upper() == INBOX:
        return ""
    levels = [_level(level) for level in folder.split("/") if level]
    name = "." + ".".join(levels)
    if len(name.encode()) > NAME_BYTES or not levels:
        name = "." + hashlib.sha256(folder.encode()).hexdigest()
    return name


def _level(level: str) -> str:
    if PLAIN.fullmatch(level):
        return level
    encoded = imap_utf7.encode(level).decode("ascii")
    for sign in "./\\:~*?\"'<>|":
        encoded = encoded.replace(sign, imap_utf7_sign(sign))
    return encoded.strip(" ") or "_"


def imap_utf7_sign(sign: str) -> str:
    """A printable sign, spelt as modified UTF-7 spells others (as Dovecot does)."""
    import base64

    packed = base64.b64encode(sign.encode("utf-16-be")).decode().rstrip("=")
    return f"&{packed.replace('/', ',')}-"


def folder_of(directory: str) -> str:
    """The folder of a directory: ``.A.B`` is ``A/B``, '' the inbox."""
    if directory in ("", "."):
        return INBOX
    levels = directory.removeprefix(".").split(".")
    return "/".join(_decoded(level) for level in levels if level) or INBOX


def _decoded(level: str) -> str:
    try:
        text = imap_utf7.decode(level.encode("ascii"))
    except (ValueError, LookupError, IndexError, UnicodeError):
        return level
    return str(text)


def date_of(name: str) -> datetime | None:
    """When a message was delivered, by its file's name."""
    found = DELIVERED.match(name)
    try:
        return datetime.fromtimestamp(int(found[1]), UTC) if found else None
    except (ValueError, OverflowError, OSError):
        return None


def flags_of(name: str) -> tuple[str, ...] | None:
    """A message's flags, by its file's name; ``None``: it tells none."""
    _, told, letters = name.rpartition(":2,")
    return tuple(flag for flag, letter in FLAGS.items() if letter in letters) if told else None


class TarWriter:
    """The bytes of a tar, member by member."""

    def __init__(self) -> None:
        self._directories: set[str] = set()

    def directory(self, name: str, when: datetime) -> Iterator[bytes]:
        """A Maildir; once for each writer, and again by another does no harm."""
        if name in self._directories:
            return
        self._directories.add(name)
        for path in (name, *(f"{name}/{one}".lstrip("/") for one in ("cur", "new", "tmp"))):
            if path:
                yield _header(path, when, 0, tarfile.DIRTYPE)

    def member(self, name: str, when: datetime, content: Content, size: int) -> Iterator[bytes]:
        yield _header(name, when, size, tarfile.REGTYPE)
        yield from pieces(content)
        yield bytes(-size % BLOCK)

    def end(self) -> Iterator[bytes]:
        yield bytes(2 * BLOCK)


def _header(name: str, when: datetime, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mtime = size, kind, int(when.timestamp())
    info.mode = 0o700 if kind == tarfile.DIRTYPE else 0o600
    return info.tobuf(tarfile.PAX_FORMAT)


class BadTar(Exception):
    """Not a tar that can be read; its text says why."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member; ``offset`` is where its bytes begin."""

    name: str
    size: int
    offset: int
    is_file: bool
    is_directory: bool


def is_tar(begin: bytes) -> bool:
    empty = len(begin) == 2 * BLOCK and not begin.strip(b"\0")
    return empty or begin[257:262] == b"ustar"


def tar_members(file: BinaryIO) -> Iterator[TarMember]:
    """The members of a tar that anyone may have made.

    Raises:
      BadTar: it is damaged; nothing can be said of what comes behind.
    """
    total, place = file.seek(0, 2), 0
    long_name, long_size = "", -1
    while place + BLOCK <= total:
        file.seek(place)
        head = file.read(BLOCK)
        if not head.strip(b"\0"):
            return
        kind, size = head[156:157], _number(head[124:136])
        if not _sum_is_right(head):
            raise BadTar("damaged: a header's checksum is wrong")
        if place + BLOCK + size > total:
            raise BadTar("it ends too soon")
        if kind in b"xgLK":
            if size > LONG_HEADER:
                raise BadTar("a name in it is too long")
            extended = file.read(size)
            if kind == b"L":
                long_name = extended.rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"x":
                long_name, long_size = _extended(extended, long_name)
        else:
            real = long_size if long_size >= 0 else size
            if place + BLOCK + real > total:
                raise BadTar("it ends too soon")
            name = long_name or _name(head)
            plain = kind in (b"0", b"\0", b"7")
            yield TarMember(name, real, place + BLOCK, plain, kind == b"5")
            long_name, long_size, size = "", -1, real
        place += BLOCK + size + (-size % BLOCK)


def _name(head: bytes) -> str:
    parts = [head[345:500] if head[257:263] == b"ustar\0" else b"", head[:100]]
    texts = [part.partition(b"\0")[0].decode("utf-8", "replace") for part in parts]
    return "/".join(text for text in texts if text)


def _number(field: bytes) -> int:
    """Octal digits, or a binary number where they would not do."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    try:
        number = int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise BadTar("damaged: a header has no size") from None
    if number < 0:
        raise BadTar("damaged: a header has no size")
    return number


def _sum_is_right(head: bytes) -> bool:
    told = _number(head[148:156])
    return told == sum(head[:148]) + 8 * 32 + sum(head[156:])


def _extended(data: bytes, name: str) -> tuple[str, int]:
    """Name and size of a pax header; its other fields say nothing that is needed."""
    size, place = -1, 0
    while place < len(data):
        length_text = data[place : place + 7].partition(b" ")[0]
        if not length_text.isdigit() or not int(length_text):
            break
        field = data[place : place + int(length_text)]
        found = PAX_FIELD.match(field)
        if found:
            value = field[found.end() : -1]
            if found[2] == b"path":
                name = value.decode("utf-8", "replace")
            elif value.isdigit() and len(value) < 20:
                size = int(value)
        place += int(length_text)
    return name, size


class Range:
    """Some bytes of a file as a stream.

    Parameters:
      file: others may read from it between two reads.
    """

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._place, self._left = file, offset, size

    def read(self, size: int) -> bytes:
        self._file.seek(self._place)
        found = self._file.read(min(size, self._left))
        self._place += len(found)
        self._left -= len(found)
        return found


def write_file(target: Path, content: Content) -> None:
    """Put a message into the ``cur`` of a Maildir, whole or not at all."""
    folder = target.parent.parent
    for part in ("tmp", "new", "cur"):
        (folder / part).mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = folder / "tmp" / unique_name(target.name)
    with temporary.open("wb") as file:
        temporary.chmod(0o600)
        for piece in pieces(content):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(target)
