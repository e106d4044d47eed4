"""What a blob is, how it is named, and what can be wrong with it or with its store."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from .. import counters

CHUNK = 1 << 18  # bytes read at a time

_ACCOUNT = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_ACCOUNT_UUID = re.compile(_ACCOUNT)
_KEY = re.compile(rf"({_ACCOUNT})/([0-9a-f]{{2}})/(\2[0-9a-f]{{62}})")


class StorageType(StrEnum):
    """Where a blob lies; the value stands on every row that points at one."""

    OSS = "oss"
    LOCAL = "local"


class BlobMissing(Exception):
    """The store answered, and it has no blob under this key."""


class StoreUnavailable(Exception):
    """The store cannot do it now: away, refusing, full. Nothing can be said about the blobs."""

    def __init__(self, message: str, retry_after: float = 30.0) -> None:
        """``retry_after``: seconds after which it makes sense to try again."""
        super().__init__(message)
        self.retry_after = retry_after


class BlobCorrupt(Exception):
    """Bytes are not what their key says; trying again will not help."""


@dataclass(frozen=True, slots=True)
class NewBlob:
    """A blob to be stored.

    ``size`` is in bytes, ``sha256`` in lower-case hex: that of ``source``, if that is bytes. A Path
    names a spooled file: it is read, and neither moved nor deleted. A function opens a stream.
    """

    key: str
    size: int
    sha256: str
    source: bytes | Path | Callable[[], BinaryIO]

    def pieces(self) -> Iterator[bytes]:
        """All bytes in turn. Raises BlobCorrupt at the end if they are wrong.

        A spooled file may have changed since it was hashed, and is hashed again. Bytes cannot.
        """
        if isinstance(self.source, bytes):
            size, sha256 = len(self.source), self.sha256
            yield self.source
        else:
            digest, size = hashlib.sha256(), 0
            with self._open() as source:
                while piece := source.read(CHUNK):
                    digest.update(piece)
                    size += len(piece)
                    yield piece
            sha256 = digest.hexdigest()
        named = split_key(self.key)[2]
        if size != self.size or not sha256 == self.sha256 == named:
            counters.add("checksum_mismatch")
            raise BlobCorrupt(f"{self.key}: {size} bytes with SHA-256 {sha256}")

    def _open(self) -> BinaryIO:
        assert not isinstance(self.source, bytes)
        return self.source.open("rb") if isinstance(self.source, Path) else self.source()


def blob_key(account_uuid: str, sha256: str) -> str:
    """``<account_uuid>/<first two hex digits>/<sha256>``: nothing in it is chosen by a sender."""
    key = f"{account_uuid}/{sha256[:2]}/{sha256}"
    split_key(key)
    return key


def split_key(key: str) -> tuple[str, str, str]:
    """Account, two hex digits and SHA-256 of a key. Raises ValueError if it is none."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"not a blob key: {key!r}")
    return match[1], match[2], match[3]


def is_account_uuid(name: str) -> bool:
    """Whether it is a UUID in its usual lower-case form."""
    return _ACCOUNT_UUID.fullmatch(name) is not None


def check_account_uuid(account_uuid: str) -> None:
    """Raises ValueError unless it is a UUID in its usual lower-case form."""
    if not is_account_uuid(account_uuid):
        raise ValueError(f"not an account UUID: {account_uuid!r}")
