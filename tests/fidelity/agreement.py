"""Fields of a message made comparable, and what most parsers agree on."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

from mailpoll.parsing import ParsedMessage

#: What one parser found: the fields that the readers print, as JSON.
Found = dict[str, Any]
#: A value that cannot be had from a reader that failed.
NOTHING = "nothing"


def of_mailpoll(parsed: ParsedMessage) -> Found:
    """What mailpoll found, in the form of the readers, which derive no text."""
    return {
        "subject": parsed.subject,
        "from": [[one.name, one.address] for one in parsed.from_],
        "to": [[one.name, one.address] for one in parsed.to],
        "date": parsed.date and int(parsed.date.timestamp()),
        "text": "" if parsed.text_derived else parsed.text,
        "html": parsed.html,
        "attachments": [{"name": one.name, "sha256": one.sha256} for one in parsed.attachments],
    }


def _words(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _letters(text: str) -> str:
    """Blanks and line ends differ by taste; so does what a NUL becomes."""
    return re.sub(r"[\s\0\ufffd]+", "", unicodedata.normalize("NFC", text))


def _mailbox(person: list[str]) -> list[str]:
    name, address = person
    local, at, domain = address.strip(" <>").rpartition("@")
    return [_words(name).strip("\"'"), local + at + domain.lower()]


FIELDS: dict[str, Callable[[Found], Any]] = {
    "subject": lambda found: _words(found["subject"]),
    "from": lambda found: [_mailbox(one) for one in found["from"][:1]],
    "to": lambda found: [_mailbox(one) for one in found["to"]],
    "date": lambda found: found["date"],
    "text": lambda found: _letters(found["text"]),
    "html": lambda found: _letters(found["html"]),
    "attachments": lambda found: len(found["attachments"]),
    "names": lambda found: sorted(_words(part["name"]) for part in found["attachments"]),
    "bytes": lambda found: sorted(part["sha256"] for part in found["attachments"]),
}


def value(found: Found | None, field: str) -> str:
    """The value of a field as a string that can be compared."""
    if found is None or "error" in found:
        return NOTHING
    return json.dumps(FIELDS[field](found), ensure_ascii=False)


def majority(values: list[str], needed: int = 3) -> str | None:
    """The value that at least `needed` parsers agree on."""
    counts = Counter(one for one in values if one != NOTHING)
    best, votes = counts.most_common(1)[0] if counts else (NOTHING, 0)
    return best if votes >= needed else None
