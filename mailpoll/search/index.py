"""The index in the database, written in the transactions that write the messages.

``email_search`` has a row for each processed message. Its id is the message's place in time, so
that the newest hits come first without sorting. The words are in FTS5's table in SQLite, and in a
column with a GIN index in PostgreSQL; both go with the row, and the row goes with the message.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import peewee
from peewee import fn

from .. import database, threads
from ..models import (
    EmailAccount,
    EmailAttachment,
    EmailRawMessage,
    EmailSearch,
    Mark,
    MarkName,
    MessageStatus,
)
from ..settings import settings
from . import document
from .document import Content, Document, people

#: Bits of a place below its seconds: for messages of the same second.
BITS = 12
#: Messages that are indexed in one transaction when the index is made anew.
PAGE = 50
#: Pages of the index that are rewritten in one transaction.
MERGED = 200

FORGET = database.Statement("DELETE FROM email_search WHERE message_id IN []")
INSERT = """
    INSERT INTO email_search (id, account_id, message_id, size, version, head{more})
    VALUES (?, ?, ?, ?, ?, ?{mark}) ON CONFLICT (id) DO NOTHING
"""
INSERT_SQLITE = database.Statement(INSERT.format(more="", mark=""))
INSERT_POSTGRESQL = database.Statement(INSERT.format(more=", words", mark=", ?"))
INSERT_WORDS = database.Statement("INSERT INTO email_search_index (rowid, words) VALUES (?, ?)")
ORPHANS = database.Statement("""
    SELECT s.id FROM email_search s WHERE s.account_id = ?
    AND NOT EXISTS (SELECT 1 FROM email_raw_messages m WHERE m.id = s.message_id) LIMIT 1000
""")
FORGET_ORPHAN = database.Statement("""
    DELETE FROM email_search WHERE id = ? AND NOT EXISTS (
        SELECT 1 FROM email_raw_messages m WHERE m.id = email_search.message_id)
""")
LEFTOVERS = database.Statement("""
    SELECT rowid FROM email_search_index WHERE email_search_index MATCH ?
    EXCEPT SELECT id FROM email_search WHERE account_id = ? LIMIT 1000
""")
FORGET_LEFTOVER = database.Statement("""
    DELETE FROM email_search_index WHERE rowid = ?
    AND NOT EXISTS (SELECT 1 FROM email_search WHERE id = ?)
""")
THERE = database.Statement("SELECT message_id FROM email_search WHERE message_id IN []")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A message's words, made before the transaction that stores them."""

    account_id: int
    message_id: int
    size: int
    moment: datetime
    document: Document

    def row(self, place: int) -> tuple[Any, ...]:
        head = self.document.head
        return (place, self.account_id, self.message_id, self.size, document.VERSION, head)


def place_of(moment: datetime, message_id: int = 0) -> int:
    """The place of a message, or the first of its second."""
    return max(0, int(moment.timestamp())) << BITS | message_id % (1 << BITS)


def moment_of(place: int) -> datetime:
    """The second of a place."""
    return datetime.fromtimestamp(place >> BITS, UTC)


def prepare(
    account_id: int, message_id: int, size: int, moment: datetime, content: Content
) -> Prepared:
    """Make the words of a message.

    Parameters:
      moment: when it arrived, by which it is sorted.
    """
    shown = datetime.fromtimestamp(max(0, moment.timestamp()), UTC)
    made = document.document(account_id, shown, content, settings().search_text)
    return Prepared(account_id, message_id, size, moment, made)


def add(messages: Iterable[Prepared]) -> None:
    """Index messages, inside the caller's transaction; those that are there are indexed anew."""
    # FTS5 writes a segment of its own whenever a row comes before the one it was given last.
    placed = [(place_of(one.moment, one.message_id), one) for one in messages]
    placed.sort(key=_first)
    if not placed:
        return
    FORGET.run([one.message_id for _, one in placed])
    if _insert(placed) < len(placed):
        placed = _elsewhere(placed)
    if database.is_sqlite():
        INSERT_WORDS.run_many([(place, one.document.text) for place, one in placed])


Placed = list[tuple[int, Prepared]]


def _insert(placed: Placed) -> int:
    if database.is_sqlite():
        return INSERT_SQLITE.run_many([one.row(place) for place, one in placed])
    rows = [(*one.row(place), one.document.vector) for place, one in placed]
    return INSERT_POSTGRESQL.run_many(rows)


def _elsewhere(placed: Placed) -> Placed:
    """Where all of them are, after other places were found for those whose own was taken.

    Thousands of messages of one second spread over the seconds behind it.
    """
    ids = [one.message_id for _, one in placed]
    there = {message_id for (message_id,) in THERE.run(ids).fetchall()}
    found = [(place, one) for place, one in placed if one.message_id in there]
    for place, one in placed:
        room = 1 << BITS
        other = place
        while one.message_id not in there:
            other = (place >> BITS << BITS) + random.randrange(room)  # noqa: S311
            room *= 2
            if _insert([(other, one)]):
                there.add(one.message_id)
                found.append((other, one))
    return sorted(found, key=_first)


def _first(pair: tuple[int, Prepared]) -> int:
    return pair[0]


def erase() -> Iterator[int]:
    """Let nothing stay in SQLite's index of what was deleted from it, a part at a time.

    Deleted words stay in FTS5's segments until these are merged. Each part is a transaction of its
    own, and tells how many pages it wrote.
    """
    if not database.is_sqlite():
        return
    amount = -MERGED  # negative: all segments into one
    while True:
        with database.transaction(durable=False):
            before = _changes()
            database.proxy.execute_sql(
                "INSERT INTO email_search_index (email_search_index, rank) VALUES ('merge', ?)",
                (amount,),
            )
            written = _changes() - before
        if written < 2:
            return
        yield written
        amount = MERGED


