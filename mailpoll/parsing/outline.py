"""A message reduced to what its structure and its texts need.

Large files, nested messages and hostile structures are not given to a parser. One pass over the
lines, in constant memory, writes a small message of the same structure: every big leaf, every
nested message and everything beyond a cap is left out and remembered as a range of the source.
What was left out is marked by a header field under a random name, which no sender can forge.
Each multipart gets a boundary of its own, because senders use one for several, or one that begins
like another, or write it so that parsers differ about it.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .classify import is_body
from .content import CHUNK, Content, open_source, transfer_encoding
from .headers import Section, media_type, parameters, read_section

MAX_PARTS = 1_000
MAX_DEPTH = 50
MAX_SECTION = 4 * 1024 * 1024  # bytes of one header section that are looked at
MAX_LEAF = 256 * 1024  # bytes of a leaf that is kept though it is no text
MAX_LEAVES = 8 * 1024 * 1024  # bytes of all such leaves together
MAX_TEXT = 8 * 1024 * 1024  # bytes of all texts together; more become attachments
_MAX_STRUCTURE_VALUE = 16 * 1024  # of the fields the parsers take parameters from
_LF = 10
_SPECIAL = re.compile(rb"\r?\n|--")  # lines that matter to a header section
_BEFORE_SPECIAL = re.compile(rb"\n(?=\r?\n|--)")
_STRUCTURE = {"content-type", "content-disposition", "content-transfer-encoding", "content-id"}


@dataclass(slots=True)
class Outline:
    """A reduced message.

    Parameters:
      message: the reduced message, with the fields of its parts unfolded and capped.
      marker: lower-case name of the field that marks a left-out leaf; its value is a key of cuts.
      cuts: what was left out.
      head: the header section of the source.
      defects: the caps that were reached.
    """

    message: bytes
    marker: str
    cuts: dict[str, Content]
    head: Section
    defects: list[str]


@dataclass(slots=True)
class _Leaf:
    """A body while its end is not yet seen.

    Parameters:
      start: where it starts in the source.
      written: where it starts in the output, its empty line included.
      limit: how many bytes may be kept; -1 to leave it out from the start.
      container: level of the multipart whose preamble this is, or -1.
      cut: it was over its limit, nothing of it is kept.
    """

    start: int
    written: int
    encoding: str
    limit: int
    is_text: bool
    container: int
    cut: bool


@dataclass(frozen=True, slots=True)
class _Container:
    """An open multipart.

    Parameters:
      boundary, written: its boundary in the source and in the output.
    """

    kind: str
    boundary: bytes
    written: bytes


@dataclass(slots=True)
class _Scan:
    """The state of the pass: the output so far and the boundaries that are open."""

    source: Path | bytes
    max_leaf: int
    marker: str = field(default_factory=lambda: f"x-outline-{secrets.token_hex(16)}")
    out: bytearray = field(default_factory=bytearray)
    cuts: dict[str, Content] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    head: Section | None = None
    stack: list[_Container] = field(default_factory=list)  # the open multiparts
    containers: int = 0
    levels: dict[bytes, int] = field(default_factory=dict)  # by boundary; the innermost of a kind
    mark: bytes = b"--"  # what all their lines begin with
    section: bytearray | None = field(default_factory=bytearray)  # while inside a header section
    section_start: int = 0
    leaf: _Leaf | None = None
    parts: int = 1
    text_room: int = MAX_TEXT
    leaf_room: int = MAX_LEAVES
    line_end: int = 0  # bytes of the line end before the line being looked at

    def run(self) -> Outline:
        end = 0
        for at, line, fresh in self._pieces():
            end = at + len(line)
            if fresh and line.startswith(b"--") and self.levels:
                mark = self._boundary(line)
                if mark is not None:
                    if not self._cross(at, line, *mark):
                        break
                    continue
            self._take(at, line, fresh)
            self.line_end = line.endswith(b"\n") + line.endswith(b"\r\n")
        else:
            self._end_section(end)
            self._end_leaf(end)
        assert self.head is not None
        return Outline(
            bytes(self.out), self.marker, self.cuts, self.head, list(dict.fromkeys(self.defects))
        )

    def _pieces(self) -> Iterator[tuple[int, bytes, bool]]:
        """Yield (offset, piece, whether it starts a line).

        A piece is a line that may matter, or what lies before the next one: at most two `CHUNK`.
        """
        at, position, data, fresh, ended = 0, 0, b"", True, False
        with open_source(self.source) as file:
            while True:
                if len(data) - position < CHUNK and not ended:
                    more = file.read(CHUNK)
                    data, position, ended = data[position:] + more, 0, not more
                if position == len(data):
                    return
                end = self._piece_end(data, position, fresh)
                if at == 0 and data.startswith((b"From ", b">From ")):  # mbox
                    end = self.section_start = data.find(b"\n") + 1 or end
                else:
                    yield at, data[position:end], fresh
                at, position, fresh = at + end - position, end, data[end - 1] == _LF

    def _piece_end(self, data: bytes, start: int, fresh: bool) -> int:
        in_section = self.section is not None
        special = _SPECIAL.match(data, start) if in_section else data.startswith(self.mark, start)
        if fresh and special:
            return data.find(b"\n", start) + 1 or len(data)
        if in_section:
            found = _BEFORE_SPECIAL.search(data, start)
            end = found.end() if found else 0
        elif self.levels:
            end = data.find(b"\n" + self.mark, start) + 1
        else:
            return len(data)
        # Without one, up to the last line end: the line after it may matter. Without any, not
        # between the two bytes of a line end.
        split = data.endswith(b"\r") and len(data) - start > 1
        return end or data.rfind(b"\n", start) + 1 or len(data) - split

    def _boundary(self, line: bytes) -> tuple[int, bool] | None:
        """Return (level, whether it closes) if the line is an open boundary (RFC 2046 5.1.1)."""
        mark = line[2:].rstrip()
        level = self.levels.get(mark)
        if level is not None:
            return level, False
        level = self.levels.get(mark[:-2]) if mark.endswith(b"--") else None
        return None if level is None else (level, True)

    def _cross(self, at: int, line: bytes, level: int, closes: bool) -> bool:
        """Go over a boundary line; return whether there is more to read."""
        self._end_section(at)
        self._end_leaf(at - self.line_end, level)
        self._close(level if closes else level + 1)
        if closes:
            return bool(self.stack)
        self.out += b"--" + self.stack[level].written + b"\r\n"
        if self.parts == MAX_PARTS:
            self._cut_rest(at + len(line))
            return False
        self.parts += 1
        self.line_end = 0
        self.section, self.section_start = bytearray(), at + len(line)
        return True

    def _close(self, height: int) -> None:
        """Close the multiparts above `height`, whether or not the source does."""
        while len(self.stack) > height:
            self.out += b"--" + self.stack.pop().written + b"--\r\n"
        self._index()

    def _index(self) -> None:
        self.levels = {each.boundary: level for level, each in enumerate(self.stack)}
        self.mark = b"--" + (os.path.commonprefix(list(self.levels)) or b"")  # noqa: RUF071

    def _cut_rest(self, start: int) -> None:
        with open_source(self.source) as file:
            end = file.seek(0, 2)
        self.defects.append("too-many-parts")
        self.out += b"Content-Type: application/octet-stream\r\n"
        self._cut(Content(self.source, start, end))

    def _take(self, at: int, line: bytes, fresh: bool) -> None:
        if self.section is None:
            self._add(line)
        elif fresh and line in {b"\n", b"\r\n"}:
            self.section += line
            self._end_section(at + len(line))
        elif len(self.section) < MAX_SECTION:
            self.section += line
        elif "header-cut" not in self.defects:
            self.defects.append("header-cut")

    def _end_section(self, end: int) -> None:
        """Read the header section that ends here, and open the body it announces."""
        if self.section is None:
            return
        data, self.section = bytes(self.section), None
        head = read_section(data)
        if self.head is None:
            self.head = head
        self.defects += head.defects
        beyond = end - self.section_start > len(data)  # over MAX_SECTION: there is no early body
        start = end if beyond else self.section_start + head.body
        self._open(head, start)
        if not beyond and head.body < len(data):
            self._add(data[head.body :])

    def _open(self, head: Section, start: int) -> None:
        container = self.stack[-1].kind if self.stack else ""
        default = "message/rfc822" if container == "multipart/digest" else "text/plain"
        kind = media_type(head.get("content-type"), default)
        encoding = transfer_encoding(head.get("content-transfer-encoding"))
        limit, is_text, level = min(self.max_leaf, self.leaf_room), False, -1
        if kind.startswith("multipart/"):
            encoding = ""  # RFC 2045 6.4: a multipart is never encoded as a whole
            limit, level = self._open_container(head, kind)
            is_text = limit >= 0
        elif kind.startswith("message/"):
            limit = -1
        elif self._is_text(head, kind, container):
            limit, is_text = self.text_room, True
        self._write(head, kind, self.stack[level].written if level >= 0 else b"")
        self.leaf = _Leaf(start, len(self.out), encoding, limit, is_text, level, limit < 0)
        self.out += b"\r\n"

    def _open_container(self, head: Section, kind: str) -> tuple[int, int]:
        """Open a multipart; return the limit and the level of its preamble.

        What comes before the first boundary is kept until one is seen: if none ever is, it was
        the text.
        """
        boundary = parameters(head.get("content-type")).get("boundary", "").rstrip().encode()
        if not boundary:
            return self.text_room, -1
        if len(self.stack) == MAX_DEPTH:
            self.defects.append("too-deep")
            return -1, -1
        self.containers += 1
        written = f"{self.containers}-{self.marker}".encode()
        self.stack.append(_Container(kind, boundary, written))
        self._index()
        return self.text_room, len(self.stack) - 1

    @staticmethod
    def _is_text(head: Section, kind: str, container: str) -> bool:
        disposition = head.get("content-disposition")
        token = disposition.partition(";")[0].strip().lower()
        name = parameters(disposition).get("filename", "")
        name = name or parameters(head.get("content-type")).get("name", "")
        return is_body(kind, token, name, container)

    def _write(self, head: Section, kind: str, boundary: bytes) -> None:
        """Write the fields that make the structure; the others are read from `head` alone."""
        if boundary:
            self.out += f"Content-Type: {kind}; boundary=".encode() + boundary + b"\r\n"
        elif not head.get("content-type") and kind != "text/plain":
            self.out += f"Content-Type: {kind}\r\n".encode()
        for name, value in head.fields:
            if name.lower() in _STRUCTURE and not (boundary and name.lower() == "content-type"):
                self.out += f"{name}: {self._capped(value)}\r\n".encode("utf-8", "replace")

    def _capped(self, value: str) -> str:
        if len(value) <= _MAX_STRUCTURE_VALUE:
            return value
        self.defects.append("too-many-parameters")
        return value[:_MAX_STRUCTURE_VALUE]

    def _add(self, data: bytes) -> None:
        leaf = self.leaf
        if leaf is None or leaf.cut:
            return
        self.out += data
        if len(self.out) - leaf.written > leaf.limit + 2:
            leaf.cut = True
            del self.out[leaf.written :]

    def _end_leaf(self, end: int, level: int = -1) -> None:
        """Finish the body that ends at `end`, before a boundary of `level` unless it is -1."""
        leaf, self.leaf = self.leaf, None
        if leaf is None:
            return
        if level >= 0 and leaf.container == level:  # the preamble is nobody's text
            del self.out[leaf.written :]
            self.out += b"\r\n"
        elif leaf.cut:
            if leaf.is_text:
                self.defects.append("text-too-large")
            del self.out[leaf.written :]
            self._cut(Content(self.source, leaf.start, max(leaf.start, end), leaf.encoding))
        elif leaf.is_text:
            self.text_room -= len(self.out) - leaf.written
        else:
            self.leaf_room -= len(self.out) - leaf.written

    def _cut(self, content: Content) -> None:
        key = str(len(self.cuts))
        self.cuts[key] = content
        self.out += f"{self.marker}: {key}\r\n\r\n\r\n".encode()


def outline(source: Path | bytes, max_leaf: int = MAX_LEAF) -> Outline:
    """Reduce the message in `source`, whatever its size, keeping leaves up to `max_leaf` bytes.

    Raises:
      OSError: the file cannot be read.
    """
    return _Scan(source, max_leaf).run()
