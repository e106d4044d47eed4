"""Figures about accounts, kept by counters: their cost does not grow with the stored mail."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from peewee import SQL, Case, fn

from . import budgets, database, parsing, runtime
from .models import (
    LOCAL,
    STORED,
    UNFINISHED,
    AccountState,
    EmailAccount,
    EmailAccountDay,
    EmailAttachment,
    EmailDamage,
    EmailDay,
    EmailFetchFailure,
    EmailFolder,
    EmailHour,
    EmailJob,
    EmailRawMessage,
    EmailScrub,
    MessageStatus,
    count,
)

#: When a message counts as stuck: as ``fsck`` does.
STUCK = timedelta(hours=1)
#: Days of the chart.
DAYS = 30
#: What is said of a chosen folder that was there before.
VANISHED = "the server has no folder of this name any more: it was deleted or renamed"
#: Unfetched messages that are listed.
LISTED = 100
SUMS = ("messages", "bytes", "attachments", "attachment_bytes", "failures")


def account_stats(account: EmailAccount) -> dict[str, Any]:
    """Everything about one account, as ``AccountStats`` of the API."""
    with database.connected():
        totals = _totals(account)
        return {
            "account_id": account.uuid,
            "address": account.address,
            "state": account.state,
            **{name: totals[name] for name in SUMS if name != "failures"},
            "by_status": _by_status(totals["messages"], account),
            "by_storage_type": _by_storage_type(
                totals["messages"] + totals["attachments"], account
            ),
            "folders": _folders(account),
            "days": _days(account),
            "unfetched": _unfetched(account),
            "damaged": _damaged(account),
            "last_poll_at": account.last_poll_at,
            "last_success_at": account.last_success_at,
            "next_poll_at": account.next_poll_at,
            "imported_at": account.imported_at,
            "import": _import_progress(account),
            "delay": _delay(account),
            "lateness_ms": account.last_lateness_ms,
            "lateness_p95_ms": _percentile(account.recent_lateness_ms or [], 95),
            "poll_duration_ms": account.last_poll_ms,
            "last_error": account.last_error,
            "last_error_kind": account.last_error_kind,
        }


def overall_stats() -> dict[str, Any]:
    """Everything about all accounts together, as ``Stats`` of the API."""
    storage = runtime.storage()
    with database.connected():
        totals = _totals(None)
        return {
            "accounts": accounts_by_state(),
            **{name: totals[name] for name in SUMS if name != "failures"},
            "by_status": _by_status(totals["messages"], None),
            "by_storage_type": _by_storage_type(totals["messages"] + totals["attachments"], None),
            "unfetched": _unfetched_by_verdict(),
            "folders": _folders_by_proof(),
            "late_accounts": late_accounts(60),
            "lateness_p95_ms": lateness_p95(),
            "oldest_pending_seconds": max(map(oldest_pending, (True, False))),
            "storage": str(storage.primary_type),
            "storage_circuit_open": storage.circuit_open,
            "scrub": _scrub(),
            "days": _days(None),
        }


def _of(table: Any, account: EmailAccount | None) -> Any:
    return True if account is None else table.account == account


def _sums(account: EmailAccount | None) -> tuple[Any, Any]:
    """The table of an account's days, or of everybody's, and the query that sums them."""
    day: Any = EmailAccountDay if account else EmailDay
    sums = [fn.COALESCE(fn.SUM(getattr(day, name)), 0).alias(name) for name in SUMS]
    return day, day.select(*sums).where(_of(day, account))


def _totals(account: EmailAccount | None) -> dict[str, int]:
    _, sums = _sums(account)
    (row,) = sums.dicts()
    return {name: int(row[name]) for name in SUMS}


def _by_status(messages: int, account: EmailAccount | None) -> dict[str, int]:
    """Unfinished messages are counted from their small index; the rest is processed."""
    table = EmailRawMessage
    query = (
        table.select(table.status, fn.COUNT(table.id))
        .where(UNFINISHED, _of(table, account))
        .group_by(table.status)
    )
    unfinished = dict(query.tuples())
    stored = unfinished.get(MessageStatus.STORED, 0)
    failed = unfinished.get(MessageStatus.FAILED, 0)
    return {"stored": stored, "processed": max(0, messages - stored - failed), "failed": failed}


def _by_storage_type(blobs: int, account: EmailAccount | None) -> dict[str, int]:
    """Rows that point at each store; those in local files stand in an index of their own."""
    if not runtime.storage().has_object_store:
        return {"local": blobs, "oss": 0}
    local = 0
    for table in (EmailRawMessage, EmailAttachment):
        query = table.select(fn.COUNT(table.id))
        local += query.where(LOCAL, _of(table, account)).scalar()
    return {"local": local, "oss": max(0, blobs - local)}


def _folders(account: EmailAccount) -> list[dict[str, Any]]:
    table = EmailFolder
    failure = EmailFetchFailure
    unfetched = dict(
        failure.select(failure.folder, fn.COUNT(failure.id))
        .join(table)
        .where(table.account == account)
        .group_by(failure.folder)
        .tuples()
    )
    chosen = account.folders
    there = table.gone_at.is_null() if chosen is None else table.name.in_(chosen)
    rows = table.select().where(table.account == account, there)
    return [
        {
            "name": folder.name,
            "special_use": folder.special_use,
            "messages": folder.messages,
            "bytes": folder.bytes,
            "server_messages": folder.server_messages,
            "imported": folder.imported,
            "proof": _live_proof(folder),
            "complete": folder.complete,
            "proved_at": folder.last_proved(account.last_success_at),
            "uidvalidity": folder.uidvalidity,
            "low": folder.low,
            "high": folder.high,
            "unfetched": unfetched.get(folder.id, 0),
            "last_error": VANISHED if folder.gone_at else folder.last_error,
        }
        for folder in rows.order_by(table.id)
    ]


def _live_proof(folder: EmailFolder) -> dict[str, int] | None:
    """The folder's proof; while it is imported, with what came in since it was made."""
    proof: dict[str, int] | None = folder.proof
    if proof is None or folder.imported:
        return proof
    since = folder.messages - folder.expunged - proof["stored"]
    return proof | {
        "stored": proof["stored"] + since,
        "to_import": max(0, proof["to_import"] - since),
    }


