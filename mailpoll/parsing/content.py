"""The bytes of a part: where they lie, and how their transfer encoding is undone.

Nothing here ever refuses a part. Mail with stray characters in its base64 is common and every
mail program shows it, so what does not belong is dropped (RFC 2045 6.8).
"""

from __future__ import annotations

import binascii
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CHUNK = 64 * 1024

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_BASE64 = bytes(set(range(256)) - set(_BASE64 + b"="))
_PADDING = re.compile(rb"=+")
# The look-behind gives a run of blanks only one place to start from: linear on megabytes of them.
_TRAILING_BLANKS = re.compile(rb"(?<![ \t])[ \t]++(?=\r?\n|\Z)")
_TOKEN = re.compile(r"[a-z0-9_-]+")


def open_source(source: Path | bytes) -> BinaryIO:
    """Return a binary file to read `source` from."""
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


def transfer_encoding(value: str) -> str:
    """Return the token of a Content-Transfer-Encoding field, without the junk around it."""
    found = _TOKEN.search(value.lower())
    return found.group() if found else ""


@dataclass(frozen=True, slots=True)
class Content:
    """A range of a message, in memory or on disk, and the encoding it is in.

    Parameters:
      source: the file, or the bytes, the range is of.
      start, end: the range in bytes.
      encoding: ``base64`` and ``quoted-printable`` are undone; anything else is given as it is.
    """

    source: Path | bytes
    start: int
    end: int
    encoding: str = ""

    @classmethod
    def of(cls, data: bytes) -> Content:
        """Return the content that is `data` itself, decoded already."""
        return cls(data, 0, len(data))

    def chunks(self) -> Iterator[bytes]:
        """Yield the decoded bytes, at most `CHUNK` at a time.

        Raises:
          OSError: the file is gone or unreadable.
        """
        decode = _DECODERS.get(self.encoding)
        return decode(self._encoded()) if decode else self._encoded()

    def read(self) -> bytes:
        """Return all decoded bytes at once."""
        if not self.encoding and isinstance(self.source, bytes):
            return self.source[self.start : self.end]
        return b"".join(self.chunks())

    def _encoded(self) -> Iterator[bytes]:
        with open_source(self.source) as file:
            file.seek(self.start)
            left = self.end - self.start
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk


def _base64(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decode base64 with any line length, any stray bytes and padding anywhere."""
    rest = b""
    for chunk in chunks:
        segments = _PADDING.split(rest + chunk.translate(None, _NOT_BASE64))
        # A segment that padding follows is complete; the last one may go on in the next chunk.
        for segment in segments[:-1]:
            yield _base64_end(segment)
        whole = len(segments[-1]) & ~3
        rest = segments[-1][whole:]
        yield binascii.a2b_base64(segments[-1][:whole])
    yield _base64_end(rest)


def _base64_end(segment: bytes) -> bytes:
    odd = len(segment) % 4
    if odd == 1:  # six bits are no byte
        segment, odd = segment[:-1], 0
    return binascii.a2b_base64(segment + b"=" * (-odd % 4))


def _quoted_printable(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        data = rest + chunk
        cut = data.rfind(b"\n") + 1 or _between_escapes(data)
        rest = data[cut:]
        yield from _slices(_unquote(data[:cut]))
    yield _unquote(rest)


def _between_escapes(data: bytes) -> int:
    """Return where a line without an end can be cut: not in ``=XX``, not in trailing blanks."""
    cut = len(data.rstrip(b" \t\r"))
    escape = data.rfind(b"=", max(cut - 2, 0), cut)
    return (escape if escape >= 0 else cut) or len(data)


def _unquote(data: bytes) -> bytes:
    return binascii.a2b_qp(_TRAILING_BLANKS.sub(b"", data))


def _slices(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


_DECODERS: dict[str, Callable[[Iterator[bytes]], Iterator[bytes]]] = {
    "base64": _base64,
    "quoted-printable": _quoted_printable,
}
