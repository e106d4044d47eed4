"""Blobs in a bucket of any S3-compatible server."""

import base64
import hashlib
import io
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple, Self
from urllib.parse import SplitResult, parse_qs, urlsplit
from xml.etree.ElementTree import ParseError

import structlog
import urllib3
from minio import Minio
from minio.credentials import Credentials
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error
from minio.signer import sign_v4_s3
from minio.time import to_amz_date, utcnow
from urllib3.exceptions import HTTPError, MaxRetryError, ReadTimeoutError

from .. import counters, faults, turns
from .blob import (
    BlobMissing,
    NewBlob,
    StoreUnavailable,
    check_account_uuid,
    is_account_uuid,
    split_key,
)
from .form import SMALL, Form
from .store import BlobStore, Listed

log = structlog.get_logger()

CONNECT_TIMEOUT = 3.0  # seconds; also the longest wait for one block to be sent
READ_TIMEOUT = 20.0  # seconds of silence
BLOCK = 64 * 1024  # bytes sent at a time
PUT_THREADS = 8  # a single put waits far more than it works
CONNECTIONS = 32  # kept open; more are made when needed
DELETE_ROUNDS = 10

#: SHA-256 of a body that is not there.
NO_CONTENT = hashlib.sha256().hexdigest()
#: How servers say that there is no such object.
MISSING = {"NoSuchKey", "NoSuchObject"}

# The ETag of an object under these kinds of encryption is not its MD5.
OPAQUE_ETAG = {"aws:kms", "aws:kms:dsse"}


class _Body(NamedTuple):
    """What is sent: its bytes, at their begin, and their size and digests."""

    content: BinaryIO
    size: int
    md5: bytes
    sha256: str


class _Place(NamedTuple):
    """Where the bucket's objects lie: the URL that their keys are added to, and its connections."""

    url: SplitResult
    region: str
    pool: urllib3.HTTPConnectionPool


def _temporary_directory() -> Path:
    return Path(tempfile.gettempdir())


