"""Which messages of an account belong together: conversations, as mail programs show them.

A message belongs to whatever names it and whatever it names (Message-ID, In-Reply-To, References),
so that a thread is a connected part of a graph, and the order in which its messages come in does
not matter. A reply that names nothing, of a program that drops these fields, belongs to messages of
its subject between the same two people of about the same time: see docs/search.md. A thread's
number is that of one of its messages; when threads meet, the lowest number stays.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from . import database
from .models import EmailRawMessage
from .words import fold

#: Identifiers of References that are looked at: the first, which began it, and so many last ones.
LAST_REFERENCES = 30
#: Lengths of identifiers, in characters.
IDENTIFIER = range(3, 999)
#: Recipients whose pairs with the sender are looked at.
RECIPIENTS = 5
#: Characters that a subject must have, to be one that two messages share for a reason.
MIN_SUBJECT = 3
#: Characters of a subject that are looked at.
MAX_SUBJECT = 400
#: Seconds of the spans by which "about the same time" is measured: 30 days.
SPAN = 30 * 86_400

#: "Re:", "AW:", "Fwd:", "Re[2]:" and so on, after ``fold``.
_PREFIX = re.compile(
    r"\s*(?:re|aw|antw|sv|vs|odp|r|rif|ref|res|rv|fw|fwd|wg|tr|enc|i|vb|vl|doorst|ynt|ilt"
    r"|回复|答复|回覆|答覆|转发|轉寄|返信|転送|回信|답장|회신|전달)"
    r"(?:\[\d{1,3}\]|\(\d{1,3}\))?:"
)
_TAG = re.compile(r"\s*\[[^\[\]]{1,40}\]")
_BLANK = re.compile(r"\s")

KEYS = database.Statement("""
    SELECT key, thread_id, joins FROM email_thread_keys WHERE account_id = ? AND key IN []
""")
INSERT_KEY = database.Statement("""
    INSERT INTO email_thread_keys (account_id, key, thread_id, joins) VALUES (?, ?, ?, ?)
    ON CONFLICT (account_id, key, thread_id) DO UPDATE
    SET joins = email_thread_keys.joins OR excluded.joins
""")
MOVE_MESSAGES = database.Statement("""
    UPDATE email_raw_messages SET thread_id = ? WHERE account_id = ? AND thread_id IN []
""")
KEYS_OF = database.Statement("""
    SELECT key, joins FROM email_thread_keys WHERE account_id = ? AND thread_id IN []
""")
FORGET_KEYS = database.Statement("""
    DELETE FROM email_thread_keys WHERE account_id = ? AND thread_id IN []
""")
FORGET_EMPTY = database.Statement("""
    DELETE FROM email_thread_keys WHERE account_id = ? AND thread_id IN [] AND NOT EXISTS (
        SELECT 1 FROM email_raw_messages m WHERE m.thread_id = email_thread_keys.thread_id)
""")
#: The last of the next ties, by thread.
LAST = database.Statement("""
    SELECT MAX(thread_id) FROM (SELECT thread_id FROM email_thread_keys
        WHERE thread_id > ? ORDER BY thread_id LIMIT ?) AS page
""")
EMPTY = database.Statement("""
    SELECT DISTINCT account_id, thread_id FROM email_thread_keys
    WHERE thread_id > ? AND thread_id <= ? AND NOT EXISTS (
        SELECT 1 FROM email_raw_messages m WHERE m.thread_id = email_thread_keys.thread_id)
