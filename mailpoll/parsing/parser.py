"""From the raw bytes of a message (RFC 5322, MIME) to its fields and parts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from . import charsets, fast, standard
from .addresses import MAX_ADDRESSES, parse_addresses
from .classify import Part, referred_ids, split
from .content import Content
from .headers import (
    Section,
    decode_words,
    identifier,
    identifiers,
    media_type,
    parse_date,
    read_section,
    replaced,
)
from .message import Address, Attachment, ParsedMessage, Unparsable
from .names import safe_name, suspicious
from .outline import MAX_PARTS, outline
from .readable import readable

MAX_WHOLE = 8 * 1024 * 1024  # bytes of a message that is read into memory as it is
_ADDRESS_FIELDS = ("from", "sender", "to", "cc", "bcc", "reply-to")
_FIRST_ONLY = {"from", "sender"}
_MAX_PLAIN_HEAD = 64 * 1024  # bytes of a header section that needs no capping


def parse(raw: Path | bytes) -> ParsedMessage:
    """Read a message into its fields and parts.

    Parameters:
      raw: the message, or the file it is in. A file must stay in place for as long as the
        attachments of a large message are read.

    Raises:
      Unparsable: no parser can read it.
      OSError: the file cannot be read.
    """
    source: Path | bytes = raw
    if isinstance(raw, bytes) or raw.stat().st_size <= MAX_WHOLE:
        source = _line_ends(raw if isinstance(raw, bytes) else raw.read_bytes())
    try:
        return _parse(source)
    except (RecursionError, ValueError, LookupError, TypeError, AssertionError) as error:
        raise Unparsable(f"{type(error).__name__}: {error}") from error


def _line_ends(data: bytes) -> bytes:
    """Return `data` with LF for CR if CR is the only line end it has, and without mbox's line."""
    if data.startswith((b"From ", b">From ")):
        data = data[data.find(b"\n") + 1 :]
    if b"\n" not in data and b"\r" in data:
        data = data.replace(b"\r", b"\n")
    return data


def _parse(source: Path | bytes) -> ParsedMessage:
    root = None
    head = None
    if isinstance(source, bytes) and len(source) <= MAX_WHOLE:
        head = read_section(source)
        if _is_plain(source, head):
            root = fast.read(source)
    if head is not None and root is not None:
        return _assemble(head, root, "fast", head.defects)
    outlined = outline(source)
    root = fast.read(outlined.message, outlined) if head is None else None
    parser = "fast" if root else "stdlib"
    return _assemble(outlined.head, root or standard.read(outlined), parser, outlined.defects)


def _is_plain(data: bytes, head: Section) -> bool:
    """Tell whether a message can go to the fast parser as it is: no cap is near."""
    if head.defects or head.body > _MAX_PLAIN_HEAD:
        return False
    return _is_text_alone(head) or data.count(b"\n--") < MAX_PARTS


def _is_text_alone(head: Section) -> bool:
    """Tell whether there are no parts to count, which costs more than the rest of a short text."""
    types = head.named.get("content-type", [])
    return len(types) <= 1 and all(media_type(value).startswith("text/") for value in types)


def _assemble(head: Section, root: Part, parser: str, defects: list[str]) -> ParsedMessage:
    """Turn a header section and a tree of parts, whichever parser read it, into the message."""
    texts, htmls, files = split(root)
    (text, as_declared), (html, html_as_declared) = _joined(texts), _joined(htmls)
    derived, whole = readable(html) if html and not text.strip() else ("", True)
    shown = referred_ids(html) if html and files else set()
    headers = [(name, decode_words(value)) for name, value in head.fields]
    addresses = {name: _addresses(head, name) for name in _ADDRESS_FIELDS}
    attachments = [_attachment(part, shown) for part in files]
    remarks = {
        "html-cut": not whole,
        "charset": not (as_declared and html_as_declared),
        "replaced-characters": any(
            replaced(value, decoded)
            for (_, decoded), (_, value) in zip(headers, head.fields, strict=True)
        ),
        "ambiguous-from": len(head.named.get("from", [])) > 1,
        "too-many-addresses": any(len(each) == MAX_ADDRESSES for each in addresses.values()),
        "suspicious-name": any(suspicious(each.name) for each in attachments),
    }
    return ParsedMessage(
        subject=decode_words(head.get("subject")),
        from_=addresses["from"],
        sender=addresses["sender"],
        to=addresses["to"],
        cc=addresses["cc"],
        bcc=addresses["bcc"],
        reply_to=addresses["reply-to"],
        date=parse_date(head.get("date")),
        message_id=identifier(head.get("message-id")),
        in_reply_to=identifier(head.get("in-reply-to")),
        references=identifiers(head.get("references")),
        headers=headers,
        text=derived or text,
        text_derived=bool(derived),
        html=html,
        attachments=attachments,
        parser=parser,
        defects=list(dict.fromkeys([*defects, *(word for word, true in remarks.items() if true)])),
    )


def _addresses(head: Section, name: str) -> list[Address]:
    """The mailboxes of a field; of several From or Sender fields only the first counts."""
    values = head.named.get(name, [])
    if name in _FIRST_ONLY:
        values = values[:1]
    return parse_addresses(", ".join(values)) if values else []


def _joined(parts: list[Part]) -> tuple[str, bool]:
    """The texts of several parts, and whether each is in the charset that its part declares."""
    read = [charsets.read(part.content.read(), part.charset) for part in parts if part.content]
    return "\n".join(text for text, _ in read if text), all(declared for _, declared in read)


def _attachment(part: Part, shown: set[str]) -> Attachment:
    content = part.content or Content.of(b"")
    digest, size = hashlib.sha256(), 0
    for chunk in content.chunks():
        digest.update(chunk)
        size += len(chunk)
    name = charsets.storable(part.name)
    content_id = charsets.storable(part.content_id)
    return Attachment(
        name=name,
        safe_name=safe_name(name or _nested_name(part, content), part.content_type),
        content_type=charsets.storable(part.content_type),
        content_id=content_id,
        inline=bool(content_id) and (content_id in shown or part.disposition == "inline"),
        size=size,
        sha256=digest.hexdigest(),
        content=content,
    )


def _nested_name(part: Part, content: Content) -> str:
    """A nested message without a name is saved under its subject, as mail programs do."""
    if part.content_type != "message/rfc822":
        return ""
    start = next(content.chunks(), b"")
    subject = decode_words(read_section(start).get("subject"))
    return f"{subject}.eml" if subject else "message.eml"
