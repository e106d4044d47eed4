"""The manifest of an archive: a line of JSON for each message, which says what its bytes are."""

import re
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
from imapclient import imap_utf7

from ..imap import flags
from .contents import Readable
from .selection import Entry

#: The manifest itself, or one of its pieces.
NAME = re.compile(r"manifest(?:-[0-9]{1,9})?\.jsonl")
#: Bytes of a line that is read; an honest one has some hundred.
LINE = 1_000_000
#: Folders of one message, and characters of a name, that are believed.
FOLDERS, NAME_LENGTH = 1_000, 1_000
SHA256 = re.compile(r"[0-9a-f]{64}")
YEARS = range(1970, 9_999)


def line(entry: Entry, path: str | None, error: str | None = None) -> bytes:
    """What an archive says of one message.

    Parameters:
      path: where it is in the archive.
      error: why it is not.
    """
    found: dict[str, Any] = {
        "sha256": entry.sha256,
        "size": entry.size,
        "internal_date": entry.internal_date.astimezone(UTC).isoformat(),
        "folders": entry.folders,
        "id": entry.id,
        "path": path,
    }
    found |= {
        name: words
        for name, words in (("flags", entry.flags), ("labels", entry.labels))
        if words is not None
    }
    if error is not None:
        found["error"] = error
    return orjson.dumps(found) + b"\n"


def piece_name(number: int) -> str:
    return f"manifest-{number:05}.jsonl"


class Manifest:
    """What manifests say of contents, by their SHA-256; on disk when there are many lines."""

    def __init__(self) -> None:
        self._file = sqlite3.connect("")  # a private temporary file, which SQLite removes
        self._file.execute(
            "CREATE TABLE lines (sha256 TEXT PRIMARY KEY, date TEXT, folders TEXT, flags TEXT, "
            "labels TEXT) WITHOUT ROWID"
        )

    def read(self, stream: Readable) -> None:
        """Take what can be believed; lines that say nothing sensible are passed over."""
        while text := stream.readline(LINE):
            found = _believed(text)
            if found is not None:
                self._file.execute("INSERT OR IGNORE INTO lines VALUES (?, ?, ?, ?, ?)", found)

    def __contains__(self, sha256: str) -> bool:
        return self._row(sha256) is not None

    def date(self, sha256: str) -> datetime | None:
        """When the message arrived."""
        row = self._row(sha256)
        return datetime.fromisoformat(row[1]) if row and row[1] else None

    def folders(self, sha256: str) -> list[str]:
        """Where it lay."""
        row = self._row(sha256)
        return list(orjson.loads(row[2])) if row else []

    def flags(self, sha256: str) -> tuple[str, ...] | None:
        """Its flags, as IMAP spells them; ``None``: they are not told."""
        return self._words(sha256, 3)

    def labels(self, sha256: str) -> tuple[str, ...] | None:
        """Gmail's labels; ``None``: they are not told."""
        return self._words(sha256, 4)

    def _words(self, sha256: str, column: int) -> tuple[str, ...] | None:
        row = self._row(sha256)
        return tuple(orjson.loads(row[column])) if row and row[column] else None

    def close(self) -> None:
        self._file.close()

    def _row(self, sha256: str) -> Any:
        query = "SELECT * FROM lines WHERE sha256 = ?"
        return self._file.execute(query, (sha256,)).fetchone()


def _believed(text: bytes) -> tuple[str, str | None, str, str | None, str | None] | None:
    try:
        found = orjson.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    sha256, folders = found.get("sha256"), found.get("folders")
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        return None
    names = folders if isinstance(folders, list) else []
    names = [one for one in names[:FOLDERS] if isinstance(one, str) and is_folder(one)]
    marks = (
        _words(found.get("flags"), flags.flags, str.encode),
        _words(found.get("labels"), flags.labels, imap_utf7.encode),
    )
    return sha256, _date(found.get("internal_date")), orjson.dumps(names).decode(), *marks


def _words(
    value: object,
    kept: Callable[[list[bytes]], tuple[str, ...] | None],
    encode: Callable[[str], bytes],
) -> str | None:
    """Flags, or labels, as if a server had told them; ``None`` for what is no list."""
    if not isinstance(value, list):
        return None
    words = kept([encode(word) for word in value if isinstance(word, str) and word.isprintable()])
    return orjson.dumps(words).decode()


def is_folder(name: str) -> bool:
    """Whether a folder may have this name."""
    return 0 < len(name) <= NAME_LENGTH and name.isprintable()


def _date(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return moment.isoformat() if moment.year in YEARS else None