""")
#: The number is any that nothing else locks by.
LOCK = database.Statement("SELECT pg_advisory_xact_lock(7237123426365898752 + ?)")
#: Keys in one statement.
CHUNK = 500
#: Ties that are looked at together.
PAGE = 5_000


@dataclass(frozen=True, slots=True)
class Member:
    """A message with what ties it to others, as numbers.

    Parameters:
      names: of the identifiers that it has or refers to.
      pairs: of its subject with two people and a time.
      joins: it is a reply that refers to nothing: whatever has one of its pairs belongs to it.
    """

    message_id: int
    names: tuple[int, ...]
    pairs: tuple[int, ...]
    joins: bool


def member(
    message_id: int,
    account_uuid: str,
    *,
    own: str,
    in_reply_to: str,
    references: Sequence[str],
    subject: str,
    sender: str | None,
    recipients: Sequence[str],
    moment: datetime,
) -> Member:
    """What ties a message to others.

    Parameters:
      own: its Message-ID; this and the others are without angle brackets, '' when missing.
      moment: when it was sent or, failing that, arrived.
    """
    few = [*references[:1], *references[1:][-LAST_REFERENCES:]]
    given = [one for one in (in_reply_to, *few) if _valid(one)]
    names = dict.fromkeys([own, *given] if _valid(own) else given)
    base, prefixed = base_subject(subject)
    joins = prefixed and not given
    salt = account_uuid.encode()
    pairs: list[str] = []
    if len(base) >= MIN_SUBJECT and sender:
        span = int(moment.timestamp()) // SPAN
        spans = (span - 1, span) if joins else (span,)
        others = dict.fromkeys(one.lower() for one in recipients[:RECIPIENTS] if one)
        for other in others:
            two = sorted((sender.lower(), other))
            pairs += ["\0".join((base, *two, str(one))) for one in spans]
    return Member(
        message_id,
        tuple(_number(b"n", salt, one) for one in names),
        tuple(_number(b"p", salt, one) for one in pairs),
        joins and bool(pairs),
    )


def stored_member(row: EmailRawMessage) -> Member:
    """The same of a message's row, which has its account."""
    senders: list[dict[str, str]] = row.from_addresses or []
    recipients = [*(row.to_addresses or []), *(row.cc_addresses or [])]
    return member(
        row.id,
        row.account.uuid,
        own=row.message_id or "",
        in_reply_to=row.in_reply_to or "",
        references=row.reference_ids or [],
        subject=row.subject or "",
        sender=senders[0]["address"] if senders else None,
        recipients=[one["address"] for one in recipients],
        moment=row.date or row.internal_date,
    )


def base_subject(subject: str) -> tuple[str, bool]:
    """A subject without what replies and mailing lists put before it, and whether it is a reply's.

    Folded, so that two programs' spellings are one.
    """
    rest = fold(subject[:MAX_SUBJECT])
    prefixed = False
    at = 0
    while True:
        if found := _PREFIX.match(rest, at):
            prefixed = True
        elif not (found := _TAG.match(rest, at)) or found.end() == len(rest):
            return " ".join(rest[at:].split()), prefixed
        at = found.end()


def _valid(identifier: str) -> bool:
    """Whether it is one, and not a phrase that many messages may have."""
    return len(identifier) in IDENTIFIER and "@" in identifier and not _BLANK.search(identifier)


