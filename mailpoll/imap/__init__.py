"""IMAP as mailpoll speaks it: reading only, bounded in time and size. Knows no database."""

from .connection import Login
from .errors import Fault, ImapError
from .estimate import Estimate, estimate
from .folders import Folder, selectable
from .placeholders import is_placeholder
from .responses import Fetched, Status
from .session import Part, Session, connect

__all__ = [
    "Estimate",
    "Fault",
    "Fetched",
    "Folder",
    "ImapError",
    "Login",
    "Part",
    "Session",
    "Status",
    "connect",
    "estimate",
    "is_placeholder",
    "selectable",
]
