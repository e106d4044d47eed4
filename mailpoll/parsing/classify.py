"""Which part of a message is its text, which its HTML, and which an attachment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

from .content import Content

_BODIES = {"text/plain", "text/html"}
_CID = re.compile(r"cid:([^\s\"'<>)\\]{1,1000})", re.IGNORECASE)
_MAX_REFERENCES = 10_000


@dataclass(slots=True)
class Part:
    """One node of a message's tree, whichever parser it comes from.

    Parameters:
      content_type: ``type/subtype`` in lower case.
      disposition: ``attachment``, ``inline``, another token, or ''.
      name, content_id, charset: decoded, '' when absent.
      content: None for a multipart, whose children are in `parts`.
      cut: left out of the reduced message: an attachment whatever it says it is.
    """

    content_type: str
    disposition: str = ""
    name: str = ""
    content_id: str = ""
    charset: str = ""
    content: Content | None = None
    parts: list[Part] = field(default_factory=list)
    cut: bool = False


def is_body(content_type: str, disposition: str, name: str, container: str) -> bool:
    """Tell whether a leaf is text to be read rather than a file.

    Parameters:
      container: the content type of the multipart around it, '' for the message itself.

    A name makes text a file unless the sender says inline; as the whole message, or one of its
    alternatives, it can only be the text.
    """
    if disposition == "attachment":
        return False
    if content_type.startswith("multipart/"):
        return True  # a multipart without parts: what it holds was meant to be read
    if content_type not in _BODIES:
        return False
    return not name or disposition == "inline" or container in {"", "multipart/alternative"}


def leaves(part: Part, container: str = "") -> Iterator[tuple[Part, str]]:
    """Yield every leaf with the content type of the multipart around it, in message order."""
    if part.content is not None:
        yield part, container
        return
    for child in part.parts:
        yield from leaves(child, part.content_type)


def split(root: Part) -> tuple[list[Part], list[Part], list[Part]]:
    """Return (text parts, HTML parts, attachments), each in the order of the message."""
    texts: list[Part] = []
    htmls: list[Part] = []
    attachments: list[Part] = []
    for part, container in leaves(root):
        if part.cut or not is_body(part.content_type, part.disposition, part.name, container):
            attachments.append(part)
        elif part.content_type == "text/html":
            htmls.append(part)
        else:
            texts.append(part)
    return texts, htmls, attachments


def referred_ids(html: str) -> set[str]:
    """Return the content ids the HTML refers to by ``cid:`` URLs (RFC 2392)."""
    found: set[str] = set()
    for count, match in enumerate(_CID.finditer(html)):
        if count == _MAX_REFERENCES:
            break
        found.add(unquote(match.group(1)))
    return found
