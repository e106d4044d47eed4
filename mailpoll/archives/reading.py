"""Messages in what people give: files, directories, archives. Whoever made them may mean harm.

Nothing is unpacked to disk under a name that an archive gives; links are not followed, archives
within archives not opened, and no message is read further than the limit.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from .contents import Collector, Content, Readable, collected
from .maildir import (
    INBOX,
    BadTar,
    Range,
    TarMember,
    date_of,
    flags_of,
    folder_of,
    is_tar,
    tar_members,
)
from .manifest import NAME, Manifest, is_folder
from .mbox import WORD, messages
from .zips import BadZip, Member, ZipReader

#: Bytes by which a file is known.
BEGIN = 1_024
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
#: What other archives begin with, and what they are called.
OTHERS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
}
#: A header field, with which messages begin.
FIELD = re.compile(rb"[!-9;-~]{1,200}[ \t]{0,10}:")
MBOX_NAMES, EML_NAMES = (".mbox", ".mbx"), (".eml",)
#: An archive may unpack to so many times its size, and to so many bytes in any case.
MOST, LEAST = 100, 1_000_000_000
#: Levels of directories that are looked into.
DEPTH = 50


class Unreadable(Exception):
    """Nothing can be imported from it: what is wrong, in words."""


@dataclass(frozen=True, slots=True)
class Found:
    """A message, or the reason why something is none.

    Parameters:
      source: where it was, in words.
      content: ``None`` when there is a reason; a file is the taker's to remove.
      date: when it arrived, as far as its place tells.
      folder: where it lay, as far as its place tells.
      flags: as IMAP spells them; ``None``: nothing tells.
    """

    source: str
    content: Content | None = None
    size: int = 0
    sha256: str = ""
    date: datetime | None = None
    folder: str | None = None
    reason: str = ""
    flags: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What is read at most, and how.

    Parameters:
      account_uuid: names temporary files.
      message_bytes: of one message.
      quoted_once: mbox files are of the dialect "mboxo".
    """

    account_uuid: str
    message_bytes: int
    quoted_once: bool = False


def read(
    path: Path, limits: Limits, manifest: Manifest, name: str | None = None
) -> Iterator[Found]:
    """All messages of a file or a directory.

    Parameters:
      manifest: filled by what manifests are found, before the messages they are about.
      name: what the file is called, where that says more than its path.

    Raises:
      Unreadable: nothing can be read from it, or not all: what came before stands.
      OSError: a file cannot be read.
    """
    reader = _Reader(limits, manifest)
    if path.is_dir():
        yield from reader.directory(path)
        return
    if not path.is_file():
        raise Unreadable(f"{path}: is no file and no directory")
    beside = path.with_name(f"{path.name}.manifest.jsonl")
    if beside.is_file() and not beside.is_symlink():
        with beside.open("rb") as lines:
            manifest.read(lines)
    with path.open("rb") as file:
        yield from reader.file(file, name or path.name, path.name if name is None else name)


