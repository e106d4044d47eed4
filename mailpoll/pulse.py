"""What goes on at this moment: queues, polls, mail of the last minute, and what is late."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import redis
from peewee import fn

from . import alarms, database, queues, stats
from .broker import Broker
from .models import STORED, EmailAccount, EmailEvent, EmailRawMessage, EventType, count
from .queues import QueueSizes

#: What "per minute" looks back upon.
MINUTE = timedelta(minutes=1)
#: Running polls that are named.
NAMED = 15


@dataclass(frozen=True, slots=True)
class Pulse:
    """One look.

    Parameters:
      queues: ``None`` when Redis does not answer.
      accounts: how many there are in each state.
      late_accounts: active ones whose poll is overdue by more than a minute.
      lateness_p95_ms: how late the last polls began.
      polls_per_minute: accounts of which a poll began within the last minute.
      polling: some of the polls that run, the longest first: ``id``, ``address``, ``seconds``.
      messages_per_minute, failures_per_minute: processed, or given up, within the last minute.
      waiting: messages that are stored and not processed yet.
      oldest_pending_seconds: for how long the oldest of them that is new mail waits.
      alarms: those that hold, in words.
    """

    at: datetime
    queues: list[QueueSizes] | None
    accounts: dict[str, int]
    late_accounts: int
    lateness_p95_ms: int | None
    polls_per_minute: int
    polling: list[dict[str, Any]]
    messages_per_minute: int
    failures_per_minute: int
    waiting: int
    oldest_pending_seconds: float
    alarms: list[str]


def look(broker: Broker) -> Pulse:
    """Look once. The cost grows with what waits and came just now, not with what is stored."""
    moment = database.now()
    told = _told_since(moment - MINUTE)
    try:
        sizes = queues.sizes(broker)
    except redis.RedisError:
        sizes = None
    with database.connected():
        waiting = count(EmailRawMessage.select().where(STORED))
        begun = count(EmailAccount.select().where(EmailAccount.last_poll_at >= moment - MINUTE))
    return Pulse(
        at=moment,
        queues=sizes,
        accounts=stats.accounts_by_state(),
        late_accounts=stats.late_accounts(60),
        lateness_p95_ms=stats.lateness_p95(),
        polls_per_minute=begun,
        polling=_polling(moment),
        messages_per_minute=told.get(EventType.MESSAGE_NEW, 0),
        failures_per_minute=told.get(EventType.MESSAGE_FAILED, 0),
        waiting=waiting,
        oldest_pending_seconds=round(stats.oldest_pending(imported=False), 1),
        alarms=[alarm.words for alarm in alarms.known() if alarm.cleared_at is None],
    )


def _told_since(moment: datetime) -> dict[str, int]:
    """How many events of each type were written since."""
    table = EmailEvent
    query = table.select(table.type, fn.COUNT(table.id)).where(table.created_at >= moment)
    with database.connected():
        return dict(query.group_by(table.type).tuples())


def _polling(moment: datetime) -> list[dict[str, Any]]:
    table = EmailAccount
    rows = table.visible().where(table.lease_until > moment).order_by(table.last_poll_at, table.id)
    with database.connected():
        return [
            {"id": row.uuid, "address": row.address, "seconds": _age(row.last_poll_at, moment)}
            for row in rows.limit(NAMED)
        ]


def _age(begun: datetime | None, moment: datetime) -> float:
    return round(max(0.0, (moment - begun).total_seconds()), 1) if begun else 0.0
