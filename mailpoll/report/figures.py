"""The figures of a report: sums of whole UTC days, and how things stand when it is made.

Mail counts on the day that its server received it, as everywhere in the figures. Days are summed by
counters, so that a report costs the same however much mail there is. Tasks are counted since Redis
was emptied last: they have no days.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import redis
from peewee import fn

from .. import alarms, database, queues, stats
from ..broker import Broker
from ..middleware import task_stats
from ..models import AccountState, EmailAccount, EmailAccountDay, EmailDay

#: Days of each kind of report.
PERIODS = {"day": 1, "week": 7, "month": 30}
#: Accounts that are named.
NAMED = 10
#: Dead tasks that are looked at.
DEAD = 1_000


@dataclass(frozen=True, slots=True)
class Mail:
    """What servers received in some days. Sizes are in bytes, as downloaded and as decoded."""

    messages: int = 0
    bytes: int = 0
    attachments: int = 0
    attachment_bytes: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """A period, and the state of things at its making.

    Parameters:
      first, last: UTC days; both belong to the period.
      before: the same sums of as many days before it.
      days: each day of the period with its messages.
      accounts: those with most mail in the period.
      states: how many accounts are in each state now, and ``late``.
      troubled: accounts that an operator should look at, with why.
      messages: how many there are now by status, and without a message by verdict.
      alarms: those that hold now, with what to do.
      tasks: each task's runs; ``None`` when the queue does not answer.
      dead: tasks that failed for good within the period, newest first; ``None`` as before.
    """

    period: str
    first: date
    last: date
    made_at: datetime
    mail: Mail
    before: Mail
    days: list[dict[str, Any]]
    accounts: list[dict[str, Any]]
    states: dict[str, int]
    troubled: list[dict[str, Any]]
    messages: dict[str, int]
    alarms: list[dict[str, Any]]
    tasks: list[dict[str, Any]] | None
    dead: list[dict[str, Any]] | None


def make(broker: Broker, period: str, last: date | None = None) -> Report:
    """The report of a period.

    Parameters:
      period: one of ``PERIODS``.
      last: its last day; default: yesterday, the last one that is over, in UTC.
    """
    moment = database.now()
    last = last or moment.date() - timedelta(days=1)
    length = timedelta(days=PERIODS[period])
    first = last - length + timedelta(days=1)
    overall = stats.overall_stats()
    states = {**overall["accounts"], "late": overall["late_accounts"]}
    try:
        tasks, dead = _tasks(broker), _dead(broker, first, last)
    except redis.RedisError:
        tasks, dead = None, None
    return Report(
        period=period,
        first=first,
        last=last,
        made_at=moment,
        mail=_mail(first, last),
        before=_mail(first - length, first - timedelta(days=1)),
        days=_days(first, last),
        accounts=_accounts(first, last),
        states=states,
        troubled=_troubled(),
        messages={**overall["by_status"], **overall["unfetched"]},
        alarms=_alarms(),
        tasks=tasks,
        dead=dead,
    )


def _within(table: Any, first: date, last: date) -> Any:
    return (table.day >= first.isoformat()) & (table.day <= last.isoformat())


def _mail(first: date, last: date) -> Mail:
    names = Mail.__dataclass_fields__
    sums = [fn.COALESCE(fn.SUM(getattr(EmailDay, name)), 0).alias(name) for name in names]
    with database.connected():
        (row,) = EmailDay.select(*sums).where(_within(EmailDay, first, last)).dicts()
    return Mail(**{name: int(row[name]) for name in names})


def _days(first: date, last: date) -> list[dict[str, Any]]:
    table = EmailDay
    sums = table.select(table.day, fn.SUM(table.messages)).where(_within(table, first, last))
    with database.connected():
        found = dict(sums.group_by(table.day).tuples())
    wanted = (first + timedelta(days=n) for n in range((last - first).days + 1))
    return [{"day": day, "messages": int(found.get(day.isoformat(), 0))} for day in wanted]


def _accounts(first: date, last: date) -> list[dict[str, Any]]:
    table, account = EmailAccountDay, EmailAccount
    messages, size = fn.SUM(table.messages), fn.SUM(table.bytes)
    query = (
        account.visible()
        .select(account.uuid, account.address, messages, size)
        .join(table)
        .where(_within(table, first, last))
        .group_by(account.id)
        .order_by(messages.desc(), account.id)
        .limit(NAMED)
    )
    with database.connected():
        return [
            {"id": uuid, "address": address, "messages": int(amount), "bytes": int(of_bytes)}
            for uuid, address, amount, of_bytes in query.tuples()
            if amount
        ]


def _troubled() -> list[dict[str, Any]]:
    """Accounts that are not polled as they should be, the longest without success first."""
    table = EmailAccount
    wrong = (table.state == AccountState.AUTH_FAILED) | table.last_error.is_null(False)
    rows = table.visible().where(wrong).order_by(table.last_success_at, table.id).limit(NAMED)
    names = ("address", "state", "last_error", "last_success_at")
    with database.connected():
        return [{"id": row.uuid, **{one: getattr(row, one) for one in names}} for row in rows]


def _alarms() -> list[dict[str, Any]]:
    return [
        {
            "name": alarm.name,
            "since": alarm.since,
            "words": alarm.words,
            "advice": alarms.ALARMS[alarm.name].advice,
        }
        for alarm in alarms.known()
        if alarm.cleared_at is None
    ]


def _tasks(broker: Broker) -> list[dict[str, Any]]:
    found = []
    for actor, counts in sorted(task_stats.read(broker.client).items()):
        runs = counts["runs"]
        mean = counts["microseconds"] / runs / 1_000 if runs else 0.0
        names = ("runs", "failures", "skipped")
        found.append({"actor": actor, **{n: counts[n] for n in names}, "mean_ms": round(mean, 3)})
    return found


def _dead(broker: Broker, first: date, last: date) -> list[dict[str, Any]]:
    begin = datetime.combine(first, time(), UTC)
    end = datetime.combine(last + timedelta(days=1), time(), UTC)
    found = []
    for message in queues.dead(broker, DEAD):
        moment = datetime.fromtimestamp(message.failed_at / 1_000, UTC)
        if begin <= moment < end:
            shown = {"queue": message.queue, "actor": message.actor, "reason": message.reason}
            found.append({"failed_at": moment, **shown})
    return found
