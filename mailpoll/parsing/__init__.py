"""Raw bytes of a message to fields and parts. Pure: knows no IMAP, no database, no store."""

from .message import Address, Attachment, ParsedMessage, Unparsable
from .parser import parse

__all__ = ["Address", "Attachment", "ParsedMessage", "Unparsable", "parse"]