def _changes() -> int:
    return int(database.proxy.execute_sql("SELECT total_changes()").fetchone()[0])


# Made anew


@dataclass(slots=True)
class Progress:
    """How far the index is made anew: ``done`` of ``total``; ``position`` is the last one's id."""

    total: int
    done: int = 0
    position: int = 0


def catch_up(
    account: EmailAccount | None,
    told: Callable[[Progress], None],
    *,
    everything: bool = False,
) -> Progress:
    """Index messages that are not indexed, or were by another version; give them their threads.

    Can be ended at any time and goes on where it was when it is run again; everything else may run.

    Parameters:
      account: only this one's; ``None`` is all.
      everything: also those that are indexed, for instance after a setting was changed.
    """
    progress = Progress(0, position=_begun(account) if everything else 0)
    with database.connected():
        progress.total = int(_due(account, progress.position, everything).count())
    while ids := _next(account, progress.position, everything):
        index_stored(ids)
        progress.done += len(ids)
        progress.position = ids[-1]
        if everything:
            _note(account, progress.position)
        told(progress)
    if everything:
        _note(account, 0)
    return progress


def _begun(account: EmailAccount | None) -> int:
    """The last message that was indexed anew by a run that was ended; 0: none was."""
    if account is None:
        mark = Mark.all().get(MarkName.REINDEX)
        return mark.value if mark else 0
    with database.connected():
        row = EmailAccount.by_id(account.id)
    return row.reindexed_to if row else 0


def _note(account: EmailAccount | None, position: int) -> None:
    if account is None:
        Mark.set(MarkName.REINDEX, position)
        return
    with database.transaction(durable=False):
        database.update(EmailAccount, {"reindexed_to": position}, "id = ?", account.id)


def _due(account: EmailAccount | None, after: int, everything: bool) -> peewee.ModelSelect:
    table, row = EmailRawMessage, EmailSearch
    found = table.select(table.id).where(table.id > after, table.status == MessageStatus.PROCESSED)
    if account is not None:
        found = found.where(table.account == account)
    if not everything:
        current = row.select(peewee.SQL("1")).where(
            row.message == table.id, row.version == document.VERSION
        )
        found = found.where(table.thread_id.is_null() | ~fn.EXISTS(current))
    return found


def _next(account: EmailAccount | None, after: int, everything: bool) -> list[int]:
    with database.connected():
        rows = _due(account, after, everything).order_by(EmailRawMessage.id).limit(PAGE)
        return [message_id for (message_id,) in rows.tuples()]


def index_stored(ids: Sequence[int]) -> None:
    """Index messages from their rows, unless they are gone by now."""
    table = EmailRawMessage
    with database.transaction(durable=False):
        # Whoever makes threads takes this first, and messages that move to other threads then.
        for account_id in _accounts(ids):
            threads.lock(account_id)
        page = (
            table.select(table, EmailAccount.id, EmailAccount.uuid)
            .join(EmailAccount)
            .where(table.id.in_(ids))
        )
        if not database.is_sqlite():
            page = page.for_update(of=table)
        rows = list(page.order_by(table.id))
        names = _names(rows)
        add([_prepared(row, names.get(row.id, [])) for row in rows])
        by_account: dict[int, list[threads.Member]] = {}
        for row in rows:
            by_account.setdefault(row.account_id, []).append(threads.stored_member(row))
        for account_id, members in by_account.items():
            found = threads.assign(account_id, members)
            for message_id, thread_id in found.items():
                table.update(thread_id=thread_id).where(
                    table.id == message_id,
                    table.thread_id.is_null() | (table.thread_id != thread_id),
                ).execute()


def _accounts(ids: Sequence[int]) -> list[int]:
    table = EmailRawMessage
    rows = table.select(table.account).where(table.id.in_(ids)).distinct()
    return sorted(account_id for (account_id,) in rows.tuples())


def _names(rows: Sequence[EmailRawMessage]) -> dict[int, list[EmailAttachment]]:
    table = EmailAttachment
    found: dict[int, list[EmailAttachment]] = {}
    query = table.select(table.message, table.name, table.safe_name, table.inline)
    for one in query.where(table.message.in_(rows)).order_by(table.message, table.position):
        found.setdefault(one.message_id, []).append(one)
    return found


def _prepared(row: EmailRawMessage, files: Sequence[EmailAttachment]) -> Prepared:
    content = Content(
        subject=row.subject or "",
        senders=people(row.from_addresses or []),
        recipients=people(
            [
                *(row.to_addresses or []),
                *(row.cc_addresses or []),
                *(row.bcc_addresses or []),
            ]
        ),
        others=people(row.reply_to_addresses or []),
        files=[one.name or one.safe_name for one in files],
        text=row.text_body or "",
        attached=any(not one.inline for one in files),
        reply=bool(row.in_reply_to or row.reference_ids),
    )
    return prepare(row.account_id, row.id, row.size, row.internal_date, content)


def leftovers(account_id: int) -> list[int]:
    """Places in an account's index at which no message is; a thousand at most of each kind.

    Only a damaged database has any: rows go with their messages, and SQLite's words with the rows.
    """
    with database.connected():
        rows = ORPHANS.run(account_id).fetchall()
        if database.is_sqlite():
            rows += LEFTOVERS.run(document.of_account(account_id), account_id).fetchall()
    return [place for (place,) in rows]


def forget_leftover(place: int) -> None:
    """Remove an entry of the index, unless it has its message by now."""
    with database.transaction():
        FORGET_ORPHAN.run(place)
        if database.is_sqlite():
            FORGET_LEFTOVER.run(place, place)
