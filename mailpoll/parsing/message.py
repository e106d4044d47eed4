"""What a parsed message is: plain, immutable records that need no parser to be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from .content import Content


class Unparsable(Exception):
    """No parser could make anything of the message; its text says why."""


@dataclass(frozen=True, slots=True)
class Address:
    """One mailbox of an address field (RFC 5322 3.4).

    Parameters:
      name: the display name, decoded; '' when there is none.
      address: ``local@domain`` as written, or the best that could be read.
    """

    name: str
    address: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """One part of a message that is not its text.

    Parameters:
      name: the file name as the sender spelt it, decoded; '' when there is none. Data, not a path.
      safe_name: a name that is safe to show and to save under: never empty, at most 255 bytes.
      content_type: ``type/subtype`` in lower case.
      content_id: the Content-ID without its angle brackets, or ''.
      inline: whether the HTML shows it, or the sender marked it inline under a Content-ID.
      size: decoded size in bytes.
      sha256: hexadecimal digest of the decoded bytes.
    """

    name: str
    safe_name: str
    content_type: str
    content_id: str
    inline: bool
    size: int
    sha256: str
    content: Content = field(repr=False, compare=False)

    def chunks(self) -> Iterator[bytes]:
        """Yield the decoded bytes, at most 64 KiB at a time; may be called again."""
        return self.content.chunks()


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """A message as fields and parts. Every string can be stored: no NUL, no lone surrogates.

    Parameters:
      date: aware, in UTC; None when the message has no usable date.
      message_id, in_reply_to, references: without angle brackets.
      headers: every field as (name, decoded value), in the order of the message.
      text, html: the whole bodies; several parts are joined by a line end.
      text_derived: `text` was made from `html`, because the message has no text of its own.
      attachments: in the order of the message; a nested message is one of them, kept exact.
      parser: which parser read the structure, ``fast`` or ``stdlib``.
      defects: what had to be repaired or capped, as short stable words.
    """

    subject: str
    from_: list[Address]
    sender: list[Address]
    to: list[Address]
    cc: list[Address]
    bcc: list[Address]
    reply_to: list[Address]
    date: datetime | None
    message_id: str
    in_reply_to: str
    references: list[str]
    headers: list[tuple[str, str]]
    text: str
    text_derived: bool
    html: str
    attachments: list[Attachment]
    parser: str
    defects: list[str]
