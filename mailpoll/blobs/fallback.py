"""Storage: what the rest of the program stores blobs with."""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from .. import faults, turns
from .blob import BlobMissing, NewBlob, StorageType, StoreUnavailable
from .circuit import Circuit
from .form import Form
from .local import LocalFiles
from .store import BlobStore, Listed

Answer = TypeVar("Answer")

_ENDPOINT = re.compile(r"[\w.-]+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?", re.ASCII)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_YES_OR_NO = {"1": True, "true": True, "0": False, "false": False}


class Storage:
    """The primary store and, if there is one, the local store that stands in for it.

    Args:
      primary: where blobs belong.
      primary_type: what rows say about blobs there.
      fallback: takes what an object store does not; None if local disk is not durable.
      circuit: guards an object store; not used for a local primary.
    """

    def __init__(
        self,
        primary: BlobStore,
        primary_type: StorageType,
        fallback: LocalFiles | None,
        circuit: Circuit | None = None,
    ) -> None:
        self.primary_type = primary_type
        self.has_object_store = primary_type is StorageType.OSS
        self.has_fallback = fallback is not None and self.has_object_store
        self._primary = primary
        self._fallback = fallback
        self._circuit = circuit or Circuit()

    @property
    def stores(self) -> dict[StorageType, BlobStore]:
        """Each store that is configured, by what rows call it, without fall-back or circuit."""
        found = {self.primary_type: self._primary}
        if self.has_fallback and self._fallback is not None:
            found[StorageType.LOCAL] = self._fallback
        return found

    @property
    def circuit_open(self) -> bool:
        """Whether the object store failed lately and is not asked for the time being."""
        return self.has_object_store and self._circuit.is_open

    def put(self, blobs: Sequence[NewBlob]) -> StorageType:
        """Store all and say where; returns when they are durable and verified.

        Raises StoreUnavailable if no store takes them, BlobCorrupt if one's source does not have
        the content that its key says. Either may leave some of them stored, which harms nobody.
        """
        if not blobs:
            return self.primary_type
        try:
            with self._asking_primary():
                self._primary.put(blobs)
        except StoreUnavailable:
            if self._fallback is None:
                raise
            self._fallback.put(blobs)
            faults.point("fell-back")
            return StorageType.LOCAL
        return self.primary_type

    def open(self, key: str, storage_type: StorageType) -> BinaryIO:
        """A stream, to be closed. Raises BlobMissing, BlobCorrupt or StoreUnavailable, at any read.

        A blob that is not where its row says may just have been moved to the object store.
        """
        try:
            return self._open(key, storage_type)
        except BlobMissing:
            if storage_type == self.primary_type or not self.has_object_store:
                raise
            return self._open(key, self.primary_type)

    def exists(self, key: str, storage_type: StorageType) -> bool:
        """Raises StoreUnavailable."""
        return self._ask(storage_type, lambda store: store.exists(key))

    def delete(self, keys: Iterable[str], storage_type: StorageType) -> None:
        """Idempotent. Raises StoreUnavailable."""
        self._ask(storage_type, lambda store: store.delete(keys))

    def delete_account(self, account_uuid: str) -> int:
        """Delete everything of an account in every store; return how many blobs.

        Raises StoreUnavailable, after it has deleted what it could; then call it again.
        """
        deleted = 0
        if self._fallback is not None:
            deleted += self._fallback.delete_account(account_uuid)
            faults.point("local-emptied")
        with self._asking_primary():
            return deleted + self._primary.delete_account(account_uuid)

    def list_account(
        self, account_uuid: str, storage_type: StorageType, limit: int
    ) -> list[Listed]:
        """Some blobs of an account in one store, at most ``limit``. Raises StoreUnavailable."""
        return self._ask(
            storage_type, lambda store: list(islice(store.list_account(account_uuid), limit))
        )

    def temporary_files(self, account_uuid: str) -> list[Path]:
        """Unfinished writes of an account on this machine."""
        local = [store for store in self.stores.values() if isinstance(store, LocalFiles)]
        return [path for store in local for path in store.temporary_files(account_uuid)]

    def check(self) -> None:
        """Return if the primary store would take blobs now; else raise StoreUnavailable."""
        with self._asking_primary():
            self._primary.check()

    def move_to_primary(self, key: str, size: int, sha256: str) -> bool:
        """Copy a blob of the local stand-in to the object store, verified.

        The local copy stays for the caller to delete; ``open`` finds the blob where it is.

        Returns:
          True when the object store has the blob; False when it cannot take it now.

        Raises BlobMissing if neither store has it and BlobCorrupt if the local copy is damaged.
        """
        if self._fallback is None or not self.has_object_store:
            return False
        local = self._fallback
        try:
            with self._asking_primary():
                # Read and written anew, and not as it is: the setting of encryption may be newer.
                self._primary.put([NewBlob(key, size, sha256, lambda: local.open(key))])
        except StoreUnavailable:
            return False
        except BlobMissing:
            # Another run was faster: it removes a copy only when the object store has the blob.
            if not self.exists(key, self.primary_type):
                raise
        return True

    def _open(self, key: str, storage_type: StorageType) -> BinaryIO:
        """Reading is outside of the circuit: one blob that cannot be read does not open it."""
        form, stored = self._ask(storage_type, lambda store: (store.form, store.open_stored(key)))
        return form.decode(key, stored)

    @contextmanager
    def _asking_primary(self) -> Iterator[None]:
        if self.has_object_store:
            with turns.waiting(), self._circuit.guard():
                yield
        else:
            yield

    def _ask(self, storage_type: StorageType, question: Callable[[BlobStore], Answer]) -> Answer:
        if storage_type == self.primary_type:
            with self._asking_primary():
                return question(self._primary)
        if storage_type == StorageType.LOCAL and self._fallback is not None:
            return question(self._fallback)
        # Not "missing": where the configuration names that store, the blob is to be had.
        raise StoreUnavailable(f"no store of type {storage_type} is configured here")


