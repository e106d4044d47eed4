"""What the receiving server says of a message's origin: Authentication-Results (RFC 8601).

These are facts of the header, and no identity: who writes the topmost field is the server that mail
was fetched from only if that server writes one at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_LENGTH, MAX_RESULTS, MAX_PROPERTIES = 16_384, 100, 50
FIELD = "authentication-results"


@dataclass(slots=True)
class Result:
    """One method's result, such as ``dkim`` and ``pass``."""

    method: str
    result: str
    reason: str = ""
    properties: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Authentication:
    """The topmost field: who wrote it, as it says, and what was found."""

    server: str
    results: list[Result] = field(default_factory=list)


def authentication(headers: Iterable[tuple[str, str] | list[str]]) -> Authentication | None:
    """The topmost field of a message; ``None`` when there is none."""
    for name, value in headers:
        if name.lower() == FIELD:
            return read_results(value)
    return None


def read_results(value: str) -> Authentication:
    """What of a field's value is understood."""
    head, *parts = _parts(_without_comments(value[:MAX_LENGTH]))
    words = head.split()
    found = Authentication(words[0] if words else "")
    for part in parts[:MAX_RESULTS]:
        pairs = _pairs(part)
        if not pairs:
            continue
        (method, result), *more = pairs
        one = Result(method.partition("/")[0].strip().lower(), result.lower())
        for name, text in more[:MAX_PROPERTIES]:
            if name.lower() == "reason":
                one.reason = text
            else:
                one.properties[name.lower()] = text
        found.results.append(one)
    return found


def _without_comments(value: str) -> str:
    """The value without what stands in parentheses, which may lie within each other."""
    kept, depth, quoted, escaped = [], 0, False, False
    for sign in value:
        if escaped:
            escaped = False
        elif sign == "\\":
            escaped = True
        elif sign == '"' and not depth:
            quoted = not quoted
        elif sign == "(" and not quoted:
            depth += 1
        elif sign == ")" and depth:
            depth -= 1
            kept.append(" ")
            continue
        if not depth:
            kept.append(sign)
    return "".join(kept)


def _parts(value: str) -> list[str]:
    """Split at semicolons that are not quoted."""
    found, start, quoted = [], 0, False
    for place, sign in enumerate(value):
        if sign == '"':
            quoted = not quoted
        elif sign == ";" and not quoted:
            found.append(value[start:place])
            start = place + 1
    return [*found, value[start:]]


def _pairs(part: str) -> list[tuple[str, str]]:
    """``name=value`` pairs; a word without a sign of equality is none."""
    words, word, quoted = [], "", False
    for sign in f"{' '.join(part.split())} ":
        if sign == '"':
            quoted = not quoted
        elif sign == " " and not quoted:
            words.append(word)
            word = ""
        else:
            word += sign
    text = [one for one in words if one]
    found: list[tuple[str, str]] = []
    place = 0
    while place < len(text):
        name, equals, value = text[place].partition("=")
        if not equals and place + 1 < len(text) and text[place + 1].startswith("="):
            value, equals = text[place + 1][1:], "="
            place += 1
        if equals and not value and place + 1 < len(text):
            value = text[place + 1]
            place += 1
        if equals and name:
            found.append((name, value))
        place += 1
    return found
