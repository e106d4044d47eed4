"""Show where a text has what was looked for, as pieces: nothing to escape, nothing to inject."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..words import UNSPACED, fold
from .query import Words

#: Characters of an excerpt, and of it before the first match.
LENGTH, BEFORE = 240, 60
#: Matches of a text that are weighed against each other.
WEIGHED = 100
#: Characters that are folded at a time, where folding changes the length.
STEP = 2_000


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text: ``match`` tells whether it is what was looked for."""

    text: str
    match: bool


class Excerpts:
    """Finds the words of a query in texts as people wrote them.

    Parameters:
      needles: what the query asks for.
      limit: characters of a text that are looked at, as only they are indexed.
    """

    def __init__(self, needles: Sequence[Words], limit: int) -> None:
        self._limit = limit
        self._anywhere = _pattern([one for one in needles if not one.mark])
        self._by_mark = {
            mark: _pattern([one for one in needles if one.mark in ("", mark)])
            for mark in {one.mark for one in needles if one.mark}
        }

    def whole(self, text: str, mark: str) -> list[Piece]:
        """A short text, such as a subject, with its matches.

        Parameters:
          mark: that of the field it is from.
        """
        return self._pieces(text, self._by_mark.get(mark, self._anywhere))

    def best(self, text: str) -> list[Piece]:
        """The part of a text with the most of what was looked for, on one line.

        Its beginning, when it has nothing of it: then the match is elsewhere in the message.
        """
        text = text[: self._limit]
        at = self._best_place(text) if self._anywhere else None
        start = max(0, at - BEFORE) if at is not None else 0
        if start:
            # From the beginning of a word on, if there is one near.
            blank = re.search(r"\s", text[start : start + BEFORE // 2])
            start += blank.end() if blank else 0
        part = text[start : start + LENGTH]
        line = " ".join(part.split())
        pieces = self._pieces(line, self._anywhere)
        if start:
            pieces = [Piece("… ", False), *pieces]
        if start + LENGTH < len(text):
            pieces = [*pieces, Piece(" …", False)]
        return pieces

    def _best_place(self, text: str) -> int | None:
        """Where the excerpt's first match begins, near enough."""
        found: list[tuple[int, int]] = []
        for start, folded in _folded(text):
            for match in self._matches(folded):
                found.append((start + match.start(), match.lastindex or 0))
                if len(found) == WEIGHED:
                    break
            if len(found) >= WEIGHED:
                break
        if not found:
            return None
        reach = LENGTH - BEFORE

        def variety(at: int) -> int:
            return len({number for place, number in found if at <= place < at + reach})

        # The first of the best.
        return max((place for place, _ in found), key=lambda place: (variety(place), -place))

    def _matches(self, folded: str) -> Iterator[re.Match[str]]:
        return self._anywhere.finditer(folded) if self._anywhere else iter(())

    def _pieces(self, text: str, pattern: re.Pattern[str] | None) -> list[Piece]:
        if not text or pattern is None:
            return [Piece(text, False)] if text else []
        folded, origins = _followed(text)
        pieces: list[Piece] = []
        done = 0
        for match in pattern.finditer(folded):
            start, end = origins[match.start()], origins[match.end() - 1] + 1
            start = max(start, done)
            if end <= done:
                continue
            if start > done:
                pieces.append(Piece(text[done:start], False))
            if pieces and pieces[-1].match:
                pieces[-1] = Piece(pieces[-1].text + text[start:end], True)
            else:
                pieces.append(Piece(text[start:end], True))
            done = end
        if done < len(text):
            pieces.append(Piece(text[done:], False))
        return pieces


def _pattern(needles: Sequence[Words]) -> re.Pattern[str] | None:
    """Any of the words, in folded text; the group's number tells which."""
    parts: dict[str, None] = {}
    for needle in needles:
        for position, word in enumerate(needle.words):
            going_on = needle.prefix and position == len(needle.words) - 1
            parts[_whole(word, going_on)] = None
    return re.compile("|".join(f"({part})" for part in parts)) if parts else None


def _whole(word: str, going_on: bool) -> str:
    """A word that ends where it ends; pairs of characters stand inside of others."""
    if UNSPACED.fullmatch(word):
        return re.escape(word)
    end = r"[^\W_]*+" if going_on else r"(?![^\W_])"
    return rf"(?<![^\W_]){re.escape(word)}{end}"


def _folded(text: str) -> Iterator[tuple[int, str]]:
    """The text in parts whose places are those of the text, or nearly so."""
    folded = fold(text)
    if len(folded) == len(text):
        yield 0, folded
        return
    for start in range(0, len(text), STEP):
        yield start, fold(text[start : start + STEP])


def _followed(text: str) -> tuple[str, list[int]]:
    """A short text folded character by character, and where each is from."""
    folded = fold(text)
    if len(folded) == len(text) and text.isascii():
        return folded, list(range(len(text)))
    parts, origins = [], []
    for at, character in enumerate(text):
        part = fold(character)
        parts.append(part)
        origins += [at] * len(part)
    return "".join(parts), origins
