"""File names that are safe to show and to save under, from whatever a sender wrote."""

from __future__ import annotations

import mimetypes
import re
import unicodedata

MAX_BYTES = 255

# Path separators, what Windows refuses, control characters (C0, C1), and every format character:
# bidirectional overrides and zero-width ones make "exe" look like "pdf".
_REFUSED = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|\u2044\u2215\u29f5\uff0f\uff3c\ufffd]')
_REFUSED_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)", re.IGNORECASE)
_TYPES = mimetypes.MimeTypes(filenames=())  # the built-in table: the same on every machine


def safe_name(name: str, content_type: str) -> str:
    """Return `name` with everything dangerous replaced by ``_``.

    Never empty and at most `MAX_BYTES` in UTF-8, its extension kept. An empty name is made from
    `content_type`.
    """
    # Cutting first bounds the work; compatibility forms are kept, so no character grows into
    # a separator afterwards.
    cleaned = _REFUSED.sub("_", unicodedata.normalize("NFC", name[: 4 * MAX_BYTES]))
    if not cleaned.isascii():
        cleaned = "".join(
            "_" if unicodedata.category(char) in _REFUSED_CATEGORIES else char for char in cleaned
        )
    cleaned = cleaned.strip(" .")
    if not cleaned.strip("_"):
        return "attachment" + (_TYPES.guess_extension(content_type) or ".bin")
    if _RESERVED.match(cleaned):
        cleaned = "_" + cleaned
    return _shorten(cleaned)


def suspicious(name: str) -> bool:
    """Tell whether `name` holds characters that are not seen but change what is."""
    if name.isascii():
        return not name.isprintable()
    return any(unicodedata.category(char) in _REFUSED_CATEGORIES for char in name[: 4 * MAX_BYTES])


def _shorten(name: str) -> str:
    if len(name.encode()) <= MAX_BYTES:
        return name
    stem, dot, extension = name.rpartition(".")
    if not dot or len(extension.encode()) > 16:
        stem, dot, extension = name, "", ""
    room = MAX_BYTES - len((dot + extension).encode())
    return stem.encode()[:room].decode("utf-8", "ignore").rstrip(" .") + dot + extension
