"""What the sender wrote, without what was quoted: by the shape of lines, not by any language.

One pass over the lines, each looked at a bounded number of times, so that no text makes it slow.
"""

from __future__ import annotations

import re

#: Characters, lines, and characters of a line that are looked at.
MAX_TEXT, MAX_LINES, MAX_LINE = 200_000, 5_000, 1_000
PREVIEW = 200
#: Characters in which a preview's words are looked for, first the few that nearly always do.
PREVIEW_TEXTS = (2_000, 20_000)

_COLONS = (":", "\uff1a")
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")
_CLOCK = re.compile(r"(?<!\d)\d{1,2}[:.]\d\d(?!\d)")
#: "From: …" in any language, bold or not.
_LABEL = re.compile(r"\*?[^\W\d_][^\n:\uff1a@<>]{0,24}[:\uff1a]\*?(?:\s|$)")
_RULE = re.compile(r"-{3,}[^-\n]{3,60}-{3,}")
#: Lines over which an attribution may be wrapped.
_WRAPPED = 3
#: Lines of a block of labels that must be there.
_LABELS = 3


def reply_of(text: str) -> str:
    """The text without quotations, what introduces them, and the signature."""
    lines = [line.rstrip() for line in text[:MAX_TEXT].replace("\r\n", "\n").split("\n")]
    kept: list[str] = []
    for number, line in enumerate(lines[:MAX_LINES]):
        stripped = line.strip()
        if line in ("--", "\u2014") or _begins_original(lines, number, stripped):
            break
        if stripped.startswith(">"):
            _drop_attribution(kept)
            continue
        if _is_attribution(kept, line) and not _is_quoted_next(lines, number):
            _drop_wrapped(kept, line)
            break
        kept.append(line)
    return "\n".join(kept).strip()


def preview(text: str) -> str:
    """The first words, on one line."""
    words = ""
    for length in PREVIEW_TEXTS:
        start = text[:length]
        words = " ".join((reply_of(start) or start).split())
        # What is quoted at the cut may still take back some lines.
        if len(words) > 2 * PREVIEW or length >= len(text):
            break
    return words[:PREVIEW].rstrip()


def _begins_original(lines: list[str], number: int, line: str) -> bool:
    """Whether a whole message follows: behind a rule with words in it, or a block of labels."""
    if len(line) > MAX_LINE:
        return False
    if _RULE.fullmatch(line):
        return True
    if not (_LABEL.match(line) or (line and not line.strip("_-\u2013\u2014"))):
        return False
    block = [one.strip()[:MAX_LINE] for one in lines[number : number + _LABELS + 2]]
    if not _LABEL.match(line):
        if len(line) < 5:
            return False
        block = [one for one in block[1:] if one]
    block = block[:_LABELS]
    labelled = len(block) == _LABELS and all(_LABEL.match(one) for one in block)
    return labelled and any(_YEAR.search(one) and _CLOCK.search(one) for one in block)


def _is_attribution(kept: list[str], line: str) -> bool:
    """Whether the lines up to this one say who wrote what follows, and when."""
    if not line.endswith(_COLONS) or len(line) > MAX_LINE:
        return False
    whole = " ".join([*_paragraph(kept), line])[-MAX_LINE:]
    return bool(_YEAR.search(whole) and ("@" in whole or _CLOCK.search(whole)))


def _paragraph(kept: list[str]) -> list[str]:
    """The last lines, back to an empty one."""
    found: list[str] = []
    for line in reversed(kept[1 - _WRAPPED :]):
        if not line.strip():
            break
        found.insert(0, line)
    return found


def _is_quoted_next(lines: list[str], number: int) -> bool:
    for line in lines[number + 1 : number + 4]:
        if line.strip():
            return line.lstrip().startswith(">")
    return False


def _drop_wrapped(kept: list[str], line: str) -> None:
    """Take back the lines of an attribution that came before its last one."""
    if _YEAR.search(line[:MAX_LINE]) and len(line) > 20:
        return  # it is on one line
    del kept[len(kept) - len(_paragraph(kept)) :]


def _drop_attribution(kept: list[str]) -> None:
    """Before a quotation: what introduces it, if its last line ends with a colon."""
    last = len(kept) - 1
    while last >= 0 and last > len(kept) - 3 and not kept[last].strip():
        last -= 1
    if last < 0 or not kept[last].endswith(_COLONS):
        return
    line, before = kept[last], kept[max(0, last - _WRAPPED) : last]
    if _is_attribution(before, line):
        first = last
        if not _YEAR.search(line[:MAX_LINE]):
            first -= len(_paragraph(before))
        del kept[first:]