def _folders_by_proof() -> dict[str, int]:
    """Folders whose every message is accounted for, those that are imported now, and the others."""
    table = EmailFolder
    importing = table.low.is_null() | (table.low > 1)
    kinds = {
        "complete": table.complete,
        "importing": ~table.complete & importing,
        "unproved": ~table.complete & ~importing,
    }
    counts = [fn.COUNT(Case(None, [(kind, 1)])).alias(name) for name, kind in kinds.items()]
    (found,) = table.select(*counts).where(table.gone_at.is_null()).dicts()
    return found  # type: ignore[no-any-return]


def _import_progress(account: EmailAccount) -> dict[str, Any]:
    """How far the first import is; ``seconds_left`` at its speed so far, when that is known."""
    table = EmailFolder
    rows = table.select().where(table.account == account, table.gone_at.is_null())
    rows = [row for row in rows if not row.archived]
    wanted = [row for row in rows if account.folders is None or row.name in account.folders]
    unlooked = sum(1 for row in wanted if row.proof is None and row.last_error is None)
    proofs = [proof for row in wanted if (proof := _live_proof(row))]
    left = sum(proof["to_import"] for proof in proofs)
    done = sum(row.messages for row in wanted)
    size = account.estimated_bytes
    figures = {
        "messages": done,
        "estimated_bytes": size,
        "days": None if size is None else budgets.import_days(account.host, size),
    }
    if account.imported_at is not None:
        return {**figures, "done": True, "left": 0, "seconds_left": 0}
    if unlooked or not wanted:
        estimated = account.estimated_messages
        left = None if estimated is None else max(0, estimated - done)
    spent = (database.now() - account.created_at).total_seconds()
    known = done and left is not None
    seconds = int(left * spent / done) if known else None
    return {**figures, "done": False, "left": left, "seconds_left": seconds}


def _delay(account: EmailAccount) -> str | None:
    """Why the mailbox is not polled, or not on time, in words; ``None`` when it is."""
    if account.state == AccountState.PAUSED:
        return "paused by an operator: resume it to go on"
    if account.state == AccountState.AUTH_FAILED:
        return f"no more logins are tried: {account.last_error}. Change the password, or resume it"
    ahead = account.next_poll_at - database.now()
    if account.last_error and ahead > timedelta(0):
        return f"{account.last_error}. Next try at {account.next_poll_at:%H:%M:%S} UTC"
    if ahead < -timedelta(minutes=1):
        return (
            f"its poll is {-ahead.total_seconds():.0f} s late: it waits for a free poller, or for "
            "a connection that the limits of its host allow"
        )
    return None


