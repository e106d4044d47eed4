"""What the index has of a message: its words, one after the other, each with its place.

A word of the subject, the people or the names of attachments stands there twice: as it is, and
marked with where it is from (``s_invoice``), which is how ``subject:invoice`` is found by an index
of plain words. Marks are words too: ``a_17`` (the account), ``m_202611`` (the month of its
arrival), ``h_attachment``, ``x_`` (all).
No word of a text has "_" in it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, chain, count, takewhile
from typing import Any

from ..words import MAX_WORD, words

#: Raised when other words are made of the same text: what is older is indexed anew.
VERSION = 1
#: Words of a message that are indexed. PostgreSQL numbers places up to 16,383.
MAX_WORDS = 16_000
#: Bytes of them in UTF-8. PostgreSQL takes 1 MB, with the places.
MAX_BYTES = 400_000
#: So many words never take more: a mark and the longest word each, of characters of four bytes.
FEW_WORDS = MAX_BYTES // (4 * (2 + MAX_WORD))
#: Places of one word of a message. PostgreSQL keeps 256 at most.
MAX_PLACES = 255
#: Characters of a subject, people in one field, names of attachments that are looked at.
MAX_SUBJECT, MAX_PEOPLE, MAX_NAMES = 2_000, 200, 200
#: Characters of a name or an address.
MAX_NAME = 300

#: What marks a word of a field.
FROM, TO, SUBJECT, NAME = "f_", "t_", "s_", "n_"
ALL, ATTACHMENT, REPLY = "x_", "h_attachment", "h_reply"
#: In place of a word that is not indexed, so that its neighbours stay apart.
GAP = "_"


def of_account(account_id: int) -> str:
    """The word that every message of an account has."""
    return f"a_{account_id}"


def of_month(month: int) -> str:
    """The word that all messages of a month have; months count from the year 0."""
    return f"m_{month // 12}{month % 12 + 1:02}"


def month_of(moment: datetime) -> int:
    """The month of a moment in UTC, as a number that counts on."""
    return moment.year * 12 + moment.month - 1


@dataclass(frozen=True, slots=True)
class Content:
    """What is searched of a message.

    Parameters:
      senders, recipients, others: names and addresses; recipients are those of To, Cc and Bcc.
      files: the names of its attachments.
      attached: it has an attachment that is not shown in its text.
      reply: it refers to another message.
    """

    subject: str
    senders: Sequence[str]
    recipients: Sequence[str]
    others: Sequence[str]
    files: Sequence[str]
    text: str
    attached: bool
    reply: bool


@dataclass(frozen=True, slots=True)
class Document:
    """A message's words in order, and those of its head, by which hits are ranked."""

    words: list[str]
    head: str

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def vector(self) -> str:
        """As a literal of PostgreSQL's tsvector. Words are letters and digits: nothing to quote."""
        places: dict[str, list[int]] = {}
        for place, word in enumerate(self.words, 1):
            places.setdefault(word, []).append(place)
        places.pop(GAP, None)
        return " ".join(f"'{word}':{','.join(map(str, at))}" for word, at in places.items())


def document(account_id: int, moment: datetime, content: Content, limit: int) -> Document:
    """The words of a message.

    Parameters:
      moment: when it arrived, in UTC.
      limit: characters of the text that are indexed.
    """
    head = list(
        chain(
            _field(SUBJECT, [content.subject]),
            _field(FROM, content.senders[:MAX_PEOPLE]),
            _field(TO, content.recipients[:MAX_PEOPLE]),
            _field(NAME, content.files[:MAX_NAMES]),
        )
    )
    marks = [ALL, of_account(account_id), of_month(month_of(moment))]
    marks += [ATTACHMENT] if content.attached else []
    marks += [REPLY] if content.reply else []
    others = chain.from_iterable(words(one[:MAX_NAME]) for one in content.others[:MAX_PEOPLE])
    whole = chain(marks, head, others, [GAP], words(content.text[:limit]))
    fields = dict.fromkeys(word for word in head if word[1:2] == "_")
    return Document(_bounded(list(whole)), f" {' '.join(fields)} ")


def _field(mark: str, values: Iterable[str]) -> Iterator[str]:
    """The words of a field, and then marked: so no phrase goes from one field into the next."""
    length = MAX_SUBJECT if mark == SUBJECT else MAX_NAME
    found = [words(value[:length]) for value in values]
    yield from _apart(found)
    yield from _apart([[mark + word for word in value] for value in found])


def _apart(values: Iterable[list[str]]) -> Iterator[str]:
    for position, value in enumerate(values):
        if position:
            yield GAP
        yield from value


def _bounded(found: list[str]) -> list[str]:
    """No more words, bytes and places of one word than both databases take."""
    found = found[:MAX_WORDS]
    if len(found) > FEW_WORDS and len("".join(found).encode()) > MAX_BYTES:
        sizes = accumulate(len(word.encode()) for word in found)
        found = found[: sum(1 for _ in takewhile(MAX_BYTES.__ge__, sizes))]
    times = Counter(found)
    if max(times.values(), default=0) <= MAX_PLACES:
        return found
    often = {word: count(1) for word, number in times.items() if number > MAX_PLACES}
    return [
        GAP if word in often and next(often[word]) > MAX_PLACES else word  # its later places
        for word in found
    ]


def people(addresses: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names and addresses as one text each."""
    return [f"{one['name']} {one['address']}" for one in addresses]
