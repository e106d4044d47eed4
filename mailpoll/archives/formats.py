"""What each format makes of messages: streams of bytes that can be cut and continued."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from ..parsing.names import safe_name
from . import maildir, manifest, mbox
from .contents import Content
from .selection import Entry
from .zips import ZipWriter

#: When a member that is no message was written: the same archive is the same bytes.
EPOCH = datetime(1980, 1, 1, tzinfo=UTC)


class Format(ABC):
    """A format, and how far one archive of it is.

    Parameters:
      offset: bytes that were written before.
    """

    name = ""
    media_type = ""
    suffix = ""
    #: Whether it needs their bytes.
    has_messages = True
    #: Whether a directory stands at its end, of which each part has some records.
    has_directory = False
    #: Whether pieces of the manifest are in it.
    has_manifest = True

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    @abstractmethod
    def path(self, entry: Entry) -> str | None:
        """Where a message is in the archive; ``None``: it has no name of its own."""

    @abstractmethod
    def message(self, entry: Entry, content: Content) -> Iterator[bytes]:
        """A message as it stands in the archive."""

    @abstractmethod
    def manifest(self, number: int, lines: bytes) -> Iterator[bytes]:
        """A piece of the manifest, behind the messages that it is about."""

    def take_records(self) -> bytes:
        return b""

    def end(self, records: Iterable[bytes], members: int) -> Iterator[bytes]:  # noqa: ARG002
        yield from ()


class Mbox(Format):
    name, media_type, suffix = "mbox", "application/mbox", ".mbox"
    has_manifest = False

    def path(self, entry: Entry) -> None:  # noqa: ARG002
        return None

    def message(self, entry: Entry, content: Content) -> Iterator[bytes]:
        yield from mbox.message(entry, content)

    def manifest(self, number: int, lines: bytes) -> Iterator[bytes]:  # noqa: ARG002
        yield from ()


class ManifestAlone(Format):
    """The manifest, of messages that are not there: for an mbox, which has no place for it."""

    name, media_type, suffix = "manifest", "application/jsonl", ".jsonl"
    has_messages = False

    def path(self, entry: Entry) -> None:  # noqa: ARG002
        return None

    def message(self, entry: Entry, content: Content) -> Iterator[bytes]:  # noqa: ARG002
        yield from ()

    def manifest(self, number: int, lines: bytes) -> Iterator[bytes]:  # noqa: ARG002
        yield lines


class Zip(Format):
    name, media_type, suffix = "zip", "application/zip", ".zip"
    has_directory = True

    def __init__(self, offset: int = 0) -> None:
        super().__init__(offset)
        self._writer = ZipWriter(offset)

    def path(self, entry: Entry) -> str:
        folder = entry.folders[0] if entry.folders else "Mail"
        levels = [safe_name(level, "") for level in folder.split("/")[:20] if level]
        when = entry.internal_date.astimezone(UTC)
        return "/".join([*levels, f"{when:%Y%m%dT%H%M%S}-{entry.id}.eml"])

    def message(self, entry: Entry, content: Content) -> Iterator[bytes]:
        yield from self._writer.member(self.path(entry), entry.internal_date, content)

    def manifest(self, number: int, lines: bytes) -> Iterator[bytes]:
        yield from self._writer.member(manifest.piece_name(number), EPOCH, lines)

    def take_records(self) -> bytes:
        return self._writer.take_records()

    def end(self, records: Iterable[bytes], members: int) -> Iterator[bytes]:
        yield from self._writer.end(records, members)


class Maildir(Format):
    name, media_type, suffix = "maildir", "application/x-tar", ".tar"

    def __init__(self, offset: int = 0) -> None:
        super().__init__(offset)
        self._writer = maildir.TarWriter()

    def path(self, entry: Entry) -> str:
        directory = self.directory(entry)
        return "/".join([*([directory] if directory else []), "cur", maildir.file_name(entry)])

    @staticmethod
    def directory(entry: Entry) -> str:
        return maildir.directory_of(entry.folders[0] if entry.folders else None)

    def message(self, entry: Entry, content: Content) -> Iterator[bytes]:
        when = entry.internal_date
        yield from self._writer.directory(self.directory(entry), when)
        yield from self._writer.member(self.path(entry), when, content, entry.size)

    def manifest(self, number: int, lines: bytes) -> Iterator[bytes]:
        name = manifest.piece_name(number)
        yield from self._writer.member(name, EPOCH, lines, len(lines))

    def end(self, records: Iterable[bytes], members: int) -> Iterator[bytes]:  # noqa: ARG002
        yield from self._writer.end()


FORMATS: dict[str, type[Format]] = {one.name: one for one in (Mbox, Zip, Maildir, ManifestAlone)}