class S3(BlobStore):
    """Objects named by their key. The bucket is made at first use if it is missing.

    A put is one request whatever its size, and never a multipart upload: nothing unfinished can be
    left behind. Its size must be known before it begins, so a large blob is compressed into a file
    without a name first, and memory stays flat. The signature covers the SHA-256 and a Content-MD5
    goes with it, so that the server checks the bytes; the ETag of its answer is compared too.

    In a bucket with versioning, deleted blobs live on as old versions: use one without.
    """

    def __init__(
        self,
        endpoint: str,
        access_key: str,
        secret_key: str,
        bucket: str,
        *,
        secure: bool,
        region: str | None = None,
        form: Form | None = None,
        scratch: Callable[[], Path] = _temporary_directory,
    ) -> None:
        """``endpoint`` is ``host`` or ``host:port``. Raises ValueError; connects to nothing.

        ``scratch`` names the directory for large blobs on their way.
        """
        self.form = form or Form()
        self._scratch = scratch
        self._credentials = Credentials(access_key, secret_key)
        self._bucket = bucket
        self._http = urllib3.PoolManager(
            maxsize=CONNECTIONS,
            blocksize=BLOCK,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
            retries=_Retries(
                total=1,
                redirect=False,
                allowed_methods=None,
                status_forcelist=[500, 502, 503, 504],
                raise_on_status=False,
                respect_retry_after_header=False,
                backoff_factor=0.2,
            ),
        )
        self._client = Minio(
            endpoint, access_key, secret_key, secure=secure, region=region, http_client=self._http
        )
        self._stranger = Minio(endpoint, secure=secure, region=region, http_client=self._http)
        self._putters = ThreadPoolExecutor(PUT_THREADS, thread_name_prefix="s3-put")
        self._known_place: _Place | None = None
        self._bucket_lock = Lock()
        self._failed_at = float("-inf")

    def put(self, blobs: Sequence[NewBlob]) -> None:
        submitted = time.monotonic()
        self._ensure_bucket()
        # If one fails, map cancels those that have not begun.
        for _ in self._putters.map(lambda blob: self._put_one(blob, submitted), blobs):
            pass

    def open_stored(self, key: str) -> BinaryIO:
        split_key(key)
        with _translated(key):
            response = self._request("GET", key, preload_content=False)
            if response.status != 200:
                code = _code(response)
                if code in MISSING:
                    raise BlobMissing(key)
                raise StoreUnavailable(f"object store: {code}")
        return io.BufferedReader(_Download(response, key), BLOCK)

    def exists(self, key: str) -> bool:
        split_key(key)
        self._ensure_bucket()
        try:
            with _translated(key):
                self._client.stat_object(self._bucket, key)
        except BlobMissing:
            self.check()  # a bucket that is gone gives the same answer
            return False
        return True

    def delete(self, keys: Iterable[str]) -> None:
        objects = [DeleteObject("/".join(split_key(key))) for key in keys]
        if not objects:
            return
        self._ensure_bucket()
        with _translated():
            for error in self._client.remove_objects(self._bucket, objects):
                raise StoreUnavailable(f"object store: delete refused: {error.code}")

    def delete_account(self, account_uuid: str) -> int:
        deleted = 0
        # Only an empty listing says that nothing is left.
        for _ in range(DELETE_ROUNDS):
            names = [found.key for found in self.list_account(account_uuid)]
            if not names:
                return deleted
            with _translated():
                for error in self._client.remove_objects(self._bucket, map(DeleteObject, names)):
                    raise StoreUnavailable(f"object store: delete refused: {error.code}")
            faults.point("objects-deleted")
            deleted += len(names)
        raise StoreUnavailable(f"object store: blobs of {account_uuid} appear while being deleted")

    def list_account(self, account_uuid: str) -> Iterator[Listed]:
        check_account_uuid(account_uuid)
        self._ensure_bucket()
        with _translated():
            for found in self._client.list_objects(
                self._bucket, prefix=f"{account_uuid}/", recursive=True
            ):
                yield Listed(found.object_name, found.last_modified, found.size)

    def accounts(self) -> Iterator[str]:
        self._ensure_bucket()
        with _translated():
            for found in self._client.list_objects(self._bucket):
                name = found.object_name.rstrip("/")
                if is_account_uuid(name):
                    yield name

    def check(self) -> None:
        self._ensure_bucket()  # one that a put would make is not missing
        with _translated():
            if not self._client.bucket_exists(self._bucket):
                raise StoreUnavailable("object store: the bucket does not exist")

    def _ensure_bucket(self) -> _Place:
        if self._known_place is not None:
            return self._known_place
        asked = time.monotonic()
        with self._bucket_lock:
            if self._known_place is not None:
                return self._known_place
            with self._failing_together(asked), _translated():
                if not self._client.bucket_exists(self._bucket):
                    self._make_bucket()
                place = self._known_place = self._locate()
        if self._is_public():
            log.warning("anyone can list the bucket: make it private", bucket=self._bucket)
        return place

    def _locate(self) -> _Place:
        """Where objects lie and in which region, as the client tells it of one."""
        presigned = urlsplit(self._client.get_presigned_url("PUT", self._bucket, "any"))
        region = parse_qs(presigned.query)["X-Amz-Credential"][0].split("/")[2]
        url = presigned._replace(path=presigned.path.removesuffix("any"), query="")
        return _Place(url, region, self._http.connection_from_url(url.geturl()))

    def _is_public(self) -> bool:
        """Whether the bucket is listed for who shows no key."""
        try:
            next(iter(self._stranger.list_objects(self._bucket)), None)
        except (MinioException, HTTPError, OSError, ValueError):
            return False
        return True

    def _make_bucket(self) -> None:
        try:
            self._client.make_bucket(self._bucket)
        except S3Error as error:
            # Another process was faster.
            if error.code not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                raise

    def _put_one(self, blob: NewBlob, submitted: float) -> None:
        with self._body(blob) as body, self._failing_together(submitted), _translated():
            self._upload(blob.key, body)

    @contextmanager
    def _body(self, blob: NewBlob) -> Iterator[_Body]:
        """The blob as it is to be stored: in memory, or in a file that nobody else sees."""
        md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
        with _translated():
            small = blob.size <= SMALL
            file = io.BytesIO() if small else tempfile.TemporaryFile(dir=self._scratch())  # noqa: SIM115
        with file:
            for piece in self.form.encode(blob):
                md5.update(piece)
                sha256.update(piece)
                size += len(piece)
                with _translated():
                    file.write(piece)
            file.seek(0)
            yield _Body(file, size, md5.digest(), sha256.hexdigest())

    @contextmanager
    def _failing_together(self, asked: float) -> Iterator[None]:
        """In an outage, what waited for its turn behind a time-out does not wait for its own."""
        if asked < self._failed_at:
            raise StoreUnavailable("object store: failed while this waited for its turn")
        try:
            yield
        except StoreUnavailable:
            self._failed_at = time.monotonic()
            raise

    def _upload(self, key: str, body: _Body) -> None:
        response = self._request("PUT", key, body)
        faults.point("put-sent")
        if response.status != 200:
            raise StoreUnavailable(f"object store: put refused: {_code(response)}")
        encryption = response.headers.get("x-amz-server-side-encryption", "")
        etag = response.headers.get("etag", "").strip('"')
        if etag != body.md5.hex() and encryption not in OPAQUE_ETAG:
            counters.add("checksum_mismatch")
            raise StoreUnavailable("object store: it has stored other bytes than were sent")

    def _request(
        self, method: str, key: str, body: _Body | None = None, *, preload_content: bool = True
    ) -> Any:
        """Put or get an object; the answer, of whatever status.

        The client itself would hold the whole body in memory, and takes twice as long. The
        signature goes into a header and not into the URL, which urllib3 logs when it retries.
        """
        place = self._ensure_bucket()
        url = place.url._replace(path=place.url.path + key)
        date = utcnow()
        digest = body.sha256 if body else NO_CONTENT
        headers = {
            "Host": url.netloc,
            "x-amz-content-sha256": digest,
            "x-amz-date": to_amz_date(date),
        }
        if body:
            headers |= {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(body.size),
                "Content-MD5": base64.b64encode(body.md5).decode(),
            }
        signed = sign_v4_s3(
            method=method,
            url=url,
            region=place.region,
            headers=headers,
            credentials=self._credentials,
            content_sha256=digest,
            date=date,
        )
        return place.pool.urlopen(
            method,
            url.path,
            body=body and body.content,
            headers=signed,
            preload_content=preload_content,
            redirect=False,
        )


