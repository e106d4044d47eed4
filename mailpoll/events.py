"""The event log as its readers see it: numbered without gaps, in an order that never changes.

Transactions commit in another order than they begin, so that the ids of what they write appear out
of order: a reader who remembers the highest id that it saw would miss some. So events get their
``number`` afterwards, from what is committed, by one at a time. Of two events of an account the
second was written by who saw the first, and gets the higher number.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson

from . import database
from .models import EmailAccount, EmailEvent, EventType

#: Events numbered in one transaction, and removed in one.
PAGE = 1_000
#: Seconds between two looks for new events while somebody waits for them.
LOOK = 0.25

COUNTER = database.Statement("SELECT number FROM email_event_counter WHERE id = 1 FOR UPDATE")
COUNT_ON = database.Statement("UPDATE email_event_counter SET number = ? WHERE id = 1")
ANY_UNNUMBERED = database.Statement("SELECT 1 FROM email_events WHERE number IS NULL LIMIT 1")
UNNUMBERED = database.Statement(
    "SELECT id FROM email_events WHERE number IS NULL ORDER BY id LIMIT ?"
)
NUMBER = database.Statement("UPDATE email_events SET number = ? WHERE id = ?")
LAST = database.Statement("SELECT number FROM email_event_counter WHERE id = 1")
LAST_OF_STORAGE = database.Statement("""
    SELECT type FROM email_events
    WHERE account_id IS NULL AND type IN ('storage.fallback', 'storage.recovered')
    ORDER BY id DESC LIMIT 1
""")
FORGET = database.Statement("""
    DELETE FROM email_events WHERE id IN (
        SELECT id FROM email_events WHERE created_at < ? AND number <= ?
        ORDER BY created_at LIMIT ?)
""")


@dataclass(frozen=True, slots=True)
class Event:
    """An event with the public name of its account, ``None`` where it is about none."""

    number: int
    type: EventType
    account_id: int | None
    account_uuid: str | None
    message_id: int | None
    data: dict[str, Any]
    created_at: datetime

    def public(self) -> dict[str, Any]:
        """What readers are told."""
        return {
            "id": self.number,
            "type": str(self.type),
            "account_id": self.account_uuid,
            "message_id": self.message_id,
            "data": self.data,
            "created_at": self.created_at.isoformat().replace("+00:00", "Z"),
        }

    def json(self) -> bytes:
        return orjson.dumps(self.public())


def last() -> int:
    """The highest number so far; 0 when there was no event yet."""
    number_all()
    with database.connected():
        return int(LAST.run().fetchone()[0])


def number_all() -> None:
    """Give every committed event its number."""
    while _number_page():
        pass


def _number_page() -> bool:
    """Number some; whether there may be more."""
    with database.connected():
        if ANY_UNNUMBERED.run().fetchone() is None:
            return False
    # A number that was told must not be given to another event after a power cut.
    with database.transaction():
        (number,) = COUNTER.run().fetchone()
        ids = [event_id for (event_id,) in UNNUMBERED.run(PAGE).fetchall()]
        numbered = list(enumerate(ids, number + 1))
        NUMBER.run_many(numbered)
        COUNT_ON.run(number + len(ids))
    return len(ids) == PAGE


def read(
    after: int,
    limit: int,
    types: Sequence[str] | None = None,
    account_id: int | None = None,
    *,
    newest: bool = False,
) -> list[Event]:
    """Events behind the number ``after``, in their order.

    Parameters:
      types, account_id: only of these; ``None`` is all.
      newest: the last of them, and these first.
    """
    number_all()
    table = EmailEvent
    with database.connected():
        query = (
            table.select(table, EmailAccount.id, EmailAccount.uuid)
            .left_outer_join(EmailAccount, table.account_id == EmailAccount.id, attr="account")
            .where(table.number > after)
            .order_by(table.number.desc() if newest else table.number)
            .limit(limit)
        )
        if types is not None:
            query = query.where(table.type.in_(list(types)))
        if account_id is not None:
            query = query.where(table.account_id == account_id)
        return [_event(row) for row in query]


def _event(row: EmailEvent) -> Event:
    return Event(
        row.number,
        EventType(row.type),
        row.account_id,
        row.account.uuid if row.account_id else None,
        row.message_id,
        row.data,
        row.created_at,
    )


def look(
    after: int,
    limit: int,
    seconds: float,
    types: Sequence[str] | None = None,
    account_id: int | None = None,
) -> tuple[list[Event], int]:
    """The same as ``read``, but waits up to ``seconds`` for the first event.

    Returns:
      the events, and the number behind which the next look may begin: of rare types the log may
      hold none for long, and what was looked through once need not be again.
    """
    end = time.monotonic() + seconds
    while True:
        upto = max(after, last())
        found = read(after, limit, types, account_id)
        if len(found) == limit:
            return found, found[-1].number
        if found or time.monotonic() >= end:
            return found, max([upto, *(event.number for event in found)])
        after = upto
        time.sleep(LOOK)


def follow(
    after: int,
    seconds: float,
    types: Sequence[str] | None = None,
    account_id: int | None = None,
    pause: float = 15,
) -> Iterator[Event | None]:
    """Events as they come for so many seconds; ``None`` after each ``pause`` without one."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        found, after = look(after, PAGE, min(pause, left), types, account_id)
        if not found:
            yield None
        yield from found


def forget(days: int, received: int | None) -> int:
    """Remove old events; how many.

    Parameters:
      days: age of what is removed.
      received: the number up to which every endpoint has got its events; ``None``: there is none.
    """
    number_all()
    oldest = database.timestamp(database.now() - timedelta(days=days))
    upto = last() if received is None else received
    removed = 0
    while True:
        with database.transaction(durable=False):
            gone = int(FORGET.run(oldest, upto, PAGE).rowcount)
        removed += gone
        if gone < PAGE:
            return removed


def note_storage(fallen_back: bool) -> None:
    """Tell when blobs begin to lie in local files instead of the store, and when none does.

    In a transaction of its own, after a look at all rows: who commits a batch of mail does not know
    whether others have blobs in local files already.
    """
    kind = EventType.STORAGE_FALLBACK if fallen_back else EventType.STORAGE_RECOVERED
    with database.transaction():
        COUNTER.run()  # one at a time: both of two would tell it
        told = LAST_OF_STORAGE.run().fetchone()
        before = told[0] if told else EventType.STORAGE_RECOVERED
        if before != kind:
            EmailEvent.add(kind)
