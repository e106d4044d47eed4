"""Mail out to files that other programs read, and in from them: mbox, Maildir, zip, messages.

``selection`` says which messages go out, ``mbox``, ``zips`` and ``maildir`` how each format is
written and read, ``writing`` and ``jobs`` make archives, ``reading`` finds messages in what people
give, and ``intake`` stores them.
"""

from .formats import FORMATS, Format
from .reading import Unreadable
from .selection import Entry, Selection

__all__ = ["FORMATS", "Entry", "Format", "Selection", "Unreadable"]
