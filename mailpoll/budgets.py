"""What may still be asked of a provider: bytes a day, and "come back later".

The database is the truth: these outlive any restart of Redis, and all workers share them. How many
connect and log in at once is limited by ``middleware.rate_limit`` with the figures from here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from . import database
from .imap import Fault, ImapError, providers
from .middleware.rate_limit import HOLD, Limit
from .models import EmailAccount, EmailHost
from .settings import settings

#: The import may take this share of a day's bytes; the rest is kept for new mail.
IMPORT_SHARE = 0.8
#: Above every limit: no limit.
UNLIMITED = 2**62
#: Longer than a minute, because a login comes a moment after it was allowed.
MINUTE = 62

#: Adds to the day's bytes unless that crosses the limit. A day's first bytes always pass, so that a
#: message larger than the limit is no dead end.
SPEND = database.Statement("""
    UPDATE email_accounts
    SET traffic_bytes = CASE WHEN traffic_day = ? THEN traffic_bytes ELSE 0 END + ?, traffic_day = ?
    WHERE id = ? AND (
        traffic_day IS NULL OR traffic_day <> ? OR traffic_bytes = 0 OR traffic_bytes + ? <= ?
    )
""")

#: An account's host, and until when it and its host want to be left alone.
NOT_BEFORE = database.Statement("""
    SELECT host, not_before, (
        SELECT not_before FROM email_hosts WHERE email_hosts.host = lower(email_accounts.host))
    FROM email_accounts WHERE id = ?
""")

#: What is stored of an account.
STORED = database.Statement("""
    SELECT COALESCE(SUM(messages), 0), COALESCE(SUM(bytes), 0)
    FROM email_account_days WHERE account_id = ?
""")


class BudgetSpent(ImapError):
    """As much as may be fetched from the account today was fetched."""

    def __init__(self, limit: int) -> None:
        super().__init__(Fault.BUDGET_SPENT, f"{limit:,} bytes")


@dataclass(frozen=True, slots=True)
class Budget:
    """How an account stands. Days are UTC.

    Parameters:
      bytes_today: fetched since midnight.
      bytes_limit: that may be fetched in a day; ``None`` for no limit.
      resets_at: when the count starts anew.
      not_before: nobody connects to the account before; ``None`` for now.
    """

    bytes_today: int
    bytes_limit: int | None
    resets_at: datetime
    not_before: datetime | None


@dataclass(frozen=True, slots=True)
class Pace:
    """How often and how often at once a provider is connected to.

    Parameters:
      provider: what shares the limits: all hosts of a known provider, else the host.
      account_connections, connections: at once, to one account and in all.
      logins_per_minute: in all.
    """

    provider: str
    account_connections: int
    connections: int
    logins_per_minute: int


def pace_of(host: str) -> Pace:
    """The smaller of the configuration's limits and what is known of the provider."""
    config = settings()
    preset = providers.preset_of(host)
    return Pace(
        preset.name if preset else host.lower(),
        _least(config.imap_account_connections, preset.connections if preset else None),
        config.imap_host_connections,
        _least(config.imap_host_logins_per_minute, preset.logins_per_minute if preset else None),
    )


def _least(general: int, known: int | None) -> int:
    return min(general, known) if known else general


def day_bytes(host: str) -> int | None:
    """Bytes that may be fetched in a day from an account at this host; ``None`` for no limit."""
    preset = providers.preset_of(host)
    known = (preset.day_bytes if preset else None, settings().imap_day_bytes)
    return min((limit for limit in known if limit), default=None)


def import_days(host: str, size: int) -> int | None:
    """Days that an import of ``size`` bytes takes under the day's limit; ``None`` without one."""
    limit = day_bytes(host)
    return None if limit is None else -(-size // max(1, int(limit * IMPORT_SHARE)))


def check_room(account: EmailAccount) -> None:
    """Refuse to fetch more of an account that has all that an account may have.

    Raises:
      ImapError: ``ACCOUNT_FULL``; says how much is stored.
    """
    config = settings()
    if not (config.account_messages or config.account_bytes):
        return
    with database.connected():
        messages, size = map(int, STORED.run(account.id).fetchone())
    limits = ((messages, config.account_messages), (size, config.account_bytes))
    if any(limit and stored >= limit for stored, limit in limits):
        raise ImapError(Fault.ACCOUNT_FULL, f"{messages:,} messages, {size:,} bytes")


def spend(account: EmailAccount, size: int, *, importing: bool) -> None:
    """Take ``size`` bytes from the account's day, before they are fetched.

    One statement, whatever the number of workers: together they never cross the limit. Alone or
    inside the caller's transaction.

    Parameters:
      importing: they are part of the import, which leaves some of the day to new mail.

    Raises:
      BudgetSpent: that is more than the day has left; nothing was taken.
    """
    limit = day_bytes(account.host)
    if limit is not None and importing:
        limit = int(limit * IMPORT_SHARE)
    bound = UNLIMITED if limit is None else limit
    with database.transaction(durable=False):
        day = _day(database.now())
        taken = SPEND.run(day, size, day, account.id, day, size, bound).rowcount
    if not taken and limit is not None:
        raise BudgetSpent(limit)


def of(account: EmailAccount) -> Budget:
    """How an account stands now."""
    moment = database.now()
    with database.connected():
        row = EmailAccount.get_by_id(account.id)
        end = _latest(NOT_BEFORE.run(account.id).fetchone()[1:])
    spent = row.traffic_bytes if row.traffic_day == _day(moment) else 0
    return Budget(
        bytes_today=spent,
        bytes_limit=day_bytes(row.host),
        resets_at=next_day(moment),
        not_before=end if end and end > moment else None,
    )


def login_terms(account_id: int) -> tuple[float, Sequence[Limit]]:
    """Seconds until an account may be logged in to, and what limits its sessions if none."""
    found = wait(account_id)
    if found is None:
        return 0.0, ()
    host, seconds = found
    pace = pace_of(host)
    return seconds, (
        Limit(f"account:{account_id}", "slots", pace.account_connections, HOLD),
        Limit(pace.provider, "slots", pace.connections, HOLD),
        Limit(pace.provider, "rate", pace.logins_per_minute, MINUTE),
    )


def wait(account_id: int) -> tuple[str, float] | None:
    """The account's host, and seconds until it may be connected to, 0 for now.

    ``None`` when there is no such account.
    """
    with database.connected():
        row = NOT_BEFORE.run(account_id).fetchone()
    if row is None:
        return None
    host, *ends = row
    end = _latest(ends)
    return host, max(0.0, (end - database.now()).total_seconds()) if end else 0.0


def _latest(ends: Sequence[Any]) -> datetime | None:
    return max((database.moment(end) for end in ends if end), default=None)


def leave_alone(host: str, seconds: float, reason: str) -> None:
    """Let nobody connect to a host for a while: it refuses whoever calls."""
    end = database.now() + timedelta(seconds=seconds)
    row = {"host": host.lower(), "not_before": end, "reason": reason}
    with database.transaction():
        EmailHost.delete().where(EmailHost.not_before <= database.now()).execute()
        EmailHost.insert(**row).on_conflict(
            conflict_target=[EmailHost.host],
            update={EmailHost.not_before: end, EmailHost.reason: reason},
        ).execute()


def next_day(moment: datetime) -> datetime:
    """The next midnight (UTC), when providers and budgets count anew."""
    return moment.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def _day(moment: datetime) -> str:
    return moment.date().isoformat()
