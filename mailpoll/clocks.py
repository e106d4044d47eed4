"""What waits until a moment, when the database's clock is set back.

Such a moment lies too far ahead then, by as much: a mailbox would not be polled for a day after a
clock that was a day ahead. By how much is told by the scheduler's last tick, to a minute, and by
the last poll of any mailbox: both lie ahead, too.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

import structlog
from peewee import fn

from . import database
from .models import (
    Alarm,
    EmailAccount,
    EmailDamage,
    EmailExport,
    EmailFetchFailure,
    EmailHost,
    EmailJob,
    EmailRawMessage,
    EmailScrub,
    Mark,
    MarkName,
    Table,
    WebhookEndpoint,
)

log = structlog.get_logger()

#: A clock that wavers by less is let alone.
LEAST = timedelta(seconds=30)

#: Columns until which somebody waits, or has something for himself; and what tells of the clock.
WAITS: Mapping[type[Table], tuple[str, ...]] = {
    EmailAccount: (
        *("next_poll_at", "queued_until", "lease_until", "watched_until"),
        *("not_before", "token_claimed_until", "last_poll_at"),
    ),
    EmailHost: ("not_before",),
    EmailRawMessage: ("next_attempt_at",),
    EmailFetchFailure: ("next_attempt_at",),
    EmailDamage: ("next_attempt_at",),
    WebhookEndpoint: ("next_attempt_at", "lease_until"),
    EmailJob: ("lease_until",),
    EmailExport: ("lease_until",),
    EmailScrub: ("lease_until",),
    Alarm: ("claimed_until",),
}


def tick() -> None:
    """Note the scheduler's tick; if what has happened lies ahead, bring all nearer that waits.

    A lease that ends too soon of it harms nobody: whoever had it is fenced out.
    """
    moment = database.now()
    ahead = max((one - moment for one in _happened()), default=timedelta())
    with database.transaction():
        if ahead > LEAST:
            log.warning("the database's clock was set back", seconds=int(ahead.total_seconds()))
            _bring_nearer(moment, ahead)
        Mark.set(MarkName.TICK)


def _happened() -> Iterator[datetime]:
    if last := Mark.all().get(MarkName.TICK):
        yield last.at
    with database.connected():
        polled = EmailAccount.select(fn.MAX(EmailAccount.last_poll_at)).scalar()
    if polled:
        yield database.moment(polled)


def _bring_nearer(moment: datetime, ahead: timedelta) -> None:
    seconds = ahead.total_seconds()
    for table, columns in WAITS.items():
        for column in columns:
            if database.is_sqlite():
                sooner = f"strftime('%Y-%m-%d %H:%M:%f000+00:00', {column}, ?)"
                by: str | float = f"-{seconds:.3f} seconds"
            else:
                sooner, by = f"{column} - make_interval(secs => ?)", seconds
            sql = f"UPDATE {table._meta.table_name} SET {column} = {sooner} WHERE {column} > ?"  # noqa: S608
            database.Statement(sql).run(by, database.timestamp(moment))
