"""What a blob store is, and how a blob is named."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from .. import counters

if TYPE_CHECKING:
    from .form import Form

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


@dataclass(frozen=True, slots=True)
class Listed:
    """A blob as a store lists it.

    ``modified_at`` is aware, by the store's clock; ``size`` is in bytes, as it lies there.
    """

    key: str
    modified_at: datetime
    size: int


class BlobStore(Protocol):
    """Verbs that every store has. All raise StoreUnavailable; keys that are none, ValueError."""

    #: In which it keeps blobs.
    form: "Form"

    def put(self, blobs: Sequence[NewBlob]) -> None:
        """Return only when all are durable and verified; a failed put may have stored some.

        Idempotent. Raises BlobCorrupt when a source does not have the content that its key says.
        """

    def open(self, key: str) -> BinaryIO:
        """A stream of the bytes, to be closed by the caller.

        Raises BlobMissing, and BlobCorrupt, at any read too: its last bytes are given out only when
        all of them are what the key says.
        """
        return self.form.decode(key, self.open_stored(key))

    def open_stored(self, key: str) -> BinaryIO:
        """A stream of what the store holds, in the form in which it is held. Raises BlobMissing."""

    def exists(self, key: str) -> bool: ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete what there is of these; a missing blob is fine."""

    def delete_account(self, account_uuid: str) -> int:
        """Delete everything of an account, unfinished writes too; return how many blobs.

        It may be called again at any time, also after it failed half way.
        """

    def list_account(self, account_uuid: str) -> Iterator[Listed]:
        """The blobs of an account, one by one, in no certain order."""

    def accounts(self) -> Iterator[str]:
        """The UUIDs of the accounts that have anything here."""

    def check(self) -> None:
        """Return if the store would take blobs now; cheap enough for a readiness probe."""


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
