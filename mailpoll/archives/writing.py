"""Archives of messages as streams: in flat memory, whatever their number.

A message that cannot be read is left out, counted, and named in the manifest with the reason; a
store that is away ends the stream, since it says nothing about the messages.
"""

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import structlog

from .. import spool
from ..blobs import BlobCorrupt, BlobMissing
from . import contents, maildir, manifest
from .contents import CHUNK
from .formats import FORMATS, Format, Maildir
from .selection import Entry

log = structlog.get_logger()

#: Messages between two pieces of the manifest.
RUN = 1_000
#: Reasons that are remembered.
REASONS = 100


class Damaged(Exception):
    """A message cannot be read, and the archive has no place to say so."""


@dataclass(slots=True)
class Written:
    """What has gone into an archive.

    Parameters:
      skipped: messages that were in the directory already.
      reasons: the first of those that could not be read: (message id, why).
    """

    messages: int = 0
    bytes: int = 0
    skipped: int = 0
    unreadable: int = 0
    reasons: list[tuple[int, str]] = field(default_factory=list)

    def leave_out(self, entry: Entry, reason: str) -> None:
        self.unreadable += 1
        if len(self.reasons) < REASONS:
            self.reasons.append((entry.id, reason))
        log.error("message left out of an archive", message=entry.id, reason=reason)


Progress = Callable[[Written], None]


def _silent(_: Written) -> None:
    """For who does not look."""


def stream(
    name: str, account_uuid: str, entries: Iterable[Entry], written: Written | None = None
) -> Iterator[bytes]:
    """A whole archive, piece by piece.

    Parameters:
      name: one of ``FORMATS``.
      written: counts what has gone into it.

    Raises:
      StoreUnavailable, DataKeyError: a store is away, or a key is missing; what came is a part.
      Damaged: a message is not readable, and the format cannot say so.
    """
    written = written or Written()
    archive, runs = FORMATS[name](), 0
    rest = iter(entries)
    with tempfile.SpooledTemporaryFile(1_000_000, dir=str(spool.directory())) as records:
        while (first := next(rest, None)) is not None:
            runs += 1
            run = chain([first], islice(rest, RUN - 1))
            yield from run_of(archive, account_uuid, run, runs, written)
            records.write(archive.take_records())
        records.seek(0)
        members = written.messages + runs
        yield from archive.end(iter(partial(records.read, CHUNK), b""), members)


def run_of(
    archive: Format,
    account_uuid: str,
    entries: Iterable[Entry],
    number: int,
    written: Written,
    *,
    strict: bool = True,
) -> Iterator[bytes]:
    """Some messages, and the piece of the manifest that is about them.

    Parameters:
      number: of the piece.
      strict: raise when a message is left out of a format that cannot say so.

    Raises:
      as ``stream``.
    """
    lines = bytearray()
    for entry in entries:
        with ExitStack() as files:
            content, error = _read(archive, entry, account_uuid, files)
            if error is None:
                for piece in archive.message(entry, content):
                    written.bytes += len(piece)
                    yield piece
                written.messages += 1
            elif strict and not archive.has_manifest:
                raise Damaged(f"message {entry.id}: {error}")
            else:
                written.leave_out(entry, error)
        lines += manifest.line(entry, None if error else archive.path(entry), error)
    for piece in archive.manifest(number, bytes(lines)):
        written.bytes += len(piece)
        yield piece


def _read(
    archive: Format, entry: Entry, account_uuid: str, files: ExitStack
) -> tuple[contents.Content, str | None]:
    """A message's bytes, and why they cannot be had."""
    if not archive.has_messages:
        return b"", None
    try:
        return contents.read(entry, account_uuid, files), None
    except (BlobMissing, BlobCorrupt) as fault:
        return b"", _reason(fault)


def _reason(fault: BlobMissing | BlobCorrupt) -> str:
    if isinstance(fault, BlobMissing):
        return "the stored bytes are missing"
    return "the stored bytes are not those that were stored"