def _code(response: Any) -> str:
    """What the server calls its refusal; the answer is read, and its connection given back."""
    code = re.search(rb"<Code>(\w+)</Code>", response.data)
    return code[1].decode() if code else f"HTTP {response.status}"


class _Retries(urllib3.Retry):
    """One more try, but not after a silence: that would make a black hole cost twice as much."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: Any = None,
        error: Exception | None = None,
        _pool: Any = None,
        _stacktrace: Any = None,
    ) -> Self:
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


class _Download(io.RawIOBase):
    """The body of an answer; gives its connection back when closed."""

    def __init__(self, response: Any, key: str) -> None:
        super().__init__()
        self._response = response
        self._key = key

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with turns.waiting(), _translated(self._key):
            chunk = self._response.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        # Read to its end it has given the connection back already; else the connection is closed,
        # because the rest of the body is on it.
        if not self.closed:
            self._response.close()
            self._response.release_conn()
        super().close()


@contextmanager
def _translated(key: str = "") -> Iterator[None]:
    """Turn what minio and urllib3 raise into BlobMissing and StoreUnavailable.

    Their own messages carry URLs and headers, so only the kind of failure is passed on.
    """
    try:
        yield
    except S3Error as error:
        if key and error.code in MISSING:
            raise BlobMissing(key) from None
        raise StoreUnavailable(f"object store: {error.code}") from None
    except MaxRetryError as error:
        raise StoreUnavailable(f"object store: {type(error.reason).__name__}") from None
    except (MinioException, HTTPError, OSError, ParseError, UnicodeDecodeError) as error:
        raise StoreUnavailable(f"object store: {type(error).__name__}") from None
