"""What a blob store is."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol

from .blob import NewBlob
from .form import Form


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
    form: Form

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
