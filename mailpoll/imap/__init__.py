"""IMAP as mailpoll speaks it: reading only, bounded in time and size. Knows no database."""

from .connection import Login
from .errors import Fault, ImapError
from .estimate import Estimate, estimate
from .folders import Folder, selectable
from .idle import Watch
from .placeholders import is_placeholder
from .responses import Fetched, Listed, Status
from .session import Part, Session, connect

__all__ = [
    "Estimate",
    "Fault",
    "Fetched",
    "Folder",
    "ImapError",
    "Listed",
    "Login",
    "Part",
    "Session",
    "Status",
    "Watch",
    "connect",
    "estimate",
    "is_placeholder",
    "selectable",
]
