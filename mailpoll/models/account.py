"""Accounts: their lease, when they are polled, and who watches them."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

import peewee
from peewee import BigIntegerField, BooleanField, CharField, IntegerField, TextField

from .. import counters, database
from ..database import IdField, JsonField, TimestampField
from .base import Table
from .events import EmailEvent, EventType


class AccountState(StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"
    AUTH_FAILED = "auth_failed"
    DELETING = "deleting"


#: How long after its time a queued poll counts as lost.
PATIENCE = timedelta(minutes=2)

#: Fraction of an interval by which a poll may be sooner or later, for the account to come to its
#: place; and what spreads the places of consecutive accounts evenly: the golden ratio's fraction.
DRIFT, GOLDEN = 0.1, 0.618_033_988_749_895

#: Polls whose lateness is remembered.
LATENESS_KEPT = 50

NEXT_POLL = database.Statement("SELECT next_poll_at FROM email_accounts WHERE id = ?")

FENCE = database.Statement("""
    UPDATE email_accounts SET lease_until = ?
    WHERE id = ? AND lease_token = ? AND state = 'active'
""")

KEEP = database.Statement("""
    UPDATE email_accounts SET lease_until = ?
    WHERE id = ? AND lease_token = ? AND state <> 'deleting'
""")

RENEW = database.Statement("""
    UPDATE email_accounts SET lease_until = ?
    WHERE id = ? AND lease_token = ? AND lease_until IS NOT NULL
""")

LOCK = database.Statement("""
    UPDATE email_accounts SET lease_token = lease_token WHERE id = ? AND state <> 'deleting'
