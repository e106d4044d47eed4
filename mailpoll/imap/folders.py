"""Folder names: as the server spells them, as people read them, and which ones are polled."""

from collections.abc import Sequence
from dataclasses import dataclass

from imapclient import imap_utf7

from .errors import printable
from .responses import Listed, Status

#: RFC 6154 and RFC 8457.
SPECIAL_USE = frozenset(
    ("\\all", "\\archive", "\\drafts", "\\flagged", "\\important", "\\junk", "\\sent", "\\trash")
)
#: Bytes of a folder's name; longer ones are no honest server's.
NAME_LIMIT = 1_000
UNSELECTABLE = frozenset(("\\noselect", "\\nonexistent"))


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that can be opened. ``status`` is what the server told along with the list."""

    wire_name: bytes
    name: str
    special_use: str | None
    status: Status | None


def selectable(listed: Sequence[Listed], statuses: dict[bytes, Status]) -> list[Folder]:
    """The folders that can be opened, INBOX first; a name given twice counts once."""
    found: dict[bytes, Folder] = {}
    for entry in listed:
        unsafe = any(byte in entry.wire_name for byte in (b"\r", b"\n", b"\0"))
        usable = 0 < len(entry.wire_name) <= NAME_LIMIT and not unsafe
        if not usable or entry.flags & UNSELECTABLE:
            continue
        use = next(iter(sorted(entry.flags & SPECIAL_USE)), None)
        name = display_name(entry.wire_name, entry.delimiter)
        folder = Folder(entry.wire_name, name, use, statuses.get(entry.wire_name))
        # INBOX is one folder in any case (RFC 9051 5.1); other names differ by it.
        inbox = entry.wire_name.upper() == b"INBOX"
        found.setdefault(b"INBOX" if inbox else entry.wire_name, folder)
    return sorted(found.values(), key=lambda folder: folder.name.upper() != "INBOX")


def display_name(wire_name: bytes, delimiter: bytes | None) -> str:
    """The name in Unicode with levels separated by "/" (modified UTF-7, RFC 3501 5.1.3).

    Names that are not valid modified UTF-7 are shown as UTF-8 or Latin-1: they are only shown,
    never sent.
    """
    try:
        name = imap_utf7.decode(wire_name) if wire_name.isascii() else _plain(wire_name)
    except (ValueError, LookupError, IndexError):
        name = _plain(wire_name)
    if not isinstance(name, str) or not name.isprintable():
        name = printable(_plain(wire_name), 1_000)
    separator = delimiter.decode("latin-1") if delimiter else "/"
    return name.replace(separator, "/")


def _plain(wire_name: bytes) -> str:
    try:
        return wire_name.decode("utf-8")
    except UnicodeDecodeError:
        return wire_name.decode("latin-1")