def _percentile(values: Sequence[int], percent: int) -> int | None:
    """The nearest-rank percentile."""
    if not values:
        return None
    return sorted(values)[_rank(len(values), percent)]


def _rank(amount: int, percent: int) -> int:
    """How many of so many values stand before the nearest-rank percentile."""
    return max(0, -(-amount * percent // 100) - 1)


def _days(account: EmailAccount | None) -> list[dict[str, Any]]:
    """The latest days with mail, oldest first."""
    table, sums = _sums(account)
    by_day = sums.select_extend(table.day).group_by(table.day).order_by(table.day.desc())
    rows = by_day.limit(DAYS).dicts()
    return [
        {"day": row["day"], **{name: int(row[name]) for name in SUMS}}
        for row in reversed(list(rows))
    ]


def _unfetched(account: EmailAccount) -> list[dict[str, Any]]:
    table = EmailFetchFailure
    query = (
        table.select(table, EmailFolder.name)
        .join(EmailFolder)
        .where(EmailFolder.account == account)
        .order_by(table.id.desc())
        .limit(LISTED)
    )
    return [
        {
            "folder": row.folder.name,
            "uid": row.uid,
            "verdict": row.verdict,
            "reason": row.reason,
            "size": row.size,
            **_header_fields(row.headers),
            "attempts": row.attempts,
            "next_attempt_at": row.next_attempt_at,
        }
        for row in query
    ]


def _damaged(account: EmailAccount) -> list[dict[str, Any]]:
    """Blobs that the scrub could not heal."""
    table = EmailDamage
    rows = table.select().where(table.account == account).order_by(table.id).limit(LISTED)
    names = ("message_id", "storage_key", "kind", "reason", "found_at")
    return [{name: getattr(row, name) for name in names} for row in rows]


def _scrub() -> dict[str, Any]:
    """How far the scrub is in its round, and what it has found since ever."""
    state = EmailScrub.get_or_none()
    damaged = EmailDamage.select(fn.COUNT(EmailDamage.id)).scalar()
    if state is None:
        counts = dict.fromkeys(("blobs", "bytes", "corrupt", "missing", "healed"), 0)
        times = dict.fromkeys(("started_at", "finished_at"))
        return {**times, "progress": 0.0, **counts, "damaged": damaged}
    names = ("started_at", "finished_at", "blobs", "bytes", "corrupt", "missing", "healed")
    progress = round(state.position / state.end, 4) if state.end else 1.0
    return {
        **{name: getattr(state, name) for name in names},
        "progress": progress,
        "damaged": damaged,
    }


def _header_fields(headers: str | None) -> dict[str, Any]:
    """What is known of a message that is too large to fetch."""
    if headers is None:
        return {"subject": None, "from": [], "date": None}
    try:
        parsed = parsing.parse(headers.encode("latin-1"))
    except parsing.Unparsable:
        return {"subject": None, "from": [], "date": None}
    senders = [{"name": one.name, "address": one.address} for one in parsed.from_]
    return {"subject": parsed.subject, "from": senders, "date": parsed.date}


def _unfetched_by_verdict() -> dict[str, int]:
    table = EmailFetchFailure
    return dict(table.select(table.verdict, fn.COUNT(table.id)).group_by(table.verdict).tuples())


def accounts_by_state() -> dict[str, int]:
    """How many accounts are in each state."""
    table = EmailAccount
    query = table.select(table.state, fn.COUNT(table.id)).group_by(table.state)
    with database.connected():
        return {str(state): 0 for state in AccountState} | Counter(dict(query.tuples()))


def late_accounts(seconds: float) -> int:
    """Active accounts whose poll is overdue by more than this."""
    table = EmailAccount
    limit = database.now() - timedelta(seconds=seconds)
    late = table.select().where(table.state == AccountState.ACTIVE, table.next_poll_at < limit)
    with database.connected():
        return count(late)


def lateness_p95() -> int | None:
    """How late the last polls of active accounts began: the 95th percentile, in milliseconds."""
    table = EmailAccount
    late = table.select(table.last_lateness_ms).where(
        table.state == AccountState.ACTIVE, table.last_lateness_ms.is_null(False)
    )
    with database.connected():
        # Not all of them brought here: of 5,000 accounts they would take longer than all the rest.
        amount = count(late)
        if not amount:
            return None
        at = late.order_by(table.last_lateness_ms).offset(_rank(amount, 95))
        return at.limit(1).scalar()  # type: ignore[no-any-return]


def hours(amount: int) -> list[dict[str, Any]]:
    """What was stored in each of the latest hours, oldest first; the last one is not over."""
    table = EmailHour
    last = database.now().replace(minute=0, second=0, microsecond=0)
    wanted = [last - timedelta(hours=ago) for ago in reversed(range(amount))]
    query = (
        table.select(table.hour, fn.SUM(table.messages), fn.SUM(table.imported))
        .where(table.hour >= wanted[0])
        .group_by(table.hour)
    )
    with database.connected():
        found = {hour: (int(all_), int(part)) for hour, all_, part in query.tuples()}
    return [
        dict(zip(("hour", "messages", "imported"), (hour, *found.get(hour, (0, 0))), strict=True))
        for hour in wanted
    ]


def figures(accounts: Sequence[EmailAccount]) -> dict[int, dict[str, Any]]:
    """Messages, bytes, failures and the latest days of each of some accounts, in two queries."""
    table = EmailAccountDay
    ids = [account.id for account in accounts]
    today = database.now().date()
    days = [(today - timedelta(days=ago)).isoformat() for ago in reversed(range(DAYS))]
    sums = [fn.SUM(column) for column in (table.messages, table.bytes, table.failures)]
    query = table.select(table.account, *sums).where(table.account.in_(ids))
    recent = table.select(table.account, table.day, table.messages)
    recent = recent.where(table.account.in_(ids), table.day >= days[0])
    with database.connected():
        rows = query.group_by(table.account).tuples()
        totals = {one: list(map(int, rest)) for one, *rest in rows}
        by_day = {(account, day): int(messages) for account, day, messages in recent.tuples()}
    found: dict[int, dict[str, Any]] = {}
    for account in ids:
        messages, size, failures = totals.get(account, (0, 0, 0))
        found[account] = {
            "messages": messages,
            "bytes": size,
            "failures": failures,
            "days": [by_day.get((account, day), 0) for day in days],
        }
    return found


def oldest_pending(imported: bool) -> float:
    """Seconds for which the oldest unprocessed message of a lane has been waiting.

    Parameters:
      imported: of the first import; else of new mail.
    """
    table = EmailRawMessage
    # Not by the lowest id: databases look for that from the beginning of the whole table.
    query = table.select(fn.MIN(table.stored_at)).where(STORED, table.imported == imported)
    return _age(query)


def _age(query: Any) -> float:
    """Seconds since the time that a query finds; 0 if it finds none."""
    with database.connected():
        moment = query.scalar()
    return (database.now() - moment).total_seconds() if moment else 0.0


def stuck_messages() -> int:
    """Stored messages that nobody has worked on for an hour after they were due."""
    table = EmailRawMessage
    late = table.select().where(STORED, table.next_attempt_at < database.now() - STUCK)
    with database.connected():
        return count(late)


def fallen_back() -> tuple[int, float]:
    """Rows whose blobs wait in local files for the object store, and seconds of the oldest."""
    if not runtime.storage().has_object_store:
        return 0, 0.0
    message, attachment = EmailRawMessage, EmailAttachment
    with database.connected():
        rows = sum(count(table.select().where(LOCAL)) for table in (message, attachment))
        if not rows:
            return 0, 0.0
        oldest = (
            message.select(fn.MIN(message.stored_at)).where(LOCAL),
            message.select(fn.MIN(message.stored_at)).where(
                message.id.in_(attachment.select(attachment.message).where(LOCAL))
            ),
        )
        return rows, max(map(_age, oldest))


def running_deletions() -> dict[str, int]:
    """Deletions that are not done, by the step that is next."""
    table = EmailJob
    query = table.select(table.step, fn.COUNT(table.id)).where(SQL("state = 'running'"))
    with database.connected():
        return dict(query.group_by(table.step).tuples())


def clock_offset() -> float:
    """Seconds by which this machine's clock is ahead of the database's."""
    with database.connected():
        before = time.time()
        theirs = database.now().timestamp()
        return (before + time.time()) / 2 - theirs
