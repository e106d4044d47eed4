"""What a ``winmail.dat`` holds (TNEF, [MS-OXTNEF]): the files in it, subject and text.

One pass over bounded bytes; lengths are believed only as far as there are bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from .charsets import storable
from .names import safe_name

MAX_BYTES = 25_000_000
MAX_FILES, MAX_PROPERTIES, MAX_TEXT = 500, 10_000, 1_000_000
SIGNATURE = 0x223E9F78

_SUBJECT, _BODY, _RENDER, _TITLE, _DATA = 0x8004, 0x800C, 0x9002, 0x8010, 0x800F
_MESSAGE_PROPERTIES, _FILE_PROPERTIES, _CODE_PAGE = 0x9003, 0x9005, 0x9007
#: Bytes of values by type ([MS-OXCDATA] 2.11.1), as they lie here: never less than four.
_SIZES = dict.fromkeys((0x2, 0x3, 0x4, 0xA, 0xB), 4) | {0x48: 16}
_SIZES |= dict.fromkeys((0x5, 0x6, 0x7, 0x14, 0x40), 8)
_VARIABLE = {0x1E, 0x1F, 0x102, 0xD}
_UNICODE, _MANY = 0x1F, 0x1000
_LONG_NAME, _SHORT_NAME, _FILE_BYTES, _TYPE = 0x3707, 0x3704, 0x3701, 0x370E
_PROP_SUBJECT, _PROP_BODY, _PROP_HTML = 0x37, 0x1000, 0x1013


class NotTnef(Exception):
    """It is none."""


@dataclass(slots=True)
class File:
    """A file in it, as named there; ``safe_name`` can be shown and saved under."""

    name: str = ""
    safe_name: str = ""
    content_type: str = ""
    content: bytes = field(default=b"", repr=False)


@dataclass(slots=True)
class Tnef:
    """``complete`` is false when it is cut, or has more than is read."""

    subject: str = ""
    text: str = ""
    html: str = ""
    files: list[File] = field(default_factory=list)
    complete: bool = True


def read_tnef(data: bytes) -> Tnef:
    """What of it is understood.

    Raises:
      NotTnef: it does not begin as one.
    """
    if len(data) < 6 or struct.unpack_from("<I", data)[0] != SIGNATURE:
        raise NotTnef
    return _Reader(data[:MAX_BYTES], complete=len(data) <= MAX_BYTES).read()


class _Reader:
    def __init__(self, data: bytes, *, complete: bool) -> None:
        self._data = data
        self._charset = "cp1252"
        self._found = Tnef(complete=complete)
        self._properties = 0

    def read(self) -> Tnef:
        place = 6
        while place + 9 <= len(self._data):
            _, attribute, length = struct.unpack_from("<BII", self._data, place)
            start, end = place + 9, place + 9 + length
            if end > len(self._data):
                self._found.complete = False
                break
            self._attribute(attribute & 0xFFFF, self._data[start:end])
            place = end + 2  # a checksum, which other programs do not look at either
        for file in self._found.files:
            file.name = storable(file.name)
            file.safe_name = safe_name(file.name, file.content_type)
        return self._found

    def _attribute(self, number: int, value: bytes) -> None:
        found, files = self._found, self._found.files
        if number == _CODE_PAGE and len(value) >= 4:
            self._charset = f"cp{struct.unpack_from('<I', value)[0]}"
        elif number == _SUBJECT:
            found.subject = found.subject or self._text(value)
        elif number == _BODY:
            found.text = found.text or self._text(value)
        elif number == _MESSAGE_PROPERTIES:
            self._message(value)
        elif number == _RENDER:
            if len(files) == MAX_FILES:
                found.complete = False
            files.append(File())
            del files[MAX_FILES:]
        elif not files:
            return
        elif number == _TITLE:
            files[-1].name = files[-1].name or self._text(value)
        elif number == _DATA:
            files[-1].content = value
        elif number == _FILE_PROPERTIES:
            self._file(files[-1], value)

    def _message(self, value: bytes) -> None:
        properties = self._read_properties(value)
        found = self._found
        if _PROP_SUBJECT in properties:
            found.subject = self._string(properties[_PROP_SUBJECT]) or found.subject
        if _PROP_BODY in properties:
            found.text = found.text or self._string(properties[_PROP_BODY])
        if _PROP_HTML in properties:
            found.html = self._string(properties[_PROP_HTML])

    def _file(self, file: File, value: bytes) -> None:
        properties = self._read_properties(value)
        for name in (_LONG_NAME, _SHORT_NAME):
            if name in properties:
                file.name = self._string(properties[name])
                break
        if _TYPE in properties:
            file.content_type = storable(self._string(properties[_TYPE]).lower()[:200])
        if not file.content and _FILE_BYTES in properties:
            file.content = properties[_FILE_BYTES][1]

    def _string(self, value: tuple[int, bytes]) -> str:
        kind, raw = value
        if kind == _UNICODE:
            return storable(raw[:MAX_TEXT].decode("utf-16-le", "replace").rstrip("\0"))
        return self._text(raw)

    def _text(self, raw: bytes) -> str:
        raw = raw[:MAX_TEXT].rstrip(b"\0")
        try:
            return storable(raw.decode(self._charset, "replace"))
        except LookupError:
            return storable(raw.decode("cp1252", "replace"))

    def _read_properties(self, value: bytes) -> dict[int, tuple[int, bytes]]:
        """The first value of each property: its type and bytes."""
        found: dict[int, tuple[int, bytes]] = {}
        if len(value) < 4:
            return found
        place = 4
        try:
            for _ in range(struct.unpack_from("<I", value)[0]):
                self._properties += 1
                if self._properties > MAX_PROPERTIES:
                    self._found.complete = False
                    break
                kind, name, place = _name(value, place)
                raw, place = _value(value, place, kind)
                found.setdefault(name, (kind & ~_MANY, raw))
        except struct.error:
            self._found.complete = False
        return found


def _name(value: bytes, place: int) -> tuple[int, int, int]:
    """Type and number of a property, and where its value begins."""
    kind, name = struct.unpack_from("<HH", value, place)
    place += 4
    if name >= 0x8000:  # a named one: none of those that are looked for
        (by_name,) = struct.unpack_from("<I", value, place + 16)
        (length,) = struct.unpack_from("<I", value, place + 20)
        place += 24 + (length + (-length % 4) if by_name else 0)
    return kind, name, place


def _value(value: bytes, place: int, kind: int) -> tuple[bytes, int]:
    """The first bytes of a value, and where the next property begins. Raises struct.error."""
    plain, count = kind & ~_MANY, 1
    if plain in _VARIABLE or kind & _MANY:
        (count,) = struct.unpack_from("<I", value, place)
        place += 4
    if plain not in _VARIABLE and plain not in _SIZES:
        raise struct.error
    first = b""
    if plain in _SIZES:
        size = _SIZES[plain]
        first, place = value[place : place + size], place + size * count
        if place > len(value):
            raise struct.error
        return first, place
    for number in range(count):
        (length,) = struct.unpack_from("<I", value, place)
        if place + 4 + length > len(value):
            raise struct.error
        if number == 0:
            first = value[place + 4 : place + 4 + length]
        place += 4 + length + (-length % 4)
    return first, place
