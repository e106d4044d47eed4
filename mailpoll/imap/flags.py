"""Flags and labels of a message as a server tells them, made fit to be kept and shown.

Anybody who can write to a mailbox chooses its keywords, so they are bounded in number and length,
and none that holds a control character is kept. What is dropped is never an error.
"""

from functools import lru_cache
from typing import Any

from imapclient import imap_utf7

#: Flags, and labels, that are kept of one message, and characters of each.
MOST, LONGEST = 64, 100
#: What servers may spell in any case (RFC 9051 2.3.2).
SYSTEM = {flag.lower(): flag for flag in ("\\Seen", "\\Answered", "\\Flagged", "\\Draft")}
#: Said of a session and not of the message, or only while it is being removed.
PASSING = frozenset(("\\recent", "\\*"))


def flags(words: Any) -> tuple[str, ...] | None:
    """The flags of a FETCH answer in a fixed order; ``None`` for what is no list of them."""
    return _flags(_bytes(words)) if isinstance(words, list) else None


def labels(words: Any) -> tuple[str, ...] | None:
    """Gmail's labels in a fixed order, as people read them; ``None`` for what is no list.

    https://developers.google.com/workspace/gmail/imap/imap-extensions
    """
    return _labels(_bytes(words)) if isinstance(words, list) else None


def _bytes(words: list[Any]) -> tuple[bytes, ...]:
    return tuple(word for word in words if isinstance(word, bytes))


# Of a hundred thousand messages most have one of a few sets.
@lru_cache(maxsize=1_000)
def _flags(words: tuple[bytes, ...]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for word in words:
        flag = _text(word)
        if flag is not None and flag.lower() not in PASSING:
            found.setdefault(flag.lower(), SYSTEM.get(flag.lower(), flag))
    return _bounded(found)


@lru_cache(maxsize=1_000)
def _labels(words: tuple[bytes, ...]) -> tuple[str, ...]:
    found = {}
    for word in words:
        if _text(word) is not None:
            label = _decoded(word)
            if 0 < len(label) <= LONGEST and label.isprintable():
                found[label] = label
    return _bounded(found)


def _text(word: bytes) -> str | None:
    """A word that can be kept, of at most ``LONGEST`` characters."""
    try:
        text = word[: LONGEST * 4 + 1].decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if 0 < len(text) <= LONGEST and text.isprintable() else None


def _decoded(word: bytes) -> str:
    """A label in Unicode; one that is no modified UTF-7 (RFC 3501 5.1.3) as it stands."""
    try:
        return str(imap_utf7.decode(word)) if word.isascii() else word.decode()
    except (ValueError, LookupError, IndexError):
        return word.decode()


def _bounded(found: dict[str, str]) -> tuple[str, ...]:
    """The same ones each time, the server's own flags first."""
    keys = sorted(found, key=lambda key: (not key.startswith("\\"), key))
    return tuple(found[key] for key in keys[:MOST])
