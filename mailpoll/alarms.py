"""What operators should know of: looked for once a minute, told once, told again when it is over.

A worker looks at each tick of the scheduler. When no tick comes, the web process does it: silence
cannot tell of itself. Any number may look at once, because the database says who tells.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import redis
import structlog

from . import counters, database, keys, queues, runtime, stats
from .blobs import StoreUnavailable
from .broker import Broker
from .models import (
    AccountState,
    Alarm,
    EmailAccount,
    EmailDamage,
    EmailScrub,
    EndpointState,
    Mark,
    MarkName,
    WebhookEndpoint,
)
from .settings import settings

log = structlog.get_logger()

#: Seconds without a tick after which the scheduler counts as silent.
SILENCE = 300.0
#: An alarm is over when it was not found for so long, so that what flickers is one alarm.
SETTLED = timedelta(minutes=5)
#: None is told more often, whatever it does.
PAUSE = timedelta(hours=1)
#: How long a process has to tell, and until it is tried again when no receiver takes it.
CLAIM, RETRY = timedelta(minutes=2), timedelta(minutes=5)
#: Accounts that are named.
NAMED = 10
#: Polls later than this, in seconds, are alarming.
LATE = 600
#: Seconds of nothing but failures after which a webhook is alarming.
WEBHOOK = 3_600
#: A round of the scrub may take its days and as long again, or this when they are few.
SCRUB = timedelta(days=1)
#: Shares of Redis' memory in use, and of the disk free.
MEMORY, DISK = 0.7, 0.05


@dataclass(frozen=True, slots=True)
class Found:
    """A condition that holds.

    Parameters:
      words: what is the matter; kept, so nothing of a single account is in it.
      amount: grows when it gets worse; 1 where nothing is counted.
      names: of what it is about; told and not kept.
    """

    words: str
    amount: int = 1
    names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """An alarm: how it is found, and what to do then."""

    look: Callable[[Broker], Found | None]
    advice: str


def _auth_failed(_: Broker) -> Found | None:
    table = EmailAccount
    rows = table.select(table.uuid).where(table.state == AccountState.AUTH_FAILED)
    with database.connected():
        amount = rows.count()
        names = [row.uuid for row in rows.order_by(table.last_error_at.desc()).limit(NAMED)]
    if not amount:
        return None
    return Found(f"{amount:,} accounts are not polled: their logins are refused", amount, names)


def _polls_late(_: Broker) -> Found | None:
    late = stats.late_accounts(LATE)
    return Found(f"{late:,} accounts are not polled for {LATE // 60} minutes") if late else None


def _messages_wait(_: Broker) -> Found | None:
    age = stats.oldest_pending(imported=False)
    if age <= settings().notify_queue_age:
        return None
    return Found(f"new mail waits {age / 60:,.0f} minutes to be processed")


def _dead_letters(broker: Broker) -> Found | None:
    dead = sum(size.dead for size in queues.sizes(broker))
    return Found(f"{dead:,} tasks have failed for good", dead) if dead else None


def _fallback_used(_: Broker) -> Found | None:
    blobs, age = stats.fallen_back()
    if not blobs:
        return None
    return Found(f"{blobs:,} blobs wait in local files, the oldest for {age / 60:,.0f} minutes")


def _storage_away(_: Broker) -> Found | None:
    try:
        runtime.storage().check()
    except StoreUnavailable as error:
        return Found(f"the store takes no blobs: {error}")
    return None


def _scheduler_silent(_: Broker) -> Found | None:
    age = tick_age()
    if age is None:
        return Found("no tick of the scheduler was ever carried out")
    if age <= SILENCE:
        return None
    return Found(f"no tick of the scheduler was carried out for {age / 60:,.0f} minutes")


def _fsck_differences(_: Broker) -> Found | None:
    mark = Mark.all().get(MarkName.FSCK)
    if mark is None or not mark.value:
        return None
    left = f"{mark.value:,} differences are left"
    return Found(f"{left} since the check of {mark.at:%Y-%m-%d %H:%M} UTC", mark.value)


def _redis_state(broker: Broker) -> Found | None:
    try:
        state = queues.redis_state(broker)
    except redis.RedisError:
        return Found("Redis does not answer")
    if not state.keeps:
        return Found("Redis may throw keys away: its maxmemory-policy is not noeviction")
    if state.memory > MEMORY:
        return Found(f"{state.memory:.0%} of the memory of Redis is used")
    return None


def _disk_full(_: Broker) -> Found | None:
    usage = shutil.disk_usage(settings().data_dir)
    share = usage.free / usage.total
    if share >= DISK:
        return None
    return Found(f"{share:.1%} of the disk of the data directory is free")


def _webhooks_fail(_: Broker) -> Found | None:
    table = WebhookEndpoint
    since = database.now() - timedelta(seconds=WEBHOOK)
    failing = (table.state == EndpointState.ACTIVE) & (table.failing_since < since)
    with database.connected():
        rows = table.select(table.uuid).where((table.state == EndpointState.DISABLED) | failing)
        names = [row.uuid for row in rows.order_by(table.failing_since)]
    if not names:
        return None
    return Found(f"{len(names):,} webhooks are not told of events", len(names), names[:NAMED])


def _blobs_damaged(_: Broker) -> Found | None:
    table = EmailDamage
    with database.connected():
        amount = table.select().count()
        owners = table.select(table.account).distinct()
        rows = EmailAccount.select(EmailAccount.uuid).where(EmailAccount.id.in_(owners))
        names = [row.uuid for row in rows.order_by(EmailAccount.id).limit(NAMED)]
    if not amount:
        return None
    return Found(f"{amount:,} stored blobs are damaged and could not be healed", amount, names)


def _scrub_late(_: Broker) -> Found | None:
    period = timedelta(days=settings().scrub_days)
    with database.connected():
        state = EmailScrub.get_or_none()
    if not period or state is None:
        return None
    age = database.now() - state.started_at
    if age <= period + max(period, SCRUB):
        return None
    within = f"within {settings().scrub_days:g} days"
    return Found(f"all blobs are to be read back {within}, and were not for {age.days:,}")


def _keys(_: Broker) -> Found | None:
    """Secrets whose key is missing, or is to be taken out of the ring some day and is needed."""
    ring = runtime.keyring()
    amounts = {name: sum(columns.values()) for name, columns in keys.counts().items()}
    lost = sum(amount for name, amount in amounts.items() if name not in ring.ids)
    if lost:
        return Found(f"{lost:,} stored secrets cannot be opened: their keys are missing", lost)
    old = sum(amount for name, amount in amounts.items() if name != ring.current)
    return Found(f"{old:,} stored secrets are sealed with an old key", old) if old else None


#: Every alarm; ``docs/operations.md`` says more.
ALARMS = {
    "auth_failed": Kind(
        _auth_failed, "see last_error of each: mailpoll accounts list; then change the password"
    ),
    "polls_late": Kind(_polls_late, "check that pollers run; add more, or more threads"),
    "messages_wait": Kind(_messages_wait, "check that workers run; add more"),
    "dead_letters": Kind(_dead_letters, "see GET /admin/tasks for the reasons; retry there"),
    "fallback_used": Kind(
        _fallback_used, "nothing, once the object store answers; see storage_away"
    ),
    "storage_away": Kind(_storage_away, "check the store, its credentials and its bucket"),
    "scheduler_silent": Kind(
        _scheduler_silent, "check that a scheduler and a worker run, and that Redis answers"
    ),
    "fsck_differences": Kind(_fsck_differences, "run mailpoll fsck --repair, then mailpoll fsck"),
    "redis": Kind(_redis_state, "check Redis: maxmemory, maxmemory-policy noeviction, the backlog"),
    "webhooks_fail": Kind(
        _webhooks_fail,
        "see last_error of each in GET /admin/webhooks; mend the receiver, then make it active "
        "again or delete it",
    ),
    "blobs_damaged": Kind(
        _blobs_damaged,
        "see damaged in the accounts' stats; put them back from a backup under the same keys",
    ),
    "scrub_late": Kind(
        _scrub_late,
        "check that workers run and see their log; raise MAILPOLL_SCRUB_RATE, or the days",
    ),
    "keys": Kind(
        _keys,
        "put missing keys back into MAILPOLL_SECRET_KEY; seal again with mailpoll keys rotate",
    ),
    "disk_full": Kind(_disk_full, "make room: mail is not fetched when none is left"),
}


def tick_age() -> float | None:
    """Seconds since a tick of the scheduler was carried out; ``None``: never."""
    mark = Mark.all().get(MarkName.TICK)
    return None if mark is None else (database.now() - mark.at).total_seconds()


def known() -> list[Alarm]:
    """Every alarm that there is or was: those that hold first, then the newest."""
    with database.connected():
        rows = [alarm for alarm in Alarm.select() if alarm.name in ALARMS]
    return sorted(rows, key=lambda alarm: (alarm.cleared_at is not None, -alarm.since.timestamp()))


def standing() -> dict[str, bool]:
    """Whether each alarm holds."""
    names = {alarm.name for alarm in known() if alarm.cleared_at is None}
    return {name: name in names for name in ALARMS}


def look(broker: Broker) -> None:
    """Compare what is with what was, note it, and tell what is to be told."""
    found: dict[str, Found | None] = {}
    for name, kind in ALARMS.items():
        try:
            found[name] = kind.look(broker)
        except (redis.RedisError, OSError) as error:
            log.info("alarm cannot be looked at", alarm=name, error=type(error).__name__)
    due = _note(found)
    if due:
        _tell(due, found)


def keep_watch(broker: Broker, stopped: threading.Event, pause: float = 60.0) -> None:
    """Look for alarms, whenever no tick of the scheduler makes a worker do it.

    Parameters:
      stopped: ends it.
      pause: seconds between two looks.
    """
    started = time.monotonic()
    while not stopped.wait(pause):
        try:
            age, waited = tick_age(), time.monotonic() - started
            if min(waited, waited if age is None else age) > SILENCE:
                look(broker)
        except Exception as error:  # the database may be away; the thread must outlive that
            log.warning("alarms not looked at", error=type(error).__name__)


# What is known of each, and who tells it


def _note(found: dict[str, Found | None]) -> list[Alarm]:
    """Write down what was found, and claim what is to be told.

    The rows are locked, so that of several processes one has each alarm. Should it die before it
    has told, the claim lapses.
    """
    moment = database.now()
    with database.transaction():
        _add_missing([name for name, one in found.items() if one], moment)
        rows = Alarm.select().order_by(Alarm.name)
        alarms = list(rows if database.is_sqlite() else rows.for_update())
        due = []
        for alarm in alarms:
            for name, value in _changes(alarm, found, moment).items():
                setattr(alarm, name, value)
            if settings().notify_urls and _is_due(alarm, moment):
                alarm.claimed_until = moment + CLAIM
                due.append(alarm)
            alarm.save()
    return due


def _add_missing(names: Iterable[str], moment: datetime) -> None:
    for name in names:
        past = {"since": moment, "seen_at": moment, "cleared_at": moment, "amount": 0, "words": ""}
        Alarm.insert(name=name, **past).on_conflict_ignore().execute()


def _changes(alarm: Alarm, found: dict[str, Found | None], moment: datetime) -> dict[str, Any]:
    """The columns that change; none when nobody could look."""
    if alarm.name not in found:
        return {}
    one = found[alarm.name]
    if one is not None:
        columns = {"seen_at": moment, "amount": one.amount, "words": one.words}
        if alarm.cleared_at is None:
            return columns
        log.warning("alarm", alarm=alarm.name, words=one.words)
        return columns | {"since": moment, "cleared_at": None}
    if alarm.cleared_at is None and moment - alarm.seen_at >= SETTLED:
        log.info("alarm is over", alarm=alarm.name)
        return {"cleared_at": moment}
    return {}


def _is_due(alarm: Alarm, moment: datetime) -> bool:
    if alarm.claimed_until is not None and alarm.claimed_until > moment:
        return False
    if alarm.cleared_at is not None:
        return bool(alarm.told)
    if alarm.notified_at is None:
        return True
    ago = moment - alarm.notified_at
    if not alarm.told or alarm.amount > alarm.notified_amount:
        return bool(ago >= PAUSE)
    return bool(ago >= timedelta(hours=settings().notify_repeat))


def _tell(due: Sequence[Alarm], found: dict[str, Found | None]) -> None:
    """One message about all that is due; told is what at least one receiver took."""
    from . import notify

    holding = [alarm for alarm in due if alarm.cleared_at is None]
    over = [alarm for alarm in due if alarm.cleared_at is not None]
    lines = [_holds(alarm, found.get(alarm.name)) for alarm in holding]
    lines += [_is_over(alarm) for alarm in over]
    parts = [f"{len(holding)} alarms"] if holding else []
    parts += [f"{len(over)} over"] if over else []
    title = f"mailpoll: {', '.join(parts)}"
    kind = notify.WARNING if holding else notify.SUCCESS
    taken = False
    for receiver in notify.receivers(settings().notify_urls):
        sent = receiver.send(title, "\n\n".join(lines), kind)
        counters.add("notifications", 1, "sent" if sent else "failed")
        if not sent:
            log.warning("notification not taken", receiver=receiver.name)
        taken = taken or sent
    _settle(due, taken)


def _holds(alarm: Alarm, found: Found | None) -> str:
    names = ", ".join(found.names) if found else ""
    about = f" ({names}{', …' if alarm.amount > NAMED else ''})" if names else ""
    since = f"since {alarm.since:%Y-%m-%d %H:%M} UTC"
    return f"ALARM {alarm.name}: {alarm.words}{about}, {since}. {ALARMS[alarm.name].advice}."


def _is_over(alarm: Alarm) -> str:
    minutes = (alarm.seen_at - alarm.since).total_seconds() / 60
    return f"OVER {alarm.name}: {alarm.words}; it lasted {minutes:,.0f} minutes."


def _settle(due: Sequence[Alarm], taken: bool) -> None:
    moment = database.now()
    with database.transaction():
        for alarm in due:
            columns = (
                {
                    "notified_at": moment,
                    "notified_amount": alarm.amount,
                    "told": alarm.cleared_at is None,
                    "claimed_until": None,
                }
                if taken
                else {"claimed_until": moment + RETRY}
            )
            Alarm.update(**columns).where(Alarm.name == alarm.name).execute()
