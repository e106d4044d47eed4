"""IMAP as mailpoll speaks it: reading only, bounded in time and size. Knows no database."""

from .errors import Fault, ImapError
from .folders import Folder, selectable
from .placeholders import is_placeholder
from .responses import Fetched, Status
from .session import Login, Part, Session, connect

__all__ = [
    "Fault",
    "Fetched",
    "Folder",
    "ImapError",
    "Login",
    "Part",
    "Session",
    "Status",
    "connect",
    "is_placeholder",
    "selectable",
]
