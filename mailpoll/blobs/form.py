"""The form in which stores keep a blob: a zstd frame, sealed with its account's data key if wanted.

A sealed blob is ``SEALED``, a random salt, and the frame in segments, each encrypted and
authenticated (AES-256-GCM, the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizar): the
nonce counts the segments and marks the last, the key is derived for this blob alone (HKDF), and the
associated data is the blob's own key. So a blob that was cut, put together anew, or copied to
another name does not open.
"""

import hashlib
import io
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, BinaryIO, Generic, TypeVar

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .blob import CHUNK, BlobCorrupt, NewBlob, split_key

Codec = TypeVar("Codec")

#: How a sealed blob begins; the last byte is the version of all that follows. No frame begins so.
SEALED = b"mpseal\x00\x01"
SALT_BYTES = 16
SEGMENT = 64 * 1024
TAG_BYTES = 16
KEY_BYTES = 32
#: Blobs of up to so many bytes are read as a whole.
SMALL = 1 << 20
#: Bytes of content up to which a compressor is used again, and how many are kept for that.
REUSED, KEPT = 32 * 1024, 4
#: The level that costs an import least: see docs/decisions/0024.
LEVEL = 1
#: An empty frame, which says nothing. Behind a frame that lost its end, it stands where the
#: checksum should be, and does not fit: a streaming decompressor alone would not notice.
END = struct.pack("<II", 0x184D2A50, 0)


def _no_keys(account_uuid: str) -> bytes:
    raise LookupError(f"no data keys are configured, and {account_uuid} needs one")


