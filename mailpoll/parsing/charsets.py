"""Bytes of a named charset to text that can be stored. Never raises, whatever the name.

Names come from the sender. They are looked up in a closed table and never handed to the codec
registry, which knows codecs that are not text (zlib, hex), raises for others (idna, undefined)
and remembers every unknown name for ever.
"""

from __future__ import annotations

import re
from encodings.aliases import aliases

#: What stands for a character that cannot be read or stored.
REPLACEMENT = "\ufffd"

_NOT_TEXT = {
    "base64_codec", "bz2_codec", "hex_codec", "quopri_codec", "rot_13", "uu_codec", "zlib_codec",
    "mbcs", "oem", "punycode", "idna", "undefined", "unicode_escape", "raw_unicode_escape",
}  # fmt: skip

# What senders call a charset is often a subset of what they write (the WHATWG Encoding Standard
# reads these labels the same way). The first codec that fits wins.
_WIDER: dict[str, tuple[str, ...]] = {
    "ascii": (),
    "latin_1": ("cp1252", "latin_1"),
    "iso8859_1": ("cp1252", "latin_1"),
    "iso8859_9": ("cp1254", "iso8859_9"),
    "iso8859_11": ("cp874", "iso8859_11"),
    "tis_620": ("cp874",),
    "gb2312": ("gb18030",),
    "gbk": ("gb18030",),
    "hz": ("hz", "gb18030"),
    "euc_kr": ("cp949",),
    "big5": ("cp950", "big5hkscs"),
    "shift_jis": ("cp932", "shift_jis_2004"),
    "iso2022_jp": ("iso2022_jp", "iso2022_jp_ext", "iso2022_jp_3"),
    "euc_jp": ("euc_jp", "euc_jis_2004"),
}

_OWN_NAMES = {
    "utf_8": "utf_8", "utf8mb4": "utf_8", "unicode_1_1_utf_8": "utf_8",
    "unicode_1_1_utf_7": "utf_7",
    "x_gbk": "gb18030", "x_euc_jp": "euc_jp", "x_sjis": "shift_jis", "x_windows_949": "cp949",
    "ks_c_5601": "euc_kr", "ks_c_5601_1989": "euc_kr", "ks_c_5601_1987": "euc_kr",
    "x_x_big5": "big5", "cn_big5": "big5", "iso_8859_8_i": "iso8859_8", "iso_8859_8_e": "iso8859_8",
    "iso_8859_6_i": "iso8859_6", "x_mac_roman": "mac_roman", "x_mac_cyrillic": "mac_cyrillic",
    "cp_850": "cp850", "dos_874": "cp874", "koi8": "koi8_r", "koi8_ru": "koi8_u",
}  # fmt: skip

_CODECS: dict[str, str] = {
    **{name: codec for name, codec in aliases.items() if codec not in _NOT_TEXT},
    **{codec: codec for codec in aliases.values() if codec not in _NOT_TEXT},
    "koi8_u": "koi8_u", "cp874": "cp874", "cp949": "cp949", "cp950": "cp950", "cp932": "cp932",
    "koi8_t": "koi8_t", "cp1006": "cp1006", "cp737": "cp737", "cp856": "cp856", "cp720": "cp720",
    **_OWN_NAMES,
}  # fmt: skip

_NOT_NAME = re.compile(r"[^a-z0-9]+")
_SURROGATES = re.compile("[\ud800-\udfff]")
_MAX_NAME = 64


def decode(data: bytes, charset: str = "") -> str:
    """Return `data` as storable text: as declared if it fits, else the likeliest reading."""
    return read(data, charset)[0]


def read(data: bytes, charset: str = "") -> tuple[str, bool]:
    """Return what `decode` does, and whether that is just what the sender declared."""
    if data.isascii() and charset.lower() in {"", "utf-8", "us-ascii"}:
        return _stored(data.decode("ascii"))
    codecs, known = _candidates(charset)
    for codec in codecs:
        try:
            text, whole = _stored(data.decode(codec))
        except (UnicodeError, ValueError):
            continue
        return text, whole and known
    return storable(_guess(data, codecs)), False


def _stored(text: str) -> tuple[str, bool]:
    stored = storable(text)
    return stored, stored is text


def storable(text: str) -> str:
    """Return `text` with U+FFFD for what databases refuse: NUL and lone surrogates."""
    if "\0" in text:
        text = text.replace("\0", REPLACEMENT)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATES.sub(REPLACEMENT, text)
    return text


def _candidates(charset: str) -> tuple[tuple[str, ...], bool]:
    """Return the codecs to try for a name, and whether it is the name of a charset, or none."""
    name = _NOT_NAME.sub("_", charset[:_MAX_NAME].lower()).strip("_")
    if name.startswith("x_") and name not in _CODECS:
        name = name[2:]
    if name.startswith("windows_"):
        name = "cp" + name[8:]
    codec = _CODECS.get(name) or _CODECS.get(name.replace("_", ""))
    known = bool(codec or not name)
    codec = codec or "ascii"
    return _WIDER.get(codec, (codec,)), known


def _guess(data: bytes, codecs: tuple[str, ...]) -> str:
    """Read text that is not in its declared charset: UTF-8, or with holes, or Western."""
    for codec in codecs[:1]:
        if codec.startswith(("utf_16", "utf_32")):
            return data.decode(codec, "replace")  # as text of one byte a character it is nonsense
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    for codec in codecs[:1]:
        text = data.decode(codec, "replace")
        if any(char > "\x7f" and char != REPLACEMENT for char in text):
            return text
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin_1")