def _number(kind: bytes, salt: bytes, text: str) -> int:
    """63 bits of a hash that nobody can aim at who does not know the account's id."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=salt, person=kind).digest()
    return int.from_bytes(digest, "big") >> 1


def lock(account_id: int) -> None:
    """Be the only transaction that changes an account's threads, until it ends.

    Not with the account's row: polls lock that first, and messages afterwards.
    """
    if not database.is_sqlite():
        LOCK.run(account_id)


class _Found:
    """Threads by key, and which of them have become one."""

    def __init__(self, rows: Iterable[tuple[int, int, bool]]) -> None:
        self.threads: dict[int, set[int]] = {}
        self.joining: set[int] = set()
        self._parents: dict[int, int] = {}
        for key, thread_id, joins in rows:
            self.threads.setdefault(key, set()).add(thread_id)
            if joins:
                self.joining.add(key)

    def root(self, thread_id: int) -> int:
        while (parent := self._parents.get(thread_id, thread_id)) != thread_id:
            thread_id = parent
        return thread_id

    def place(self, one: Member) -> int:
        """The thread of a message, after all that it ties together has become one."""
        tied = [*one.names, *(key for key in one.pairs if one.joins or key in self.joining)]
        found = {self.root(each) for key in tied for each in self.threads.get(key, ())}
        thread_id = min(found, default=one.message_id)
        self._parents |= dict.fromkeys(found - {thread_id}, thread_id)
        for key in (*one.names, *one.pairs):
            self.threads.setdefault(key, set()).add(thread_id)
        self.joining.update(one.names, one.pairs if one.joins else ())
        return thread_id

    def merged(self) -> dict[int, list[int]]:
        """The threads that are no more, by the one that each is part of now."""
        found: dict[int, list[int]] = {}
        for thread_id in self._parents:
            found.setdefault(self.root(thread_id), []).append(thread_id)
        return found


def assign(account_id: int, members: Sequence[Member]) -> dict[int, int]:
    """Find the threads of messages of one account, inside the caller's transaction.

    Other messages move where these tie threads together. Done again, it changes nothing.

    Returns:
      thread by message, to be written by the caller.
    """
    lock(account_id)
    keys = list(dict.fromkeys(key for one in members for key in (*one.names, *one.pairs)))
    found = _Found(_rows(account_id, keys))
    before = {(key, each) for key, threads in found.threads.items() for each in threads}
    joined = set(found.joining)
    placed = {one.message_id: found.place(one) for one in members}
    for winner, losers in found.merged().items():
        _merge(account_id, winner, losers)
    rows = {
        (key, found.root(each)): key in found.joining
        for key, threads in found.threads.items()
        for each in threads
    }
    changed = [
        (account_id, key, thread_id, joins)
        for (key, thread_id), joins in rows.items()
        if (key, thread_id) not in before or (joins and key not in joined)
    ]
    INSERT_KEY.run_many(sorted(changed))
    return {message_id: found.root(thread_id) for message_id, thread_id in placed.items()}


def forget_empty(account_id: int, thread_ids: Sequence[int]) -> None:
    """Drop what ties later messages to threads of which none is left.

    In a transaction of its own: whoever holds rows of messages may wait for whoever makes threads.
    """
    with database.transaction(durable=False):
        lock(account_id)
        FORGET_EMPTY.run(account_id, list(thread_ids))


def forget_all_empty() -> int:
    """Do the same for all threads: whoever deleted messages may have died before it came to that.

    Returns:
      of how many threads.
    """
    forgotten = after = 0
    while (last := _last(after)) is not None:
        with database.connected():
            empty = EMPTY.run(after, last).fetchall()
        by_account: dict[int, list[int]] = {}
        for account_id, thread_id in empty:
            by_account.setdefault(account_id, []).append(thread_id)
        for account_id, thread_ids in by_account.items():
            forget_empty(account_id, thread_ids)
        forgotten += len(empty)
        after = last
    return forgotten


def _last(after: int) -> int | None:
    with database.connected():
        last: int | None = LAST.run(after, PAGE).fetchone()[0]
    return last


def _rows(account_id: int, keys: list[int]) -> Iterable[tuple[int, int, bool]]:
    for start in range(0, len(keys), CHUNK):
        yield from KEYS.run(account_id, keys[start : start + CHUNK]).fetchall()


def _merge(account_id: int, winner: int, losers: list[int]) -> None:
    """Let threads be part of another one: their messages, and what ties later ones to them."""
    for start in range(0, len(losers), CHUNK):
        some = losers[start : start + CHUNK]
        MOVE_MESSAGES.run(winner, account_id, some)
        keys = KEYS_OF.run(account_id, some).fetchall()
        FORGET_KEYS.run(account_id, some)
        INSERT_KEY.run_many([(account_id, key, winner, joins) for key, joins in keys])
