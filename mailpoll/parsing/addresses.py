"""Address fields into mailboxes (RFC 5322 3.4), leniently and in linear time.

Real fields are full of what the grammar forbids (unquoted dots and commas, missing brackets,
encoded words inside quotes). A tokenizer that never refuses serves better than a grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .charsets import storable
from .headers import decode_words
from .message import Address

MAX_ADDRESSES = 2_000

_ATEXT = r"[^\s\"<>(),:;@\\\[\]]"
_SIMPLE = re.compile(  # possessive, so that blanks are tried only one way
    rf"\s*+(?:(?:\"([^\"\\]*+)\"|([^\"<>(),:;@\\\[\]]*+))\s*+<({_ATEXT}++@{_ATEXT}++)>"
    rf"|({_ATEXT}++@{_ATEXT}++))\s*+(?:,|$)"
)
_TOKEN = re.compile(
    r"\"((?:[^\"\\]|\\.)*)\"?"  # quoted string, perhaps without its end
    r"|<([^<>]*)>?"  # bracketed address
    r"|([(),:;])"
    r"|(\[[^\]\s]*\]?|[^\s\"<>(),:;\[]+|\S)"  # domain literal or a run of anything else
    r"|(\s+)",
    re.S,
)


def parse_addresses(value: str) -> list[Address]:
    """Return the mailboxes of a field, groups flattened, at most `MAX_ADDRESSES`."""
    found: list[Address] = []
    at = 0
    while at < len(value) and len(found) < MAX_ADDRESSES:
        match = _SIMPLE.match(value, at)
        if match is None:
            return found + _parse_hard(value[at:], MAX_ADDRESSES - len(found))
        quoted, words, bracketed, bare = match.groups()
        name = decode_words((quoted or words or "").strip())
        found.append(Address(name, storable(bracketed or bare)))
        at = match.end()
    return found


def _parse_hard(value: str, limit: int) -> list[Address]:
    found: list[Address] = []
    mailbox = _Mailbox()
    depth = 0
    for token in _tokens(value):
        quoted, bracketed, mark, word, _ = token.groups()
        if depth or mark in {"(", ")"}:  # comments nest; what they hold is at most a name
            around = depth
            depth += (mark == "(") - (mark == ")" and depth > 0)
            if around and depth:
                mailbox.comment.append(token.group())
        elif mark == ":":
            mailbox = _Mailbox()  # the words before it name a group
        elif mark:
            found += mailbox.finish()
            mailbox = _Mailbox()
            if len(found) >= limit:
                return found[:limit]
        elif quoted is not None:
            mailbox.words.append(re.sub(r"\\(.)", r"\1", quoted))
            mailbox.raw.append(token.group())
        elif bracketed is not None:
            mailbox.bracketed = mailbox.bracketed or bracketed.strip()
        else:
            mailbox.words.append(word or " ")
            mailbox.raw.append(word or "")
    return (found + mailbox.finish())[:limit]


def _tokens(value: str) -> Iterator[re.Match[str]]:
    """Yield the tokens; a quote that nothing ends is left out, as it would hide what follows."""
    for token in _TOKEN.finditer(value):
        if token.end(1) == token.end():
            yield from _TOKEN.finditer(token[1].replace('"', " "))
        else:
            yield token


class _Mailbox:
    """The tokens of one mailbox until its end is seen."""

    __slots__ = ("bracketed", "comment", "raw", "words")

    def __init__(self) -> None:
        self.words: list[str] = []
        self.raw: list[str] = []
        self.comment: list[str] = []
        self.bracketed = ""

    def finish(self) -> list[Address]:
        name = " ".join("".join(self.words).split())
        if self.bracketed:
            # A source route (RFC 5322 4.4) precedes the address: <@a,@b:user@host>.
            address = self.bracketed.rpartition(":")[2] or self.bracketed
            if '"' not in address:  # a quoted local part may hold blanks
                address = "".join(address.split())
            return [Address(decode_words(name), storable(address))]
        address = "".join(self.raw)
        if "@" in address:
            comment = " ".join("".join(self.comment).split())
            return [Address(decode_words(comment), decode_words(address))]
        return [Address(decode_words(name), "")] if name else []
