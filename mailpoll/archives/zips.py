"""Zip archives (APPNOTE 6.3.10), written as a stream and read from a file, in flat memory.

The writer can be stopped between two members and go on elsewhere, which no library's can: all that
it needs is how far the archive is. Records of the directory, which stands at a zip's end, are
handed out as they come and given back for the end.
"""

import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO

from .. import spool
from .contents import CHUNK, Content, pieces

LOCAL, CENTRAL, END, END64, LOCATOR = (
    b"PK\x03\x04",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
)
UTF8, ENCRYPTED = 0x800, 0x1
STORED, DEFLATED = 0, 8
#: What says that the number is in the 64-bit field.
WIDE, WIDE_COUNT = 0xFFFFFFFF, 0xFFFF
#: "Unix", so that the permissions count; of a plain file, readable by its owner.
MADE_BY, REGULAR = (3 << 8) | 45, 0o100600 << 16
FILE_TYPE, SYMLINK, REGULAR_TYPE = 0o170000, 0o120000, 0o100000
#: Bytes of a name or of extra fields, by the format.
LONGEST = 65_535


class ZipWriter:
    """The bytes of an archive, member by member.

    Parameters:
      offset: bytes that were written before.
    """

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self._records = bytearray()

    def member(self, name: str, when: datetime, content: Content) -> Iterator[bytes]:
        crc, size = 0, 0
        deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
        # Sizes stand before the bytes: not every reader takes them from behind.
        with tempfile.SpooledTemporaryFile(1_000_000, dir=str(spool.directory())) as packed:
            for piece in pieces(content):
                crc = zlib.crc32(piece, crc)
                size += len(piece)
                packed.write(deflater.compress(piece))
            packed.write(deflater.flush())
            length, method = packed.tell(), DEFLATED
            packed.seek(0)
            if length >= size:
                length, method = size, STORED
            head, record = _headers(name, when, method, crc, size, length, self.offset)
            self._records += record
            self.offset += len(head) + length
            yield head
            if method == STORED:
                yield from pieces(content)
                return
            while piece := packed.read(CHUNK):
                yield piece

    def take_records(self) -> bytes:
        """The directory's records of the members since this was asked last."""
        records, self._records = bytes(self._records), bytearray()
        return records

    def end(self, records: Iterable[bytes], members: int) -> Iterator[bytes]:
        """The directory and its end.

        Parameters:
          records: all that were taken, in order.
          members: how many there are.
        """
        length = 0
        for piece in records:
            length += len(piece)
            yield piece
        start, count = self.offset, members
        self.offset += length
        if count >= WIDE_COUNT or start >= WIDE or length >= WIDE:
            wide = struct.pack("<QHHIIQQQQ", 44, MADE_BY, 45, 0, 0, count, count, length, start)
            yield END64 + wide + LOCATOR + struct.pack("<IQI", 0, self.offset, 1)
        narrow = (min(count, WIDE_COUNT), min(count, WIDE_COUNT), min(length, WIDE))
        yield END + struct.pack("<HHHHIIH", 0, 0, *narrow, min(start, WIDE), 0)


def _headers(
    name: str, when: datetime, method: int, crc: int, size: int, length: int, offset: int
) -> tuple[bytes, bytes]:
    """What stands before a member, and its record of the directory."""
    raw_name = name.encode()
    big = size >= WIDE or length >= WIDE
    sizes = (WIDE, WIDE) if big else (length, size)
    extra = struct.pack("<HHQQ", 1, 16, size, length) if big else b""
    needed = 45 if big or offset >= WIDE else 20
    common = struct.pack("<HHHHHI", needed, UTF8, method, *_dos_time(when), crc)
    head = LOCAL + common + struct.pack("<IIHH", *sizes, len(raw_name), len(extra))
    wide = (struct.pack("<QQ", size, length) if big else b"") + (
        struct.pack("<Q", offset) if offset >= WIDE else b""
    )
    more = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
    record = (
        CENTRAL
        + struct.pack("<H", MADE_BY)
        + common
        + struct.pack("<IIHHH", *sizes, len(raw_name), len(more), 0)
        + struct.pack("<HHII", 0, 0, REGULAR, min(offset, WIDE))
    )
    return head + raw_name + extra, record + raw_name + more


def _dos_time(when: datetime) -> tuple[int, int]:
    moment = when.astimezone(UTC)
    year = min(max(moment.year, 1980), 2107)
    clock = moment.hour << 11 | moment.minute << 5 | moment.second // 2
    return clock, (year - 1980) << 9 | moment.month << 5 | moment.day