class Form:
    """Turns blobs into their stored bytes and back. Safe to share between threads.

    Args:
      level: of the compression, from -7 (fast) to 19 (small).
      data_key: an account's data key, 32 bytes, by the account's UUID. What it raises, ``encode``
        and ``decode`` raise too.
      encrypt: seal what is written from now on. What is read tells by itself whether it is sealed.
    """

    def __init__(
        self,
        level: int = LEVEL,
        data_key: Callable[[str], bytes] = _no_keys,
        *,
        encrypt: bool = False,
    ) -> None:
        self._level = level
        self._data_key = data_key
        self._encrypt = encrypt
        self._compressors = _Idle(partial(_compressor, level))
        self._decompressors = _Idle(zstandard.ZstdDecompressor)

    def encode(self, blob: NewBlob) -> Iterator[bytes]:
        """The bytes to be stored, piece by piece.

        Raises BlobCorrupt, at the latest at the end, if the source is not what the key says.
        """
        pieces = self._compressed(blob)
        return self._sealed(blob.key, pieces) if self._encrypt else pieces

    def decode(self, key: str, stored: BinaryIO) -> BinaryIO:
        """A stream of the plain bytes; it owns ``stored``, the stream of what was stored.

        Raises BlobCorrupt, at any read too: the last bytes are given out only when all of them are
        what the key says.
        """
        try:
            return self._decode(key, stored)
        except BaseException:
            stored.close()
            raise

    def _compressed(self, blob: NewBlob) -> Iterator[bytes]:
        if isinstance(blob.source, bytes):
            (content,) = blob.pieces()
            yield self._frame(content)
            return
        try:
            stream = _compressor(self._level).compressobj(size=blob.size)
            for piece in blob.pieces():
                yield stream.compress(piece)
            yield stream.flush()
        except zstandard.ZstdError as error:  # it has become longer than it was
            raise BlobCorrupt(f"{blob.key}: {error}") from None

    def _frame(self, content: bytes) -> bytes:
        if len(content) > REUSED:
            return _compressor(self._level).compress(content)
        with self._compressors.one() as compressor:
            return compressor.compress(content)

    def _sealed(self, key: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
        salt = os.urandom(SALT_BYTES)
        cipher = self._cipher(key, salt)
        yield SEALED + salt
        for number, (segment, last) in enumerate(_segments(pieces, SEGMENT)):
            yield cipher.encrypt(_nonce(number, last), segment, key.encode())

    def _opened(self, key: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The frame within a sealed blob, or the blob itself if it is one."""
        head = next(pieces, b"")
        if not head.startswith(SEALED):
            yield from chain([head], pieces)
            return
        begin = len(SEALED) + SALT_BYTES
        cipher = self._cipher(key, head[len(SEALED) : begin])
        sealed = _segments(chain([head[begin:]], pieces), SEGMENT + TAG_BYTES)
        for number, (segment, last) in enumerate(sealed):
            try:
                yield cipher.decrypt(_nonce(number, last), segment, key.encode())
            except InvalidTag:
                raise BlobCorrupt(f"{key}: not what was encrypted under this key") from None

    def _cipher(self, key: str, salt: bytes) -> AESGCM:
        """For this blob alone: random nonces under one key would not do for millions of blobs."""
        data_key = self._data_key(split_key(key)[0])
        own = HKDF(SHA256(), KEY_BYTES, salt, info=SEALED + key.encode())
        return AESGCM(own.derive(data_key))

    def _decode(self, key: str, stored: BinaryIO) -> BinaryIO:
        head = stored.read(SMALL)
        if len(head) < SMALL:
            frame = b"".join(self._opened(key, iter([head])))
            if 0 < _content_size(key, frame) <= SMALL:
                content = b"".join(_verified(key, self._whole(key, frame)))
                stored.close()
                return io.BytesIO(content)
            pieces = iter([frame])
        else:
            rest = iter(partial(stored.read, CHUNK), b"")
            pieces = self._opened(key, chain([head], rest))
        return io.BufferedReader(_Plain(_verified(key, _inflated(key, pieces)), stored), CHUNK)

    def _whole(self, key: str, frame: bytes) -> Iterator[bytes]:
        try:
            with self._decompressors.one() as decompressor:
                content = decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise BlobCorrupt(f"{key}: {error}") from None
        yield content


class _Idle(Generic[Codec]):
    """Codecs that nobody uses just now: making one takes longer than compressing a short message.

    Shared by all threads, and few: a compressor keeps 0.3 MB after 32 kB, and 1.4 MB after a large
    message, so that memory would grow until every one has met a large message.
    """

    def __init__(self, make: Callable[[], Codec]) -> None:
        self._make = make
        self._idle: list[Codec] = []

    @contextmanager
    def one(self) -> Iterator[Codec]:
        try:
            codec = self._idle.pop()
        except IndexError:
            codec = self._make()
        yield codec
        if len(self._idle) < KEPT:
            self._idle.append(codec)  # not what has failed


def _compressor(level: int) -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level, write_checksum=True, write_content_size=True)


def _content_size(key: str, frame: bytes) -> int:
    """Bytes that a frame says it holds; not positive when it holds none or does not say."""
    try:
        return zstandard.frame_content_size(frame)
    except zstandard.ZstdError as error:
        raise BlobCorrupt(f"{key}: {error}") from None


def _nonce(number: int, last: bool) -> bytes:
    return struct.pack(">7xI?", number, last)


def _segments(pieces: Iterable[bytes], size: int) -> Iterator[tuple[bytes, bool]]:
    """Runs of ``size`` bytes, and whether one is the last, which may be shorter."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) > size:
            yield bytes(memoryview(buffer)[:size]), False
            del buffer[:size]
    yield bytes(buffer), True


def _inflated(key: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress in pieces of a bounded size, whatever the content makes of a few bytes."""
    source: Any = _Source(pieces)
    frames = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
    try:
        while piece := frames.read(CHUNK):
            yield piece
    except zstandard.ZstdError as error:
        raise BlobCorrupt(f"{key}: {error}") from None


class _Source:
    """Pieces of a frame as a decompressor reads them."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = chain(filter(None, pieces), [END])

    def read(self, size: int) -> bytes:  # noqa: ARG002 - any number of bytes will do
        return next(self._pieces, b"")


def _verified(key: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same pieces; the last one only when all together are what the key says."""
    digest = hashlib.sha256()
    held = b""
    for piece in pieces:
        digest.update(piece)
        if held:
            yield held
        held = piece
    if digest.hexdigest() != split_key(key)[2]:
        raise BlobCorrupt(f"{key}: its bytes have SHA-256 {digest.hexdigest()}")
    yield held


class _Plain(io.RawIOBase):
    """Pieces as a stream; closes what they come from."""

    def __init__(self, pieces: Iterator[bytes], stored: BinaryIO) -> None:
        super().__init__()
        self._pieces = pieces
        self._stored = stored
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._stored.close()
        super().close()