def storage_from_url(
    url: str,
    fallback_dir: Path | None,
    form: Form | None = None,
    scratch: Callable[[], Path] = lambda: Path(tempfile.gettempdir()),
) -> Storage:
    """The storage that a URL describes; nothing is connected to yet.

    Args:
      url: ``file:///abs/dir`` or ``s3://ACCESS:SECRET@host:port/bucket?secure=0&region=x``, with
        percent-encoded credentials; ``secure`` (TLS) is 1 unless said otherwise.
      fallback_dir: where blobs go while the object store is away; None to have no such place.
      form: in which both keep them.
      scratch: names the directory for large blobs on their way to an object store.

    Raises ValueError, with a message that never shows the secret.
    """
    form = form or Form()
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # The parser's own message may quote the secret.
        raise ValueError("not a URL; are the credentials percent-encoded?") from None
    if parts.scheme == "file":
        return Storage(_local_from(parts, form), StorageType.LOCAL, None)
    if parts.scheme == "s3":
        fallback = None if fallback_dir is None else _local_files(fallback_dir, form)
        return Storage(_s3_from(parts, form, scratch), StorageType.OSS, fallback)
    raise ValueError("must begin with file:/// or s3://")


def _local_from(parts: SplitResult, form: Form) -> LocalFiles:
    directory = Path(unquote(parts.path))
    if parts.netloc or not directory.is_absolute() or directory == Path("/"):
        raise ValueError("file: takes an absolute directory, as in file:///var/lib/mailpoll")
    return _local_files(directory, form)


def _local_files(directory: Path, form: Form) -> LocalFiles:
    try:
        return LocalFiles(directory, form)
    except OSError as error:
        raise ValueError(f"cannot use directory {directory}: {error.strerror}") from error


def _s3_from(parts: SplitResult, form: Form, scratch: Callable[[], Path]) -> BlobStore:
    # A sixth of what each process needs to start, which those with files only need not pay.
    from .s3 import S3

    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    secure = _YES_OR_NO.get(options.pop("secure", "1"))
    region = options.pop("region", None) or None
    bucket = parts.path.strip("/")
    endpoint = parts.netloc.rpartition("@")[2]
    if not (parts.username and parts.password and _ENDPOINT.fullmatch(endpoint)):
        raise ValueError("s3: needs credentials and a host: s3://ACCESS:SECRET@host:port/bucket")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError("s3: the path must be the name of a bucket")
    if secure is None:
        raise ValueError("s3: secure must be 1 or 0")
    if options:
        raise ValueError("s3: knows only the options secure and region")
    access_key, secret_key = unquote(parts.username), unquote(parts.password)
    try:
        return S3(
            endpoint,
            access_key,
            secret_key,
            bucket,
            secure=secure,
            region=region,
            form=form,
            scratch=scratch,
        )
    except ValueError as error:
        raise ValueError(f"s3: {error}") from None
