"""The first parser: fast-mail-parser (Rust), for what it reads without loss.

It reads the structure and undoes transfer encodings; which part is what, fields and charsets are
decided here. Where its answer may differ from the message, None sends the message to the second
parser.
"""

from __future__ import annotations

import binascii
import re
from functools import cached_property
from typing import TYPE_CHECKING

import fast_mail_parser

from .classify import Part
from .content import Content, transfer_encoding
from .headers import media_type, parameters
from .outline import MAX_DEPTH, MAX_PARTS

if TYPE_CHECKING:
    from fast_mail_parser import PyMimePart

    from .outline import Outline

_CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([^\s\"';]+)", re.IGNORECASE)
_BOUNDARY = re.compile(r";\s*boundary\s*=\s*(?:\"([^\"\\]+)\"|([^\s\";(]+))", re.IGNORECASE)
_PLAIN_ENCODINGS = {"", "7bit", "8bit", "binary", "base64", "quoted-printable"}
# Signs that a name was cut or read in the wrong charset: an encoded word left as it was, a
# character that did not fit, a C1 control.
_DOUBTFUL = re.compile('=\\?|[\ufffd\x80-\x9f"]')


#: Bytes of all lines that may be boundaries: each multipart looks for its own among them.
MAX_BOUNDARIES = 1024 * 1024
#: Bytes by which the end of a content is found in the message.
TAIL = 20


class _Doubt(Exception):
    """The answer may not be what the message says."""


def read(message: bytes, outlined: Outline | None = None) -> Part | None:
    """Return the tree of `message`, or None when the second parser had better read it.

    Parameters:
      outlined: where `message` comes from if it is a reduced one.
    """
    try:
        root = fast_mail_parser.parse_email_tree(message)
    except fast_mail_parser.ParseError:
        return None
    try:
        return _Reader(message, outlined).part(root, 0)
    except _Doubt:
        return None


class _Reader:
    def __init__(self, message: bytes, outlined: Outline | None) -> None:
        self.message = message
        self.marker = outlined.marker if outlined else ""
        self.cuts = outlined.cuts if outlined else {}
        self.parts = 0

    @cached_property
    def boundaries(self) -> bytes:
        """Whatever may be a boundary, a line each; of a reduced message only what is one."""
        marker = rb"\d+-" + self.marker.encode() if self.marker else b""
        found = b"\n".join(re.findall(b"--" + marker + rb"[^\r\n]*", self.message))
        if len(found) > MAX_BOUNDARIES:
            raise _Doubt
        return found

    @cached_property
    def soft_ends(self) -> set[bytes]:
        """The last bytes of all that ends in what may be a soft line break, before a boundary."""
        found = set()
        for end in (b"=\r\n--", b"=\r\n\r\n--"):
            at = self.message.find(end)
            while at >= 0:
                found.add(self._before(at))
                if len(found) > MAX_PARTS:
                    raise _Doubt
                at = self.message.find(end, at + len(end))
        whole = len(self.message.rstrip(b"\r\n"))
        if self.message.endswith(b"=", 0, whole):
            found.add(self._before(whole - 1))
        return found

    def _before(self, at: int) -> bytes:
        """The end of the line that a soft line break goes on, as it is when it is decoded."""
        start = max(self.message.rfind(b"\n", 0, at) + 1, at - 3 * TAIL - 2)
        return binascii.a2b_qp(self.message[start:at])[-TAIL:]

    @cached_property
    def has_bare_lf(self) -> bool:
        return self.message.count(b"\n") != self.message.count(b"\r\n")

    def part(self, node: PyMimePart, depth: int) -> Part:
        self.parts += 1
        if self.parts > MAX_PARTS + MAX_DEPTH + 1:
            raise _Doubt
        fields = {name.lower(): values[0] for name, values in node.headers.items()}
        type_field = fields.get("content-type", "")
        part = Part(
            media_type(type_field, node.content_type if "/" in node.content_type else "text/plain"),
            disposition=(node.disposition or "").strip().lower(),
            name=self._name(node, type_field, fields),
            content_id=node.content_id or "",
        )
        if self.marker and self.marker in fields:
            part.cut, part.content = True, self.cuts[fields[self.marker]]
        elif part.content_type.startswith("multipart/"):
            self._descend(part, node, type_field, depth)
        else:
            self._leaf(part, node, type_field, fields)
        return part

    @staticmethod
    def _name(node: PyMimePart, type_field: str, fields: dict[str, str]) -> str:
        """Return the file name, which the library decodes before it splits the parameters."""
        disposition = fields.get("content-disposition", "")
        if "name" not in (disposition + type_field).lower():
            return ""
        name = parameters(disposition).get("filename", "") or parameters(type_field).get("name", "")
        if name != node.filename or _DOUBTFUL.search(name) or "\ufffd" in type_field:
            raise _Doubt
        if (disposition + type_field).count('"') % 2:
            raise _Doubt
        return name

    def _leaf(self, part: Part, node: PyMimePart, type_field: str, fields: dict[str, str]) -> None:
        encoding = fields.get("content-transfer-encoding", "").strip().lower()
        if encoding not in _PLAIN_ENCODINGS and transfer_encoding(encoding) in _PLAIN_ENCODINGS:
            raise _Doubt  # such as "base64;": meant, but not decoded by the library
        if not node.content:
            raise _Doubt  # perhaps the empty line before it was forgotten
        if encoding == "quoted-printable" and (self.has_bare_lf or self._ends_soft(node.content)):
            raise _Doubt  # the library writes CRLF for LF, and for a soft line break at the end
        if found := _CHARSET.search(type_field):
            part.charset = found.group(1)
        elif "charset" in type_field.lower():
            raise _Doubt  # as RFC 2231 writes it, perhaps
        part.content = Content.of(node.content)

    def _ends_soft(self, content: bytes) -> bool:
        """Tell whether the line end of `content` may be that of a soft line break."""
        if not content.endswith(b"\r\n") or not self.soft_ends:
            return False
        tail = content[-TAIL - 2 : -2]
        return any(tail[len(tail) - size :] in self.soft_ends for size in range(len(tail) + 1))

    def _descend(self, part: Part, node: PyMimePart, type_field: str, depth: int) -> None:
        """Read the parts of a multipart if the library found as many as there are boundaries.

        It takes every line that starts like a boundary for one, also when the boundary of a
        nested multipart merely begins the same.
        """
        found = _BOUNDARY.search(type_field)
        if not found or depth >= MAX_DEPTH:
            raise _Doubt
        boundary = b"--" + (found.group(1) or found.group(2)).encode()
        boundaries = self.boundaries.count(boundary)
        if not 0 <= boundaries - len(node.children) <= 1 or not node.children:
            raise _Doubt
        part.parts = [self.part(child, depth + 1) for child in node.children]