class _Reader:
    def __init__(self, limits: Limits, manifest: Manifest) -> None:
        self._limits = limits
        self._manifest = manifest

    # Files

    def file(
        self, file: BinaryIO, source: str, name: str, folder: str | None = None
    ) -> Iterator[Found]:
        """The messages of a file, whatever it is."""
        begin = file.read(BEGIN)
        file.seek(0)
        low = name.lower()
        if not low.endswith((*EML_NAMES, *MBOX_NAMES)):
            if begin.startswith(ZIP):
                return self._zip(file, source)
            if is_tar(begin):
                return self._tar(file, source)
            _refuse_others(begin, source)
        if low.endswith(EML_NAMES) or not (low.endswith(MBOX_NAMES) or begin.startswith(WORD)):
            if not low.endswith(EML_NAMES) and not _looks_like_mail(begin):
                raise Unreadable(f"{source}: is no mbox, zip, tar or message")
            return iter([self._single(file, source, None, folder)])
        if not begin.startswith(WORD):
            if begin:
                raise Unreadable(f"{source}: is no mbox: it does not begin with a line From …")
            return iter(())
        return self._mbox(file, source, folder)

    def _single(
        self, stream: Readable, source: str, date: datetime | None, folder: str | None
    ) -> Found:
        """A message that is a file of its own."""
        limits = self._limits
        collector = collected(stream, limits.account_uuid, limits.message_bytes)
        return self._found(collector, source, collector.sha256(), date, folder)

    def _of_maildir(
        self, stream: Readable, source: str, parts: tuple[str, ...], folder: str
    ) -> Found:
        *_, half, name = parts
        found = self._single(stream, source, date_of(name), folder)
        return replace(found, flags=() if half == "new" else flags_of(name))

    def _found(
        self,
        collector: Collector,
        source: str,
        sha256: str,
        date: datetime | None,
        folder: str | None,
    ) -> Found:
        if collector.too_large:
            collector.discard()
            limit = self._limits.message_bytes
            reason = f"too large: the limit is {limit} bytes (MAILPOLL_MAX_MESSAGE_BYTES)"
            return Found(source, size=collector.size, reason=reason)
        content = collector.finish()
        return Found(source, content, collector.size, sha256, date, folder)

    def _mbox(self, file: Readable, source: str, folder: str | None) -> Iterator[Found]:
        limits = self._limits
        found = messages(
            file,
            limits.account_uuid,
            limits.message_bytes,
            self._manifest,
            quoted_once=limits.quoted_once,
        )
        for number, (collector, sha256, date) in enumerate(found, 1):
            yield self._found(collector, f"{source}: message {number}", sha256, date, folder)

    # Directories

    def directory(self, root: Path) -> Iterator[Found]:
        """Maildirs, messages and mbox files, however deep; nothing that a link points at."""
        with suppress(FileNotFoundError), (root / "manifest.jsonl").open("rb") as lines:
            if not (root / "manifest.jsonl").is_symlink():
                self._manifest.read(lines)
        yield from self._level(root, root, 0)

    def _level(self, path: Path, root: Path, depth: int) -> Iterator[Found]:
        if depth > DEPTH:
            yield Found(str(path), reason="lies too deep")
            return
        # Links are looked at and not followed.
        for name in sorted(entry.name for entry in os.scandir(path)):
            entry = path / name
            if entry.is_symlink():
                yield Found(str(entry), reason="is a symbolic link, which is not followed")
            elif entry.is_dir():
                if entry.name != "tmp" or not (path / "cur").is_dir():
                    yield from self._level(entry, root, depth + 1)
            elif entry.is_file():
                yield from self._file_of(entry, root)
            else:
                yield Found(str(entry), reason="is no plain file")

    def _file_of(self, path: Path, root: Path) -> Iterator[Found]:
        parts = path.relative_to(root).parts
        if root.name in ("cur", "new") and len(parts) == 1:
            parts = (root.name, *parts)  # one half of a Maildir
        place = _place(parts)
        if place is None:
            return
        with path.open("rb") as file:
            if isinstance(place, str):  # of a Maildir
                yield self._of_maildir(file, str(path), parts, place)
                return
            try:
                yield from self.file(file, str(path), path.name, _folder(parts[:-1], path.name))
            except Unreadable as error:
                yield Found(str(path), reason=str(error).removeprefix(f"{path}: "))

    # Archives

    def _zip(self, file: BinaryIO, source: str) -> Iterator[Found]:
        try:
            archive = ZipReader(file)
            budget = _Budget(file, source)
            for member in archive.members():
                if member.encrypted:
                    raise Unreadable(f"{source}: is encrypted: unpack it first")
                if NAME.fullmatch(member.name):
                    self._manifest.read(_Stream(budget.spend(archive.content(member))))
            for member in archive.members():
                yield from self._zip_member(archive, member, source, budget)
        except BadZip as error:
            raise Unreadable(f"{source}: {error}") from None

    def _zip_member(
        self, archive: ZipReader, member: Member, source: str, budget: "_Budget"
    ) -> Iterator[Found]:
        if member.is_link:
            yield Found(f"{source}: {member.name}", reason="is no plain file")
            return
        if member.is_directory:
            return
        stream = _Stream(budget.spend(archive.content(member)))
        try:
            yield from self._member(stream, member.name, f"{source}: {member.name}")
        except BadZip as error:
            yield Found(f"{source}: {member.name}", reason=str(error))

    def _tar(self, file: BinaryIO, source: str) -> Iterator[Found]:
        try:
            for member in tar_members(file):
                if member.is_file and NAME.fullmatch(_without_dot(member.name)):
                    self._manifest.read(_Stream(_chunks(file, member)))
            for member in tar_members(file):
                name = _without_dot(member.name)
                if member.is_file:
                    stream = _Stream(_chunks(file, member))
                    yield from self._member(stream, name, f"{source}: {name}")
                elif not member.is_directory:
                    yield Found(f"{source}: {name}", reason="is a link or no plain file")
        except BadTar as error:
            raise Unreadable(f"{source}: {error}") from None

    def _member(self, stream: "_Stream", name: str, source: str) -> Iterator[Found]:
        """A file of an archive. Its name says what it may be, and never where anything is put."""
        parts = tuple(part for part in name.split("/") if part not in ("", ".", ".."))
        place = _place(parts)
        if place is None:
            return
        if isinstance(place, str):
            yield self._of_maildir(stream, source, parts, place)
            return
        low, folder = parts[-1].lower(), _folder(parts[:-1], parts[-1])
        if low.endswith(EML_NAMES):
            yield self._single(stream, source, None, folder)
            return
        begin = stream.peek(BEGIN)
        if begin.startswith(WORD):
            yield from self._mbox(stream, source, folder)
        elif begin.startswith(tuple(OTHERS)) or begin.startswith(ZIP) or is_tar(begin):
            yield Found(source, reason="is an archive within an archive, which is not opened")
        elif low.endswith(MBOX_NAMES) and not begin:
            return
        elif _looks_like_mail(begin):
            yield self._single(stream, source, None, folder)
        else:
            yield Found(source, reason="is no message")


