"""The second parser: the standard library's, for what the first refuses or might get wrong.

The ``compat32`` policy reads the structure only; it is the hardier and faster one. It is given
reduced messages alone (see `outline`), whose depth, number of parts and fields are capped: on
others it is quadratic, or recurses without end. Fields, names and transfer encodings are decoded
by the neighbours of this module.
"""

from __future__ import annotations

from email import message_from_bytes, policy
from email.message import Message
from typing import cast

from .classify import Part
from .content import Content, transfer_encoding
from .headers import media_type, parameters
from .outline import Outline


def read(outlined: Outline) -> Part:
    """Return the tree of a reduced message."""
    message = message_from_bytes(outlined.message, policy=policy.compat32)
    return _part(message, outlined, "text/plain")


def _part(message: Message, outlined: Outline, default: str) -> Part:
    fields: dict[str, str] = {}
    for name, value in message.raw_items():
        fields.setdefault(name.lower(), _text(str(value)))
    type_field = fields.get("content-type", "")
    disposition = fields.get("content-disposition", "")
    type_parameters = parameters(type_field)
    part = Part(
        media_type(type_field, default),
        disposition=disposition.partition(";")[0].strip().lower(),
        name=parameters(disposition).get("filename", "") or type_parameters.get("name", ""),
        content_id=fields.get("content-id", "").strip().strip("<>"),
        charset=type_parameters.get("charset", ""),
    )
    key = fields.get(outlined.marker)
    if key is not None:
        part.cut, part.content = True, outlined.cuts[key]
    elif message.is_multipart():
        children = cast("list[Message]", message.get_payload())
        part.parts = [_part(child, outlined, "text/plain") for child in children]
    else:
        # Without the field, the bytes come as they are. Not asked to decode, the library would give
        # text in the declared charset.
        del message["content-transfer-encoding"]
        data = cast("bytes", message.get_payload(decode=True))
        encoding = transfer_encoding(fields.get("content-transfer-encoding", ""))
        if part.content_type.startswith("multipart/"):
            encoding = ""
        part.content = Content.of(Content(data, 0, len(data), encoding).read())
    return part


def _text(value: str) -> str:
    """Return the UTF-8 the outline wrote, which the library keeps as escaped bytes."""
    return value.encode("ascii", "surrogateescape").decode("utf-8", "replace").strip()
