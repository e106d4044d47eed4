"""Header sections: into fields, and fields into words, parameters, dates and identifiers.

Both parsers and the outline read headers through this module, so that a message means the same
whichever of them reads its structure. Everything is linear in its input and capped before it is
decoded.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_tz
from urllib.parse import unquote_to_bytes

from . import charsets

MAX_VALUE = 64 * 1024
MAX_FIELDS = 20_000
MAX_PARAMETERS = 200
MAX_IDENTIFIERS = 1_000
_MAX_DATE = 200
_DAY = 86_400

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:[ \t]*([^\n]*(?:\n[ \t][^\n]*)*)\n?")
_BLANK_LINE = re.compile(rb"\n\r?\n")
_FOLD = re.compile(r"(?<!\r)\r*+\n[ \t]*|[\r\n]")  # a run of CR is looked through once
_WORD = re.compile(r"=\?([^?\s]{1,80})\?([bBqQ])\?([^?]*\??)\?=")
_TYPE = re.compile(r"\s*([a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+*-]+)")
_PARAMETER = re.compile(r";\s*([^\s=;\"]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"?|([^;]*))", re.S)
_SECTION = re.compile(r"([^*]+)(?:\*(\d{1,4}))?(\*)?")
_COMMENT = re.compile(r"\([^()]*\)")
_NEGATIVE_YEAR = re.compile(r" -\d+\s+\d+:")
_HALF_DAY = re.compile(r"\d\s?([ap])m\b", re.IGNORECASE)  # not in RFC 5322, but in mail
_IDENTIFIER = re.compile(r"<([^<>]*)>")


@dataclass(frozen=True, slots=True)
class Section:
    """A header section.

    Parameters:
      fields: (name, value); values are unfolded text, encoded words not yet decoded.
      body: where the body starts, in bytes from the start of the data.
      defects: 'header-cut' (over a cap), 'header-garbage' (lines that are no field),
        'header-end' (no empty line before the body).
      named: the values of each field, by its name in lower case.
    """

    fields: list[tuple[str, str]]
    body: int
    defects: list[str]
    named: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        named: dict[str, list[str]] = {}
        for name, value in self.fields:
            named.setdefault(name.lower(), []).append(value)
        object.__setattr__(self, "named", named)

    def get(self, name: str) -> str:
        """Return the first value of the field `name` (in lower case), or ''."""
        values = self.named.get(name)
        return values[0] if values else ""


def read_section(data: bytes) -> Section:
    """Split the header section at the start of `data` into its fields (RFC 5322 2.2).

    A line that is no field is skipped when fields follow it, as most mail programs do; if none
    follow, the empty line was forgotten and the body starts there.
    """
    if data.startswith((b"\n", b"\r\n")):
        return Section([], data.index(b"\n") + 1, [])
    blank = _BLANK_LINE.search(data)
    end = blank.start() + 1 if blank else len(data)
    return _read_fields(data, end, blank.end() if blank else len(data))


def _read_fields(data: bytes, end: int, body: int) -> Section:
    fields: list[tuple[str, str]] = []
    defects: list[str] = []
    garbage = -1  # where the lines start that are no fields and that no field has followed yet
    at = 0
    match = _FIELD.match
    while at < end:
        found = match(data, at, end)
        if found is None:
            garbage = at if garbage < 0 else garbage
            if not fields:
                break
            at = data.find(b"\n", at, end) + 1 or end
            continue
        if len(fields) == MAX_FIELDS:
            defects.append("header-cut")
            garbage = -1
            break
        if garbage >= 0:
            defects, garbage = ["header-garbage"], -1
        start, stop = found.span(2)
        if stop - start > MAX_VALUE:
            defects.append("header-cut")
            stop = start + MAX_VALUE
        fields.append((found.group(1).decode("ascii"), _unfold(data[start:stop])))
        at = found.end()
    if garbage >= 0:
        return Section(fields, garbage, [*defects, "header-end"])
    return Section(fields, body, list(dict.fromkeys(defects)))


def _unfold(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = charsets.decode(value)
    if "\n" in text:
        text = _FOLD.sub(" ", text)
    return text.strip()


def decode_words(value: str) -> str:
    """Return `value` with its encoded words decoded (RFC 2047), as storable text.

    Blanks between two encoded words vanish, and neighbours of one charset are decoded together,
    because many senders split a character between them.
    """
    if "=?" not in value:
        return charsets.storable(value)
    pieces: list[str] = []
    charset, held = "", b""
    end = 0
    for found in _WORD.finditer(value):
        between = value[end : found.start()]
        name, kind, text = found.groups()
        name = name.partition("*")[0].lower()  # RFC 2231 5: a language may follow
        if held and (between.strip() or name != charset):
            pieces.append(charsets.decode(held, charset))
            held = b""
        if between.strip() or end == 0:
            pieces.append(between)
        charset, held = name, held + _word_bytes(kind, text)
        end = found.end()
    pieces += [charsets.decode(held, charset), value[end:]]
    return charsets.storable("".join(pieces))


def replaced(value: str, decoded: str) -> bool:
    """Tell whether decoding put U+FFFD where the sender has written something else."""
    if charsets.REPLACEMENT not in decoded:
        return False
    words = (_word_bytes(*found[1:]) for found in _WORD.findall(value) if _is_utf8(found[0]))
    written = b"".join(words).count(charsets.REPLACEMENT.encode())
    return decoded.count(charsets.REPLACEMENT) > written + value.count(charsets.REPLACEMENT)


def _is_utf8(charset: str) -> bool:
    return charset.lower().replace("-", "").startswith("utf8")


def _word_bytes(kind: str, text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    if kind in "qQ":
        return binascii.a2b_qp(data.replace(b" ", b"_"), header=True)
    data = re.sub(rb"[^A-Za-z0-9+/]+", b"", data)
    if len(data) % 4 == 1:
        data = data[:-1]
    return binascii.a2b_base64(data + b"=" * (-len(data) % 4))


def media_type(value: str, default: str = "text/plain") -> str:
    """Return the ``type/subtype`` of a Content-Type, in lower case (RFC 2045 5.2 if invalid)."""
    found = _TYPE.match(value.lower())
    return found.group(1) if found else default


def parameters(value: str) -> dict[str, str]:
    """Return the parameters of a structured field, decoded after RFC 2231 and RFC 2047.

    At most `MAX_PARAMETERS` are read. An RFC 2231 form wins over the plain one.
    """
    plain: dict[str, str] = {}
    extended: dict[str, dict[int, tuple[str, bool]]] = {}
    for count, found in enumerate(_PARAMETER.finditer(value)):
        if count == MAX_PARAMETERS:
            break
        key, quoted, bare = found.groups()
        text = bare.strip() if quoted is None else quoted.replace('\\"', '"').replace("\\\\", "\\")
        section = _SECTION.fullmatch(key.lower())
        if section is None or not (section[2] or section[3]):
            plain.setdefault(key.lower(), decode_words(text))
            continue
        pieces = extended.setdefault(section[1], {})
        pieces.setdefault(int(section[2] or 0), (text, bool(section[3])))
    return plain | {name: _join_sections(pieces) for name, pieces in extended.items()}


def _join_sections(pieces: dict[int, tuple[str, bool]]) -> str:
    """Join the numbered sections of one parameter (RFC 2231 3 and 4.1)."""
    charset = ""
    data: list[bytes] = []
    for number, (piece, encoded) in sorted(pieces.items()):
        text = piece
        if encoded and number == 0 and piece.count("'") >= 2:
            charset, _, text = piece.split("'", 2)
        data.append(unquote_to_bytes(text) if encoded else text.encode("utf-8", "replace"))
    decoded = charsets.decode(b"".join(data), charset)
    return decode_words(decoded) if not charset else decoded


def parse_date(value: str) -> datetime | None:
    """Return a Date field as an instant in UTC, or None if it names none (RFC 5322 3.3)."""
    try:
        text = value[:_MAX_DATE]
        if "(" in text:
            text = _COMMENT.sub(" ", text)
        if " -" in text and _NEGATIVE_YEAR.search(text):
            return None
        half = _HALF_DAY.search(text)
        parts = parsedate_tz(text[: half.start(1)] + text[half.end() :] if half else text)
        if parts is None:
            return None
        year, month, day, hour, minute, second = parts[:6]
        if half:
            hour = hour % 12 + (12 if half[1] in "pP" else 0)
        offset = parts[9] or 0
        if abs(offset) >= _DAY:
            offset = 0
        moment = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC)
        return moment - timedelta(seconds=offset)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def identifier(value: str) -> str:
    """Return the first message identifier in `value` without brackets, or what stands there."""
    found = _IDENTIFIER.search(value)
    return charsets.storable((found.group(1) if found else value).strip().strip("<>"))


def identifiers(value: str) -> list[str]:
    """Return the identifiers of a References field, at most `MAX_IDENTIFIERS`."""
    found = _IDENTIFIER.findall(value) or value.replace(",", " ").split()
    return [charsets.storable(each.strip()) for each in found if each.strip()][:MAX_IDENTIFIERS]
