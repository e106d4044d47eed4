"""Bytes of one message: in memory, or in a spooled file when there are many of them."""

import hashlib
import io
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Protocol

from .. import runtime, spool
from ..blobs import StorageType
from .selection import Entry

CHUNK = 1 << 18  # bytes read at a time
#: Messages up to this many bytes are kept in memory.
IN_MEMORY = 1_000_000

Content = bytes | Path


class Readable(Protocol):
    """A file that is read once, from its begin to its end."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self, size: int, /) -> bytes: ...


def read(entry: Entry, account_uuid: str, files: ExitStack) -> Content:
    """A stored message, read to its end and found to be what was stored.

    Parameters:
      files: keeps the file of a large message.

    Raises:
      BlobMissing, BlobCorrupt: it is not there, or not what was stored.
      StoreUnavailable, DataKeyError: nothing can be said about it now.
    """
    with runtime.storage().open(entry.storage_key, StorageType(entry.storage_type)) as stream:
        if entry.size <= IN_MEMORY:
            return stream.read()
        directory = files.enter_context(spool.new_directory(account_uuid))
        path = Path(directory) / "raw"
        with path.open("wb") as file:
            shutil.copyfileobj(stream, file, CHUNK)
        return path


def is_file_of(entry: Entry, path: Path) -> bool:
    """Whether a plain file has the message's bytes."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    except OSError:
        return False


def opened(content: Content) -> BinaryIO:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)


def pieces(content: Content) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece


class Collector:
    """Takes the bytes of one message as they come, up to a limit.

    Parameters:
      account_uuid: names the file of a large message, so that it goes with the account.
      limit: bytes; what comes beyond is counted and dropped.
    """

    def __init__(self, account_uuid: str, limit: int) -> None:
        self.size = 0
        self._uuid = account_uuid
        self._limit = limit
        self._digest = hashlib.sha256()
        self._memory = bytearray()
        self._file: BinaryIO | None = None
        self._path: Path | None = None

    @property
    def too_large(self) -> bool:
        return self.size > self._limit

    def write(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.too_large:
            self.discard()
            return
        self._digest.update(piece)
        if self._file is None and self.size > IN_MEMORY:
            self._path = spool.new_file(self._uuid)
            self._file = self._path.open("wb")
            self._file.write(self._memory)
            self._memory = bytearray()
        if self._file is None:
            self._memory += piece
        else:
            self._file.write(piece)

    def sha256(self, more: bytes = b"") -> str:
        """Of what has come, and of some bytes more."""
        digest = self._digest.copy()
        digest.update(more)
        return digest.hexdigest()

    def finish(self) -> Content:
        """What has come; a file is the caller's to remove."""
        if self._file is None or self._path is None:
            return bytes(self._memory)
        self._file.close()
        return self._path

    def discard(self) -> None:
        """Drop what has come, but not its number."""
        self._memory = bytearray()
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


def collected(stream: Readable, account_uuid: str, limit: int) -> Collector:
    """What a stream has, read no further than a byte beyond the limit."""
    collector = Collector(account_uuid, limit)
    try:
        while not collector.too_large and (piece := stream.read(CHUNK)):
            collector.write(piece)
    except BaseException:
        collector.discard()
        raise
    return collector


def remove(content: Content | None) -> None:
    """Remove the file of a large message."""
    if isinstance(content, Path):
        content.unlink(missing_ok=True)