class _Budget:
    """Bytes that an archive may unpack to, all in all (CWE-409)."""

    def __init__(self, file: BinaryIO, source: str) -> None:
        self._left = max(MOST * file.seek(0, 2), LEAST)
        self._source = source

    def spend(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._left -= len(piece)
            if self._left < 0:
                raise Unreadable(f"{self._source}: unpacks to far more than it is: not read on")
            yield piece


class _Stream:
    """Pieces as a file that is read once, from begin to end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = bytearray()
        self._place = 0

    def _fill(self, size: int) -> None:
        """Have so many bytes, if there are."""
        if self._place > len(self._buffer) // 2:
            del self._buffer[: self._place]
            self._place = 0
        while len(self._buffer) - self._place < size:
            piece = next(self._pieces, None)
            if piece is None:
                return
            self._buffer += piece

    def _take(self, size: int) -> bytes:
        found = bytes(memoryview(self._buffer)[self._place : self._place + size])
        self._place += len(found)
        return found

    def peek(self, size: int) -> bytes:
        self._fill(size)
        return bytes(memoryview(self._buffer)[self._place : self._place + size])

    def read(self, size: int) -> bytes:
        self._fill(1)
        return self._take(size)

    def readline(self, size: int) -> bytes:
        end = self._buffer.find(b"\n", self._place, self._place + size)
        if end < 0:
            self._fill(size)
            end = self._buffer.find(b"\n", self._place, self._place + size)
        return self._take(size if end < 0 else end + 1 - self._place)


def _chunks(file: BinaryIO, member: TarMember) -> Iterator[bytes]:
    content = Range(file, member.offset, member.size)
    while piece := content.read(65_536):
        yield piece


def _without_dot(name: str) -> str:
    return name.removeprefix("./")


def _refuse_others(begin: bytes, source: str) -> None:
    for sign, kind in OTHERS.items():
        if begin.startswith(sign):
            raise Unreadable(f"{source}: is packed with {kind}: unpack it first")


def _looks_like_mail(begin: bytes) -> bool:
    """Whether it begins with a header field; an empty file is no message."""
    return FIELD.match(begin.lstrip(b"\r\n")) is not None


def _place(parts: tuple[str, ...]) -> str | bool | None:
    """The folder of a Maildir's message; true for any other file, ``None`` for no message."""
    if not parts or (len(parts) == 1 and NAME.fullmatch(parts[0])):
        return None
    if parts[-1].startswith("._") or "__MACOSX" in parts:
        return None  # what macOS keeps beside each file (AppleDouble)
    if len(parts) >= 2 and parts[-2] in ("cur", "new"):
        # Programs' own files: the messages of a Maildir never begin with a dot.
        return None if parts[-1].startswith(".") else _maildir_folder(parts[:-2])
    own = ("manifest.jsonl", "subscriptions", "maildirfolder", "maildirsize")
    prefixes = ("dovecot.", "dovecot-", "courierimap", ".")
    mail = parts[-1].lower().endswith((*EML_NAMES, *MBOX_NAMES))
    if parts[-1] in own or parts[-1].endswith(".jsonl"):
        return None
    return mail or not parts[-1].startswith(prefixes) or None


def _maildir_folder(parts: tuple[str, ...]) -> str:
    """``.A.B`` of Maildir++, or directories within each other."""
    names = [folder_of(part) if part.startswith(".") else part for part in parts]
    return _folder(tuple(names[-1:] if parts and parts[-1].startswith(".") else names)) or INBOX


def _folder(parts: tuple[str, ...], file_name: str = "") -> str | None:
    """Directories as a folder's name; ``None`` where they make none."""
    levels = list(parts)
    if not levels and file_name.lower().endswith(MBOX_NAMES):
        levels = [file_name.rpartition(".")[0]]
    name = "/".join("".join(c if c.isprintable() else "_" for c in level) for level in levels)
    return name if is_folder(name) else None