def to_file(
    name: str,
    account_uuid: str,
    entries: Iterable[Entry],
    target: Path,
    progress: Progress = _silent,
) -> Written:
    """Write an archive to a file, which is there whole, or as it was before.

    The manifest of an mbox is written beside it, as ``<target>.manifest.jsonl``.

    Raises:
      StoreUnavailable, DataKeyError: as ``stream``.
      OSError: the file cannot be written.
    """
    written = Written()
    temporary = target.with_name(f"{target.name}.part")
    beside = target.with_name(f"{target.name}.manifest.jsonl")
    lines_temporary = beside.with_name(f"{beside.name}.part")
    archive = FORMATS[name]()
    try:
        with temporary.open("wb") as file, ExitStack() as stack:
            temporary.chmod(0o600)
            if archive.has_manifest:
                source = stream(name, account_uuid, entries, written)
            else:
                lines = stack.enter_context(lines_temporary.open("wb"))
                lines_temporary.chmod(0o600)
                source = _with_manifest(archive, account_uuid, entries, written, lines)
            for piece in source:
                file.write(piece)
                progress(written)
        if not archive.has_manifest:
            lines_temporary.rename(beside)
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        lines_temporary.unlink(missing_ok=True)
        raise
    return written


def _with_manifest(
    archive: Format,
    account_uuid: str,
    entries: Iterable[Entry],
    written: Written,
    lines: BinaryIO,
) -> Iterator[bytes]:
    """An archive that has no place for its manifest, whose lines go elsewhere."""
    for entry in entries:
        before = written.messages
        yield from run_of(archive, account_uuid, [entry], 1, written, strict=False)
        error = None if written.messages > before else written.reasons[-1][1]
        lines.write(manifest.line(entry, None, error))


def to_directory(
    account_uuid: str,
    entries: Iterable[Entry],
    target: Path,
    progress: Progress = _silent,
) -> Written:
    """Write a Maildir; what is there already, from a run that was ended, is left as it is.

    Raises:
      as ``to_file``.
    """
    written, archive = Written(), Maildir()
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    lines_path = target / "manifest.jsonl"
    temporary = target / "manifest.jsonl.part"
    with temporary.open("wb") as lines, closing(_There(target)) as there:
        for entry in entries:
            path, error = there.path(archive.path(entry)), None
            with ExitStack() as files:
                if contents.is_file_of(entry, target / path):
                    written.skipped += 1
                else:
                    content, error = _read(archive, entry, account_uuid, files)
                    if error is None:
                        maildir.write_file(target / path, content)
                        written.messages += 1
                        written.bytes += entry.size
                    else:
                        written.leave_out(entry, error)
            lines.write(manifest.line(entry, None if error else path, error))
            progress(written)
    temporary.rename(lines_path)
    return written


class _There:
    """The messages of a Maildir by their names without flags, which may have changed since."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read: set[str] = set()
        self._names = sqlite3.connect("")  # a private temporary file, which SQLite removes
        self._names.execute("CREATE TABLE names (name TEXT PRIMARY KEY, file TEXT) WITHOUT ROWID")

    def path(self, path: str) -> str:
        """Where a message is that would be written to ``path``; the same if it is not there."""
        directory, _, name = path.rpartition("/")
        if directory not in self._read:
            self._read.add(directory)
            self._look_into(directory)
        sought = f"{directory}/{maildir.unique_name(name)}"
        row = self._names.execute("SELECT file FROM names WHERE name = ?", (sought,)).fetchone()
        return f"{directory}/{row[0]}" if row else path

    def close(self) -> None:
        self._names.close()

    def _look_into(self, directory: str) -> None:
        with suppress(FileNotFoundError), os.scandir(self._root / directory) as found:
            self._names.executemany(
                "INSERT OR IGNORE INTO names VALUES (?, ?)",
                ((f"{directory}/{maildir.unique_name(one.name)}", one.name) for one in found),
            )