""")


class LeaseLost(Exception):
    """Another poller, a pause or a deletion took the account: nothing of this batch was written."""


class EmailAccount(Table):
    """One IMAP mailbox and how its polling goes."""

    id = IdField()
    #: The account's public name, and the first part of its blobs' keys.
    uuid = CharField(36, unique=True)
    address = CharField(320, unique=True)
    host = CharField(255)
    port = IntegerField()
    security = CharField(8)
    username = CharField(320)
    auth = CharField(8, default="password")
    credential = TextField()
    #: What its blobs are sealed with, where they are; encrypted itself, and gone with the account.
    data_key = TextField()
    #: With a refresh token: whose client it is for, and the access token that it bought last.
    #: All tokens are encrypted. ``token_error`` is remembered until ``token_claimed_until``.
    oauth_provider = CharField(16, null=True)
    refresh_token = TextField(null=True)
    access_token = TextField(null=True)
    access_token_expires_at = TimestampField(null=True)
    token_claimed_until = TimestampField(null=True)
    token_error = TextField(null=True)
    #: Bytes that were fetched on a UTC day, and until when its provider wants to be left alone.
    traffic_day = CharField(10, null=True)
    traffic_bytes = BigIntegerField(default=0)
    not_before = TimestampField(null=True)
    #: Folder names as people read them; null polls every selectable folder.
    folders = JsonField(null=True)
    #: Seconds between polls; with ``poll_interval_max`` the least, and by the mailbox's rhythm.
    poll_interval = IntegerField()
    poll_interval_max = IntegerField(null=True)
    rhythm = JsonField(null=True)
    adapted_interval = IntegerField(null=True)
    #: First poll: import what arrived since; null imports all there is.
    import_since = TimestampField(null=True)
    #: Whether the flags that a server keeps for each message are followed.
    sync_flags = BooleanField(default=False)
    #: Days that mail is kept, and days after it left the server; null: as configured, 0: for ever.
    retention_days = IntegerField(null=True)
    retention_expunged_days = IntegerField(null=True)
    #: When retention last went through all its mail; null has it done soon.
    retained_at = TimestampField(null=True)
    #: How far it has come since, by which policy; null: it begins at the beginning.
    retention_cursor = JsonField(null=True)
    #: The last message of the account whose index is being made anew; 0: it is not.
    reindexed_to = BigIntegerField(default=0)
    state = CharField(16, default=AccountState.ACTIVE)
    #: Fencing token of the lease: raised at each claim, checked by each commit.
    lease_token = BigIntegerField(default=0)
    lease_until = TimestampField(null=True)
    next_poll_at = TimestampField()
    #: Whether a watcher should keep a connection open and poll when the server tells of news.
    push = BooleanField(default=False)
    #: The watcher that has it, until when, and the longer interval of polls while it is watched.
    watcher = CharField(36, null=True)
    watched_until = TimestampField(null=True)
    watch_interval = IntegerField(null=True)
    #: Why the server's news do not come by themselves.
    watch_error = TextField(null=True)
    #: A poll is in the queue until then; later it counts as lost and is enqueued again.
    queued_until = TimestampField(null=True)
    last_poll_at = TimestampField(null=True)
    last_success_at = TimestampField(null=True)
    #: Milliseconds that the last poll took, and how late it began.
    last_poll_ms = IntegerField(null=True)
    last_lateness_ms = IntegerField(null=True)
    #: How late the latest polls began, newest last: milliseconds, at most ``LATENESS_KEPT``.
    recent_lateness_ms = JsonField(null=True)
    imported_at = TimestampField(null=True)
    #: What the mailbox held when its login was last tested.
    estimated_messages = BigIntegerField(null=True)
    estimated_bytes = BigIntegerField(null=True)
    failures = IntegerField(default=0)
    auth_failures = IntegerField(default=0)
    last_error = TextField(null=True)
    last_error_kind = CharField(32, null=True)
    last_error_at = TimestampField(null=True)
    created_at = TimestampField()
    updated_at = TimestampField()

    class Meta:
        table_name = "email_accounts"

    @property
    def due(self) -> int:
        """``next_poll_at`` in milliseconds of the Unix epoch, as queue messages carry it."""
        return int(self.next_poll_at.timestamp() * 1_000)

    @property
    def watched(self) -> bool:
        """Whether a watcher has a connection on which the server tells of news."""
        until = self.watched_until
        return self.watch_interval is not None and until is not None and until > database.now()

    @property
    def archive(self) -> bool:
        """Whether it has no server: its mail comes by import only."""
        return not self.host

    @classmethod
    def lock(cls, account_id: int) -> bool:
        """Keep every other writer of the account's mail out until the transaction ends.

        For what adds mail or blobs without a lease: polls take the same row when they commit.

        Returns:
          false when the account is deleted, or being deleted: then nothing may be added.
        """
        return bool(LOCK.run(account_id).rowcount)

    @classmethod
    def by_id(cls, account_id: int) -> Self | None:
        """The account, or ``None``; inside the caller's connection."""
        return next(iter(database.select(cls, "id = ?", account_id)), None)

    @classmethod
    def visible(cls) -> peewee.ModelSelect:
        """Accounts that exist for the outside: not those that are being deleted."""
        return cls.select().where(cls.state != AccountState.DELETING)

    @classmethod
    def claim_due(cls, horizon: timedelta, limit: int) -> list[Self]:
        """Take the polls that fall due before ``horizon`` from now, most overdue first.

        An account whose poll is still queued or running is left out. Taking and marking is one
        statement, so that of two schedulers only one gets an account. A claimed poll that has
        neither begun nor ended within its interval plus two minutes counts as lost.

        Returns:
          accounts of which only what a poll's message needs was read.
        """
        moment = database.now()
        with database.transaction():
            due = (
                cls.select(cls.id, cls.next_poll_at, cls.poll_interval)
                .where(
                    cls.state == AccountState.ACTIVE,
                    cls.next_poll_at <= moment + horizon,
                    cls.queued_until.is_null() | (cls.queued_until <= moment),
                    cls.lease_until.is_null() | (cls.lease_until <= moment),
                )
                .order_by(cls.next_poll_at)
                .limit(limit)
            )
            if not database.is_sqlite():
                due = due.for_update("FOR UPDATE SKIP LOCKED")
            accounts = list(due)
            cls.mark_queued([account.id for account in accounts], moment + horizon)
        return accounts

    @classmethod
    def mark_queued(cls, ids: list[int], start: datetime) -> None:
        """Note that polls of these accounts are queued and begin by ``start`` at the latest."""
        for chunk in database.chunks(ids):
            database.update(cls, {"queued_until": start + PATIENCE}, "id IN []", chunk)

    @classmethod
    def forget_queued(cls) -> None:
        """Note that no poll is queued any more."""
        with database.transaction():
            cls.update(queued_until=None).where(cls.queued_until.is_null(False)).execute()

    @classmethod
    def mark_unqueued(cls, ids: Sequence[int]) -> None:
        """Note that the queue did not take these polls, so that the next tick sends them."""
        with database.transaction(durable=False):
            for chunk in database.chunks(ids):
                database.update(cls, {"queued_until": None}, "id IN []", chunk)

    @classmethod
    def lease(
        cls, account_id: int, due: int | None, seconds: int, after: int | None = None
    ) -> Self | None:
        """Begin a poll: take the account's lease if it is due and free.

        Parameters:
          due: the due time that the queue message was sent for, in milliseconds of the Unix
            epoch, so that a message is not "early" by another clock; ``None`` forces the poll.
          seconds: how long the lease holds without a commit.
          after: the token of the lease that must be the last one until now; ``None``: any.
        """
        with database.transaction(durable=False):
            moment = database.now()
            account = cls.by_id(account_id)
            if account is None or account.state != AccountState.ACTIVE:
                return None
            if account.lease_until and account.lease_until > moment:
                return None
            if after is not None and account.lease_token != after:
                return None
            if due is not None and account.due != due and account.next_poll_at > moment:
                return None
            lateness = max(0, int((moment - account.next_poll_at).total_seconds() * 1_000))
            history = [*(account.recent_lateness_ms or []), lateness]
            columns: dict[str, Any] = {
                "lease_token": account.lease_token + 1,
                "lease_until": moment + timedelta(seconds=seconds),
                "queued_until": None,
                "next_poll_at": account.following(moment),
                "last_poll_at": moment,
                "last_lateness_ms": lateness,
                "recent_lateness_ms": history[-LATENESS_KEPT:],
            }
            return account if account._change(columns) else None

    def interval_at(self, moment: datetime) -> int:
        """Seconds from this poll to the next: longer while a watcher looks after the account."""
        interval = self.poll_interval
        if self.poll_interval_max is not None and self.adapted_interval is not None:
            interval = min(max(interval, self.adapted_interval), self.poll_interval_max)
        until = self.watched_until
        if self.watch_interval is not None and until is not None and until > moment:
            interval = max(interval, self.watch_interval)
        return int(interval)

    def following(self, moment: datetime) -> datetime:
        """When the poll after one at ``moment`` is due: an interval later, give or take a tenth.

        So each account comes to its own place in the interval and stays there. Otherwise all that
        are added at once, or wait for the end of an outage, would be polled in the same seconds
        ever after.
        """
        interval = self.interval_at(moment)
        place = self.id * GOLDEN % 1 * interval
        ahead = (place - moment.timestamp()) % interval
        # To the nearer side, so that who is a little late is back at its place with the next poll.
        drift = ahead if ahead <= interval / 2 else ahead - interval
        most = interval * DRIFT
        return moment + timedelta(seconds=interval + max(-most, min(drift, most)))

    @classmethod
    def claim_watches(cls, watcher: str, seconds: int, limit: int) -> list[Self]:
        """Take accounts that want to be watched and that no watcher has.

        Parameters:
          watcher: who takes them, by a name of its own.
          seconds: until the claim lapses, unless it is kept.
        """
        moment = database.now()
        with database.transaction(durable=False):
            free = (
                cls.select()
                .where(
                    cls.push,
                    cls.state == AccountState.ACTIVE,
                    cls.watched_until.is_null() | (cls.watched_until <= moment),
                    cls.not_before.is_null() | (cls.not_before <= moment),
                )
                .order_by(cls.id)
                .limit(limit)
            )
            if not database.is_sqlite():
                free = free.for_update("FOR UPDATE SKIP LOCKED")
            found = list(free)
            until = moment + timedelta(seconds=seconds)
            claim = {"watcher": watcher, "watched_until": until, "watch_interval": None}
            for chunk in database.chunks([account.id for account in found]):
                database.update(cls, claim, "id IN []", chunk)
        return found

    @classmethod
    def keep_watches(cls, watcher: str, seconds: int) -> set[int]:
        """Keep a watcher's claims; the accounts that it still has and should have."""
        mine = (cls.watcher == watcher) & cls.push & (cls.state == AccountState.ACTIVE)
        until = database.now() + timedelta(seconds=seconds)
        with database.transaction(durable=False):
            cls.update(watched_until=until).where(mine).execute()
            return {account_id for (account_id,) in cls.select(cls.id).where(mine).tuples()}

    @classmethod
    def note_watch(
        cls, account_id: int, watcher: str, interval: int | None, error: str | None = None
    ) -> None:
        """Note that a server tells of news from now on, or (``interval`` is ``None``) does not.

        Without it the account is polled at its own interval again, beginning now.

        Parameters:
          interval: seconds between polls meanwhile, if that is longer than the account's own.
        """
        columns: dict[str, Any] = {"watch_interval": interval, "watch_error": error}
        mine = (cls.id == account_id) & (cls.watcher == watcher)
        with database.transaction(durable=False):
            if interval is None:
                cls.update(next_poll_at=database.now()).where(
                    mine, cls.watch_interval.is_null(False)
                ).execute()
            cls.update(**columns).where(mine).execute()

    @classmethod
    def expect_polls(cls, ids: Sequence[int]) -> None:
        """Make accounts due now, whose polls are being sent. A poll that is running hears of it."""
        moment = database.now()
        with database.transaction(durable=False):
            due = {"next_poll_at": moment, "queued_until": moment + PATIENCE}
            for chunk in database.chunks(ids):
                database.update(cls, due, "id IN [] AND state = 'active'", chunk)

    @classmethod
    def give_up_watches(cls, watcher: str | None = None) -> int:
        """End a watcher's claims, or all that have lapsed; what was watched is polled soon."""
        moment = database.now()
        ended = cls.watched_until <= moment if watcher is None else cls.watcher == watcher
        with database.transaction(durable=False):
            cls.update(next_poll_at=moment).where(
                ended, cls.watch_interval.is_null(False), cls.next_poll_at > moment
            ).execute()
            return int(
                cls.update(watcher=None, watched_until=None, watch_interval=None)
                .where(ended, cls.watcher.is_null(False))
                .execute()
            )

    def _change(self, columns: dict[str, Any], also: str = "1 = 1", *values: Any) -> bool:
        """Write columns if the lease is as it was read; also to this instance.

        Parameters:
          also: a further condition in SQL, with its values.
        """
        where = f"id = ? AND lease_token = ? AND {also}"
        if not database.update(type(self), columns, where, self.id, self.lease_token, *values):
            return False
        for name, value in columns.items():
            setattr(self, name, value)
        return True

    @classmethod
    def hold(cls, account_id: int, seconds: int) -> Self | None:
        """Take a free lease for repairs: no poll, and none that had it before can commit.

        Unlike ``lease`` it takes paused accounts too, and says nothing about polls.
        """
        moment = database.now()
        with database.transaction(durable=False):
            taken = (
                cls.update(
                    lease_token=cls.lease_token + 1, lease_until=moment + timedelta(seconds=seconds)
                )
                .where(
                    cls.id == account_id,
                    cls.state != AccountState.DELETING,
                    cls.lease_until.is_null() | (cls.lease_until <= moment),
                )
                .execute()
            )
            return cls.by_id(account_id) if taken else None

    def keep(self, seconds: int) -> None:
        """Renew a lease taken with ``hold``, inside the transaction that relies on it.

        Raises:
          LeaseLost: as ``fence`` does.
        """
        until = database.now() + timedelta(seconds=seconds)
        if not KEEP.run(database.timestamp(until), self.id, self.lease_token).rowcount:
            counters.add("fence_refused")
            raise LeaseLost(f"account {self.uuid}")
        database.waited()

    def fence(self, seconds: int) -> None:
        """Renew the lease inside the transaction that relies on it.

        Raises:
          LeaseLost: the token is no longer ours, so the transaction must not commit.
        """
        until = database.now() + timedelta(seconds=seconds)
        if not FENCE.run(database.timestamp(until), self.id, self.lease_token).rowcount:
            counters.add("fence_refused")
            raise LeaseLost(f"account {self.uuid}")
        database.waited()

    def renew(self, seconds: int) -> bool:
        """Renew the lease in a transaction; false: it was given back, or is ours no more.

        For a thread beside the one that has it.
        """
        until = database.now() + timedelta(seconds=seconds)
        row = (database.timestamp(until), self.id, self.lease_token)
        return bool(RENEW.run(*row).rowcount)

    def release(self, **outcome: Any) -> bool:
        """End the lease, and write down how the poll went; false if it was ours no more.

        Also when it is released already: what is told of the poll is told once.
        """
        with database.transaction(durable=False):
            ours = self._change({"lease_until": None, **outcome}, "lease_until IS NOT NULL")
            if ours:
                self.announce(outcome)
        return ours

    def bring_forward(self) -> None:
        """Let the next poll be sooner where its interval has become shorter since the last began.

        Not later than where somebody has asked for it.
        """
        moment: datetime = self.last_poll_at
        longest = self.interval_at(moment) * (1 + DRIFT)
        if (self.next_poll_at - moment).total_seconds() > longest:
            due = self.following(moment)
            with database.transaction(durable=False):
                sooner = database.timestamp(due)
                self._change({"next_poll_at": due}, "next_poll_at > ?", sooner)

    def asked_for(self) -> bool:
        """Whether somebody has made the account due since its poll began."""
        with database.connected():
            row = NEXT_POLL.run(self.id).fetchone()
        due = database.moment(row[0]) if row else self.next_poll_at
        return bool(due != self.next_poll_at and due <= database.now())

    def announce(self, changed: Mapping[str, Any]) -> None:
        """Tell of what readers of events want to know among the columns that were written."""
        if state := changed.get("state"):
            data = {"state": state, "reason": changed.get("last_error")}
            EmailEvent.add(EventType.ACCOUNT_STATE, self.id, data=data)
        if changed.get("imported_at"):
            EmailEvent.add(EventType.ACCOUNT_IMPORTED, self.id)


class EmailHost(Table):
    """A host that refuses whoever calls, and until when."""

    host = CharField(255, primary_key=True)
    not_before = TimestampField()
    reason = TextField()

    class Meta:
        table_name = "email_hosts"