class BadZip(Exception):
    """Not a zip that can be read; its text says why."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member as the directory tells of it; ``offset`` is where its own header begins."""

    name: str
    size: int
    length: int
    crc: int
    method: int
    flags: int
    mode: int
    offset: int

    @property
    def encrypted(self) -> bool:
        return bool(self.flags & ENCRYPTED)

    @property
    def is_directory(self) -> bool:
        return self.name.endswith("/")

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link, or anything else that is no plain file."""
        return self.mode & FILE_TYPE not in (0, REGULAR_TYPE) and not self.is_directory


class ZipReader:
    """Reads members of a file that anyone may have made.

    Raises:
      BadZip: it is no zip, a part of one, or its members overlap.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        self._count, self._length, self._start = self._find_directory()

    def members(self) -> Iterator[Member]:
        """All members, read one after the other from the directory.

        Raises:
          BadZip: the directory is damaged; nothing can be said of what comes behind.
        """
        place, end, packed = self._start, self._start + self._length, 0
        for _ in range(self._count):
            self._file.seek(place)
            record = self._exactly(46)
            if record[:4] != CENTRAL or place + 46 > end:
                raise BadZip("its directory is damaged")
            (flags, method, _, _, crc, length, size, names, extras, comments) = struct.unpack(
                "<HHHHIIIHHH", record[8:34]
            )
            attributes, offset = struct.unpack("<II", record[38:46])
            name, extra = self._exactly(names), self._exactly(extras)
            size, length, offset = _widened(extra, size, length, offset)
            # Members that share their bytes would unpack to any size (CWE-409).
            packed += 30 + length
            if packed > self._size or offset + 30 + length > self._size:
                raise BadZip("its members overlap, or lie outside of it")
            mode = attributes >> 16
            yield Member(_text(name, flags), size, length, crc, method, flags, mode, offset)
            place += 46 + names + extras + comments

    def content(self, member: Member) -> Iterator[bytes]:
        """A member's bytes, unpacked as far as they are taken.

        Raises:
          BadZip: it is damaged, or packed in a way that is not known; at any piece.
        """
        if member.method not in (STORED, DEFLATED):
            raise BadZip(f"packed by a method that is not known ({member.method})")
        self._file.seek(member.offset)
        head = self._exactly(30)
        if head[:4] != LOCAL:
            raise BadZip("damaged: it has no header")
        place = member.offset + 30 + sum(struct.unpack("<HH", head[26:30]))
        crc, size = 0, 0
        packed = self._packed(place, member.length)
        for piece in packed if member.method == STORED else _inflated(packed):
            crc = zlib.crc32(piece, crc)
            size += len(piece)
            yield piece
        if (crc, size) != (member.crc, member.size):
            raise BadZip("damaged: its checksum is wrong")

    def _packed(self, place: int, length: int) -> Iterator[bytes]:
        while length > 0:
            self._file.seek(place)  # others may read from the file meanwhile
            piece = self._exactly(min(length, CHUNK))
            place, length = place + len(piece), length - len(piece)
            yield piece

    def _exactly(self, size: int) -> bytes:
        found = self._file.read(size)
        if len(found) < size:
            raise BadZip("it ends too soon")
        return found

    def _find_directory(self) -> tuple[int, int, int]:
        """Number of members, length and begin of the directory."""
        window = min(self._size, 22 + LONGEST)
        self._file.seek(self._size - window)
        tail = self._exactly(window)
        place = tail.rfind(END)
        if place < 0 or place + 22 > len(tail):
            raise BadZip("no zip, or only the begin of one: its directory is missing")
        disk, _, _, count, length, start, _ = struct.unpack(
            "<HHHHIIH", tail[place + 4 : place + 22]
        )
        if disk not in (0, WIDE_COUNT):
            raise BadZip("one of several parts")
        if count == WIDE_COUNT or WIDE in (length, start):
            count, length, start = self._wide(self._size - window + place, (count, length, start))
        if start + length > self._size:
            raise BadZip("damaged: its directory lies outside of it")
        return count, length, start

    def _wide(self, end: int, narrow: tuple[int, int, int]) -> tuple[int, int, int]:
        if end < 20:
            return narrow
        self._file.seek(end - 20)
        locator = self._exactly(20)
        if locator[:4] != LOCATOR:
            return narrow
        (place,) = struct.unpack("<Q", locator[8:16])
        if place + 56 > self._size:
            raise BadZip("damaged: its directory lies outside of it")
        self._file.seek(place)
        record = self._exactly(56)
        if record[:4] != END64:
            raise BadZip("its directory is damaged")
        count, length, start = struct.unpack("<QQQ", record[32:56])
        return count, length, start


def _widened(extra: bytes, size: int, length: int, offset: int) -> tuple[int, int, int]:
    """The numbers of a record, those that are too large for it from its extra field."""
    values = [size, length, offset]
    while len(extra) >= 4:
        kind, many = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + many], extra[4 + many :]
        if kind != 1:
            continue
        for place, value in enumerate(values):
            if value == WIDE and len(field) >= 8:
                (values[place],) = struct.unpack("<Q", field[:8])
                field = field[8:]
    return values[0], values[1], values[2]


def _text(name: bytes, flags: int) -> str:
    text = name.decode("utf-8" if flags & UTF8 else "cp437", "replace")
    return text.replace("\\", "/")


def _inflated(packed: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces of a bounded size, whatever a few bytes unpack to."""
    inflater = zlib.decompressobj(-15)
    try:
        for piece in packed:
            data = piece
            while data and not inflater.eof:
                found = inflater.decompress(data, CHUNK)
                data = inflater.unconsumed_tail
                if found:
                    yield found
        while not inflater.eof:
            found = inflater.decompress(b"", CHUNK)
            if not found:
                raise BadZip("damaged: it ends too soon")
            yield found
    except zlib.error as error:
        raise BadZip(f"damaged: {error}") from None
