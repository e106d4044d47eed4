"""The tables, and the queries that have a name. Indexes and constraints stand in ``migrations/``.

Times are aware UTC datetimes. Nothing here knows IMAP, blobs or queues.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Self

import peewee
from peewee import (
    BigIntegerField,
    BooleanField,
    CharField,
    ForeignKeyField,
    IntegerField,
    TextField,
    fn,
)

from . import counters, database
from .database import IdField, JsonField, TimestampField


class AccountState(StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"
    AUTH_FAILED = "auth_failed"
    DELETING = "deleting"


class MessageStatus(StrEnum):
    STORED = "stored"
    PROCESSED = "processed"
    FAILED = "failed"


class FetchVerdict(StrEnum):
    """What became of a UID that has no message."""

    WAITING = "waiting"
    GONE = "gone"
    UNREADABLE = "unreadable"
    TOO_LARGE = "too_large"


class EventType(StrEnum):
    """What the event log tells of."""

    MESSAGE_NEW = "message.new"
    MESSAGE_FAILED = "message.failed"
    MESSAGE_LOCATED = "message.located"
    MESSAGE_MOVED = "message.moved"
    MESSAGE_EXPUNGED = "message.expunged"
    MESSAGE_FLAGS = "message.flags"
    MESSAGE_DELETED = "message.deleted"
    ACCOUNT_STATE = "account.state"
    ACCOUNT_IMPORTED = "account.imported"
    STORAGE_FALLBACK = "storage.fallback"
    STORAGE_RECOVERED = "storage.recovered"
    FSCK_DIFFERENCE = "fsck.difference"


class EndpointState(StrEnum):
    """``disabled`` by mailpoll: the receiver is gone, or has failed for a day."""

    ACTIVE = "active"
    PAUSED = "paused"
    DISABLED = "disabled"


class Payload(StrEnum):
    """How much of a message a webhook carries."""

    IDS = "ids"
    FIELDS = "fields"
    BODIES = "bodies"


class JobState(StrEnum):
    RUNNING = "running"
    DONE = "done"


class ExportState(StrEnum):
    """``failed``: a part of it was lost, or its account could not be read; make another one."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"


#: How long after its time a queued poll counts as lost.
PATIENCE = timedelta(minutes=2)


class Scope(StrEnum):
    """What an API key may do; each scope includes those before it."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"

    def includes(self, other: "Scope") -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(other)


class MarkName(StrEnum):
    """What a ``Mark`` is about."""

    #: The scheduler's last tick that a worker has seen.
    TICK = "tick"
    #: How far a worker's clock is ahead of the database's, in milliseconds.
    CLOCK = "clock"
    #: The last check of everything, with the number of differences left; and the last without any.
    FSCK = "fsck"
    FSCK_OK = "fsck_ok"
    #: The last message of the search index that is being made anew.
    REINDEX = "reindex"
    #: Retention deleted mail whose words may still stand in the search index: value 1.
    WORDS_LEFT = "words_left"


#: How the wire names of folders of imports begin: a server's never do.
ARCHIVED = "\n"

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


DAY_COUNTERS = ("messages", "bytes", "attachments", "attachment_bytes", "failures")
ADD_DAY = database.Statement("""
    INSERT INTO email_account_days
        (account_id, day, messages, bytes, attachments, attachment_bytes, failures)
    VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (account_id, day) DO UPDATE SET
        messages = email_account_days.messages + excluded.messages,
        bytes = email_account_days.bytes + excluded.bytes,
        attachments = email_account_days.attachments + excluded.attachments,
        attachment_bytes = email_account_days.attachment_bytes + excluded.attachment_bytes,
        failures = email_account_days.failures + excluded.failures
""")
ADD_HOUR = database.Statement("""
    INSERT INTO email_hours (hour, shard, messages, imported) VALUES (?, ?, ?, ?)
    ON CONFLICT (hour, shard) DO UPDATE SET
        messages = email_hours.messages + excluded.messages,
        imported = email_hours.imported + excluded.imported
""")
ADD_EVENT = database.Statement("""
    INSERT INTO email_events (type, account_id, message_id, data, created_at)
    VALUES (?, ?, ?, ?, ?)
""")
#: Rows of ``email_days`` for each day, as the triggers choose them, and of ``email_hours``.
SHARDS = 8

#: The conditions of indexes on few rows, as they stand there: planners do not see through a
#: parameter that a condition is fulfilled.
STORED = peewee.SQL("status = 'stored'")
UNFINISHED = peewee.SQL("status <> 'processed'")
LOCAL = peewee.SQL("storage_type = 'local'")


class LeaseLost(Exception):
    """Another poller, a pause or a deletion took the account: nothing of this batch was written."""


class Table(peewee.Model):
    class Meta:
        database = database.proxy
        legacy_table_names = False


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
        for chunk in peewee.chunked(ids, 500):
            cls.update(queued_until=start + PATIENCE).where(cls.id.in_(chunk)).execute()

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
                cls.update(queued_until=None).where(cls.id.in_(chunk)).execute()

    @classmethod
    def lease(cls, account_id: int, due: int | None, seconds: int) -> Self | None:
        """Begin a poll: take the account's lease if it is due and free.

        Parameters:
          due: the due time that the queue message was sent for, in milliseconds of the Unix
            epoch, so that a message is not "early" by another clock; ``None`` forces the poll.
          seconds: how long the lease holds without a commit.
        """
        moment = database.now()
        with database.transaction(durable=False):
            account = cls.by_id(account_id)
            if account is None or account.state != AccountState.ACTIVE:
                return None
            if account.lease_until and account.lease_until > moment:
                return None
            if due is not None and account.due != due and account.next_poll_at > moment:
                return None
            lateness = max(0, int((moment - account.next_poll_at).total_seconds() * 1_000))
            history = [*(account.recent_lateness_ms or []), lateness]
            columns: dict[str, Any] = {
                "lease_token": account.lease_token + 1,
                "lease_until": moment + timedelta(seconds=seconds),
                "queued_until": None,
                "next_poll_at": moment + timedelta(seconds=account.interval_at(moment)),
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
            for chunk in peewee.chunked([account.id for account in found], 500):
                cls.update(watcher=watcher, watched_until=until, watch_interval=None).where(
                    cls.id.in_(chunk)
                ).execute()
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
            cls.update(next_poll_at=moment, queued_until=moment + PATIENCE).where(
                cls.id.in_(list(ids)), cls.state == AccountState.ACTIVE
            ).execute()

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

    def fence(self, seconds: int) -> None:
        """Renew the lease inside the transaction that relies on it.

        Raises:
          LeaseLost: the token is no longer ours, so the transaction must not commit.
        """
        until = database.now() + timedelta(seconds=seconds)
        if not FENCE.run(database.timestamp(until), self.id, self.lease_token).rowcount:
            counters.add("fence_refused")
            raise LeaseLost(f"account {self.uuid}")

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

    def poll_by(self, moment: datetime) -> None:
        """Let it be polled at that time, or sooner where somebody has asked for it."""
        if moment < self.next_poll_at:
            with database.transaction(durable=False):
                sooner = database.timestamp(moment)
                self._change({"next_poll_at": moment}, "next_poll_at > ?", sooner)

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


class EmailFolder(Table):
    """A folder and the window of UIDs in it that are accounted for."""

    id = IdField()
    account = ForeignKeyField(
        EmailAccount, backref="email_folders", on_delete="RESTRICT", index=False
    )
    #: The name as the server spells it, its bytes as Latin-1: sent back unchanged.
    wire_name = TextField()
    #: The name as people read it, levels separated by "/".
    name = TextField()
    special_use = CharField(32, null=True)
    uidvalidity = BigIntegerField(null=True)
    #: Raised when the server gives known UIDs to other messages without changing UIDVALIDITY.
    generation = IntegerField(default=0)
    #: How often the window was begun anew within a day, and when that was last.
    restarts = IntegerField(default=0)
    restarted_at = TimestampField(null=True)
    #: Every UID from low to high has a message or a verdict. New mail is above, the import below.
    low = BigIntegerField(null=True)
    high = BigIntegerField(null=True)
    #: What arrived since is new mail also where the import finds it; null: nothing is.
    news_since = TimestampField(null=True)
    #: UIDNEXT when the folder was last read to its end; equal means nothing new.
    uidnext = BigIntegerField(null=True)
    #: Messages at the server when last looked.
    server_messages = BigIntegerField(null=True)
    #: Locations of the window and their bytes, and how many of them have left the server.
    messages = BigIntegerField(default=0)
    bytes = BigIntegerField(default=0)
    expunged = BigIntegerField(default=0)
    #: The last account of every message that the server counts: see ``mailpoll.sync.proof``.
    proof = JsonField(null=True)
    complete = BooleanField(default=False)
    #: When nothing was missing last, and when the server's whole list was last compared.
    proved_at = TimestampField(null=True)
    reconciled_at = TimestampField(null=True)
    gone_at = TimestampField(null=True)
    #: The flags of all places are as of this mod-sequence (RFC 7162); 0: the server's are no good.
    modseq = BigIntegerField(null=True)
    #: A look at the flags goes on from this UID downward, and then they are as of the target.
    flags_cursor = BigIntegerField(null=True)
    flags_target = BigIntegerField(null=True)
    #: When flags were last looked at, and when all of them had been compared.
    flags_at = TimestampField(null=True)
    flags_checked_at = TimestampField(null=True)
    last_error = TextField(null=True)
    checked_at = TimestampField(null=True)

    class Meta:
        table_name = "email_folders"

    @property
    def numbering(self) -> tuple[int, int, int]:
        """What UIDs of it mean: its id, UIDVALIDITY and generation."""
        return self.id, self.uidvalidity, self.generation

    @property
    def imported(self) -> bool:
        return self.low is not None and self.low <= 1

    def last_proved(self, last_success: datetime | None) -> datetime | None:
        """When every message was accounted for; ``last_success``: the account's last good poll.

        One that finds the server's numbers unchanged proves again what was complete before.
        """
        proved: datetime | None = self.proved_at
        if proved and last_success and self.complete and self.last_error is None:
            return max(proved, last_success)
        return proved

    @property
    def archived(self) -> bool:
        """Whether it is a folder of an import, which no server lists."""
        return str(self.wire_name).startswith(ARCHIVED)

    @classmethod
    def of_account(cls, account_id: int) -> list[Self]:
        """An account's folders, vanished ones too; inside the caller's connection."""
        return database.select(cls, "account_id = ?", account_id)

    @classmethod
    def forget_numbers(cls, account_id: int) -> None:
        """Let every UID be unknown: the account's folders are those of another mailbox from now on.

        What is stored stays. Servers give many mailboxes the same UIDVALIDITY, so that it alone
        does not tell their UIDs apart.
        """
        EmailFlag.delete().where(EmailFlag.account == account_id).execute()
        cls.update(
            generation=cls.generation + 1,
            uidvalidity=None,
            restarts=0,
            restarted_at=None,
            messages=0,
            bytes=0,
            expunged=0,
            proof=None,
            complete=False,
            modseq=None,
            flags_cursor=None,
            last_error=None,
        ).where(cls.account == account_id, ~cls.wire_name.startswith(ARCHIVED)).execute()

    @classmethod
    def compare_flags(cls, account_id: int) -> None:
        """Let the next poll compare all flags of an account."""
        cls.update(modseq=None, flags_cursor=None).where(cls.account == account_id).execute()


class EmailRawMessage(Table):
    """A message of an account, once, whatever folders it lies in. Identity is its SHA-256."""

    id = IdField()
    account = ForeignKeyField(EmailAccount, on_delete="RESTRICT", index=False)
    sha256 = CharField(64)
    #: The server's own name of this content (EMAILID, X-GM-MSGID), which saves a second download.
    email_id = CharField(255, null=True)
    size = BigIntegerField()
    storage_type = CharField(8)
    storage_key = CharField(128)
    internal_date = TimestampField()
    stored_at = TimestampField()
    #: It came with the first import, so that new mail is processed before it.
    imported = BooleanField(default=False)
    status = CharField(16, default=MessageStatus.STORED)
    attempts = IntegerField(default=0)
    #: The sweeper enqueues a stored message again after this.
    next_attempt_at = TimestampField(null=True)
    processed_at = TimestampField(null=True)
    error = TextField(null=True)
    parser = CharField(16, null=True)
    defects = JsonField(null=True)
    subject = TextField(null=True)
    #: Lists of {"name", "address"}.
    from_addresses = JsonField(null=True)
    to_addresses = JsonField(null=True)
    cc_addresses = JsonField(null=True)
    bcc_addresses = JsonField(null=True)
    reply_to_addresses = JsonField(null=True)
    date = TimestampField(null=True)
    message_id = TextField(null=True)
    in_reply_to = TextField(null=True)
    reference_ids = JsonField(null=True)
    attachment_count = IntegerField(default=0)
    #: The conversation it belongs to, as the id of one of its messages: see ``mailpoll.threads``.
    thread_id = BigIntegerField(null=True)
    #: How the message's own words begin, on one line.
    preview = TextField(null=True)
    #: The text was made from the HTML: the message has none of its own.
    text_derived = BooleanField(default=False)
    #: The DKIM signatures as they were when somebody last had them checked: see ``signatures``.
    dkim = JsonField(null=True)
    dkim_checked_at = TimestampField(null=True)
    # Large columns last: SQLite reads the small ones without touching their pages.
    #: List of [name, value] in the order of the message.
    headers = JsonField(null=True)
    text_body = TextField(null=True)
    html_body = TextField(null=True)

    class Meta:
        table_name = "email_raw_messages"

    @classmethod
    def lost(cls, limit: int, *, imported: bool) -> list[Self]:
        """Overdue stored messages of a lane, most overdue first; small columns only."""
        with database.connected():
            return list(
                cls.select(cls.id, cls.account, cls.attempts, cls.internal_date, cls.storage_type)
                .where(
                    STORED,
                    cls.imported == imported,
                    cls.next_attempt_at <= database.now(),
                )
                .order_by(cls.next_attempt_at)
                .limit(limit)
            )

    @classmethod
    def forget_names(cls, account_id: int) -> None:
        """Drop what a server called the account's contents: another one may mean others by it."""
        named = (cls.account == account_id) & cls.email_id.is_null(False)
        cls.update(email_id=None).where(named).execute()

    @classmethod
    def postpone(cls, ids: list[int], seconds: float) -> None:
        """Let the sweeper leave these messages alone for a while: they were just enqueued."""
        moment = database.now() + timedelta(seconds=seconds)
        with database.transaction(durable=False):
            cls.update(next_attempt_at=moment).where(
                cls.id.in_(ids), cls.status == MessageStatus.STORED
            ).execute()

    @classmethod
    def postpone_none(cls) -> None:
        """Let the next sweep take every stored message."""
        moment = database.now()
        with database.transaction():
            cls.update(next_attempt_at=moment).where(STORED, cls.next_attempt_at > moment).execute()


class EmailLocation(Table):
    """Where a message lies or lay: (folder, UIDVALIDITY, UID)."""

    id = IdField()
    folder = ForeignKeyField(EmailFolder, backref="locations", on_delete="RESTRICT", index=False)
    uidvalidity = BigIntegerField()
    generation = IntegerField(default=0)
    uid = BigIntegerField()
    message = ForeignKeyField(EmailRawMessage, backref="locations", on_delete="RESTRICT")
    #: The message's own ``internal_date``: a folder's newest messages are found by it.
    message_date = TimestampField()
    #: RFC822.SIZE and INTERNALDATE as the server told them: a later difference betrays other mail.
    server_size = BigIntegerField(null=True)
    internal_date = TimestampField(null=True)
    seen_at = TimestampField()
    expunged_at = TimestampField(null=True)
    #: Flags and Gmail's labels as last seen; null: never. ``email_flags`` finds places by them.
    flags = JsonField(null=True)
    labels = JsonField(null=True)

    class Meta:
        table_name = "email_locations"


#: What stands in ``EmailFlag`` for a place without ``\Seen``; no server can send that.
UNSEEN = ""


class EmailFlag(Table):
    """The index of flags: a row for each flag of each place that messages lie in now."""

    location = ForeignKeyField(EmailLocation, on_delete="CASCADE", index=False)
    #: As ``of_flag`` has it, or ``UNSEEN``, or as ``of_label`` has one of Gmail's labels.
    flag = CharField(120)
    account = ForeignKeyField(EmailAccount, on_delete="RESTRICT", index=False)
    folder = ForeignKeyField(EmailFolder, on_delete="RESTRICT", index=False)
    #: As of the place.
    message_date = TimestampField()
    message_id = BigIntegerField()

    @classmethod
    def of_flag(cls, flag: str) -> str:
        """A flag as it stands here; some letters are two in lower case."""
        return flag.lower()[:120]

    @classmethod
    def of_label(cls, label: str) -> str:
        """A label as it stands here; no flag begins with a blank."""
        return cls.of_flag(f" {label}")

    class Meta:
        table_name = "email_flags"
        primary_key = peewee.CompositeKey("location", "flag")


class EmailAttachment(Table):
    """A part of a message that is not its text. ``position`` counts from 0 in message order."""

    id = IdField()
    account = ForeignKeyField(EmailAccount, on_delete="RESTRICT", index=False)
    message = ForeignKeyField(
        EmailRawMessage, backref="attachments", on_delete="RESTRICT", index=False
    )
    position = IntegerField()
    name = TextField()
    safe_name = TextField()
    content_type = TextField()
    content_id = TextField()
    inline = BooleanField()
    size = BigIntegerField()
    sha256 = CharField(64)
    storage_type = CharField(8)
    storage_key = CharField(128)

    class Meta:
        table_name = "email_attachments"


class EmailSearch(Table):
    """A message in the search index, which goes with the message: see ``mailpoll.search.index``."""

    #: Its place in time: the hits of a search come in this order.
    id = BigIntegerField(primary_key=True)
    account = ForeignKeyField(EmailAccount, on_delete="RESTRICT", index=False)
    message = ForeignKeyField(EmailRawMessage, on_delete="CASCADE", unique=True)
    size = BigIntegerField()
    version = IntegerField()
    #: The words of subject, people and attachments' names, by which hits are ranked.
    head = TextField()

    class Meta:
        table_name = "email_search"


class EmailThreadKey(Table):
    """What ties the messages of a thread together, as a number: see ``mailpoll.threads``."""

    account = ForeignKeyField(EmailAccount, on_delete="RESTRICT", index=False)
    key = BigIntegerField()
    thread_id = BigIntegerField()
    #: All that have this key are one thread; else only the next one with it may make them so.
    joins = BooleanField()

    class Meta:
        table_name = "email_thread_keys"
        primary_key = peewee.CompositeKey("account", "key", "thread_id")


class EmailFetchFailure(Table):
    """A UID that has no message, why, and when it is tried again."""

    id = IdField()
    folder = ForeignKeyField(
        EmailFolder, backref="fetch_failures", on_delete="RESTRICT", index=False
    )
    uidvalidity = BigIntegerField()
    generation = IntegerField(default=0)
    uid = BigIntegerField()
    verdict = CharField(16)
    reason = TextField()
    size = BigIntegerField(null=True)
    #: The header section of a message that is too large, its bytes as Latin-1.
    headers = TextField(null=True)
    attempts = IntegerField(default=1)
    next_attempt_at = TimestampField(null=True)
    seen_at = TimestampField()

    class Meta:
        table_name = "email_fetch_failures"


class EmailLeftOut(Table):
    """A run of UIDs that the account does not want.

    They arrived before ``import_since``, or retention has deleted them, or would at once.
    """

    folder = ForeignKeyField(EmailFolder, on_delete="RESTRICT", index=False)
    uidvalidity = BigIntegerField()
    generation = IntegerField()
    first_uid = BigIntegerField()
    last_uid = BigIntegerField()

    class Meta:
        table_name = "email_left_out"
        primary_key = peewee.CompositeKey("folder", "uidvalidity", "generation", "first_uid")


class EmailAccountDay(Table):
    """What an account received on a UTC day, counted in the transactions that store it."""

    account = ForeignKeyField(EmailAccount, on_delete="RESTRICT", index=False)
    #: ISO date of INTERNALDATE in UTC.
    day = CharField(10)
    messages = BigIntegerField(default=0)
    bytes = BigIntegerField(default=0)
    attachments = BigIntegerField(default=0)
    attachment_bytes = BigIntegerField(default=0)
    failures = BigIntegerField(default=0)

    class Meta:
        table_name = "email_account_days"
        primary_key = peewee.CompositeKey("account", "day")

    @classmethod
    def add(cls, account_id: int, day: str, **amounts: int) -> None:
        """Add to one day's counters, inside the caller's transaction."""
        counts = tuple(amounts.get(name, 0) for name in DAY_COUNTERS)
        ADD_DAY.run(account_id, day, *counts)


class EmailDay(Table):
    """What all accounts received on a UTC day: the sum of their days, in some rows for each day.

    The database keeps it with triggers on ``email_account_days``; nothing else writes it.
    """

    day = CharField(10)
    shard = IntegerField()
    messages = BigIntegerField()
    bytes = BigIntegerField()
    attachments = BigIntegerField()
    attachment_bytes = BigIntegerField()
    failures = BigIntegerField()

    class Meta:
        table_name = "email_days"
        primary_key = peewee.CompositeKey("day", "shard")

    @classmethod
    def lock(cls, account_id: int) -> None:
        """Take the rows that an account's days are part of, in the order that commits take them."""
        if not database.is_sqlite():
            rows = cls.select(cls.day).where(cls.shard == account_id % SHARDS)
            rows.order_by(cls.day).for_update().execute()


class EmailTombstone(Table):
    """A content that was deleted by its age: it is not stored again, wherever it turns up."""

    account = ForeignKeyField(EmailAccount, on_delete="RESTRICT", index=False)
    sha256 = CharField(64)
    #: The server's own name of it, and its size, which save a download.
    email_id = CharField(255, null=True)
    size = BigIntegerField()
    deleted_at = TimestampField()

    class Meta:
        table_name = "email_tombstones"
        primary_key = peewee.CompositeKey("account", "sha256")


class EmailDoomedBlob(Table):
    """A content whose rows retention has deleted, and what became of its blob: see ``doomed``."""

    account = ForeignKeyField(EmailAccount, on_delete="RESTRICT", index=False)
    sha256 = CharField(64)
    doomed_at = TimestampField()
    begun_at = TimestampField(null=True)
    gone_at = TimestampField(null=True)

    class Meta:
        table_name = "email_doomed_blobs"
        primary_key = peewee.CompositeKey("account", "sha256")


class EmailHold(Table):
    """A legal hold on a message, or on a whole account: nothing of it is deleted."""

    id = IdField()
    account = ForeignKeyField(EmailAccount, on_delete="RESTRICT", index=False)
    #: Null: all messages.
    message = ForeignKeyField(EmailRawMessage, null=True, on_delete="RESTRICT", index=False)
    reason = TextField()
    held_by = CharField(64)
    held_at = TimestampField()

    class Meta:
        table_name = "email_holds"


class EmailHour(Table):
    """How many messages were stored within an hour, in some rows for each hour.

    Written last of what transactions of several accounts share, so that none waits in a circle.
    Nothing in it is about a single account, and it does not shrink when one is deleted.
    """

    #: The hour's beginning.
    hour = TimestampField()
    shard = IntegerField()
    messages = BigIntegerField()
    #: How many of them a first import brought.
    imported = BigIntegerField()

    class Meta:
        table_name = "email_hours"
        primary_key = peewee.CompositeKey("hour", "shard")

    @classmethod
    def add(cls, account_id: int, messages: int, imported: int) -> None:
        """Count messages that are stored now, inside the caller's transaction.

        Parameters:
          imported: how many of them are no new mail.
        """
        hour = database.now().replace(minute=0, second=0, microsecond=0)
        ADD_HOUR.run(database.timestamp(hour), account_id % SHARDS, messages, imported)

    @classmethod
    def forget(cls, before: datetime) -> int:
        """Remove hours that are older; how many rows."""
        with database.transaction(durable=False):
            return int(cls.delete().where(cls.hour < before).execute())


class EmailEvent(Table):
    """Something that happened, written in the transaction that made it so.

    ``id`` says in which order transactions wrote, ``number`` in which order they can be read: it
    is given after the commit, without gaps. See ``mailpoll.events``.
    """

    id = IdField()
    number = BigIntegerField(null=True, unique=True)
    type = CharField(32)
    #: Null where it is about no account. The rows of a deleted account go with it.
    account = ForeignKeyField(EmailAccount, null=True, on_delete="RESTRICT", index=False)
    message_id = BigIntegerField(null=True)
    #: Few and small values; nothing that a message says.
    data = JsonField(default=dict)
    created_at = TimestampField()
    #: What a process calls when it has committed events, whatever wrote them.
    readers: ClassVar[list[Callable[[], None]]] = []

    class Meta:
        table_name = "email_events"

    @classmethod
    def add(
        cls,
        kind: EventType,
        account_id: int | None = None,
        message_id: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one event, inside the caller's transaction."""
        cls.add_many([(kind, account_id, message_id, data or {})])

    @classmethod
    def add_many(
        cls, rows: Sequence[tuple[EventType, int | None, int | None, Mapping[str, Any]]]
    ) -> None:
        """Write events, inside the caller's transaction: (type, account, message, data)."""
        for reader in cls.readers:
            database.after_commit(reader)
        moment = database.timestamp(database.now())
        ADD_EVENT.run_many(
            [
                (str(kind), account, message, database.json(data), moment)
                for kind, account, message, data in rows
            ]
        )


class WebhookEndpoint(Table):
    """A team's own program that is told of events, one after the other."""

    id = IdField()
    uuid = CharField(36, unique=True)
    url = TextField()
    description = TextField(default="")
    #: Standard Webhooks secrets, encrypted. The one before is valid too until ``old_secret_until``.
    secret = TextField()
    old_secret = TextField(null=True)
    old_secret_until = TimestampField(null=True)
    #: Null: all types, all accounts.
    types = JsonField(null=True)
    accounts = JsonField(null=True)
    #: Tell of the messages of first imports too.
    imports = BooleanField(default=False)
    payload = CharField(8, default=Payload.IDS)
    #: Bytes of text and of HTML in the ``bodies`` form.
    body_limit = IntegerField(default=100_000)
    #: Deliveries a second, at most; null is as fast as it answers.
    rate = IntegerField(null=True)
    state = CharField(8, default=EndpointState.ACTIVE)
    #: Number of the last event that was delivered, or was not for this endpoint.
    position = BigIntegerField()
    #: Attempts with the next event, and since when it fails.
    attempts = IntegerField(default=0)
    failing_since = TimestampField(null=True)
    #: How many events were refused with none accepted since, and the number of the first of them.
    refused = IntegerField(default=0)
    refused_from = BigIntegerField(null=True)
    next_attempt_at = TimestampField(null=True)
    last_error = TextField(null=True)
    last_success_at = TimestampField(null=True)
    lease_token = BigIntegerField(default=0)
    lease_until = TimestampField(null=True)
    created_at = TimestampField()
    updated_at = TimestampField()

    class Meta:
        table_name = "webhook_endpoints"


class WebhookDelivery(Table):
    """One request to an endpoint, and what it answered."""

    id = IdField()
    endpoint = ForeignKeyField(WebhookEndpoint, on_delete="CASCADE", index=False)
    event_number = BigIntegerField()
    event_type = CharField(32)
    account_id = BigIntegerField(null=True, index=False)
    #: What was sent of a message goes with it.
    message_id = BigIntegerField(null=True, index=False)
    attempt = IntegerField()
    #: ``delivered``, ``failed`` (tried again) or ``refused`` (set aside, the next one was sent).
    outcome = CharField(16)
    status = IntegerField(null=True)
    error = TextField(null=True)
    request = TextField()
    answer = TextField(null=True)
    duration_ms = IntegerField()
    created_at = TimestampField()

    class Meta:
        table_name = "webhook_deliveries"


class EmailJob(Table):
    """Long work with a step to resume from. The row outlives the account: it is its tombstone."""

    id = IdField()
    uuid = CharField(36, unique=True)
    kind = CharField(16)
    account_uuid = CharField(36, index=True)
    account_id = BigIntegerField()
    #: SHA-256 of the address in lower case, where the operator wants receipts to be found by it.
    address_sha256 = CharField(64, null=True)
    state = CharField(16, default=JobState.RUNNING)
    step = CharField(32)
    #: How much was removed so far: rows by table, and the rest as ``receipts`` reads it.
    counts = JsonField(default=dict)
    #: Things without transactions that are being removed: {"place", "names"}. Counted already.
    page = JsonField(null=True)
    #: What the last look found left, and how many looks there were: {"at", "rounds", "found"}.
    scan = JsonField(null=True)
    attempts = IntegerField(default=0)
    lease_until = TimestampField(null=True)
    error = TextField(null=True)
    created_at = TimestampField()
    updated_at = TimestampField()
    finished_at = TimestampField(null=True)

    class Meta:
        table_name = "email_jobs"


class ApiKey(Table):
    """A token of the API. The token itself is nowhere; the row stays when it is revoked."""

    id = IdField()
    uuid = CharField(36, unique=True)
    #: Never given out twice, so that the audit log stays clear.
    name = CharField(64, unique=True)
    scope = CharField(8)
    #: SHA-256 of the token, in hexadecimal.
    token_sha256 = CharField(64, unique=True)
    created_at = TimestampField()
    expires_at = TimestampField(null=True)
    #: Up to a minute old.
    last_used_at = TimestampField(null=True)
    revoked_at = TimestampField(null=True)

    class Meta:
        table_name = "api_keys"


class AuditEvent(Table):
    """Who did what to which row, and when. Never what was in it."""

    id = IdField()
    at = TimestampField()
    who = CharField(64)
    action = CharField(32)
    #: What was acted on: "account", "message" …, and its public id.
    kind = CharField(16, null=True)
    target = CharField(64, null=True)
    request_id = CharField(36, null=True)
    client = CharField(64, null=True)

    class Meta:
        table_name = "audit_events"


class Mark(Table):
    """When something of the whole installation happened last, and a figure that belongs to it."""

    name = CharField(32, primary_key=True)
    at = TimestampField()
    value = BigIntegerField(default=0)

    class Meta:
        table_name = "marks"

    @classmethod
    def set(cls, name: MarkName, value: int = 0) -> None:
        """Note that it happened now."""
        moment = database.now()
        with database.transaction(durable=False):
            cls.insert(name=name, at=moment, value=value).on_conflict(
                conflict_target=[cls.name], update={cls.at: moment, cls.value: value}
            ).execute()

    @classmethod
    def all(cls) -> dict[str, Self]:
        """Every mark by its name."""
        with database.connected():
            return {mark.name: mark for mark in cls.select()}


class Alarm(Table):
    """A condition that an operator should know of, while it holds and afterwards.

    Nothing in it is about a single account, so it outlives them all.
    """

    name = CharField(32, primary_key=True)
    since = TimestampField()
    #: When it was found last, and since when it is over.
    seen_at = TimestampField()
    cleared_at = TimestampField(null=True)
    #: How many, or how much, and the same in words.
    amount = BigIntegerField()
    words = TextField()
    #: When it was told last, with which amount, and whether those who were told believe it holds.
    notified_at = TimestampField(null=True)
    notified_amount = BigIntegerField(default=0)
    told = BooleanField(default=False)
    #: A process is telling it, until then at most.
    claimed_until = TimestampField(null=True)

    class Meta:
        table_name = "alarms"


class EmailScrub(Table):
    """The one row that tells how far the scrub has come: see ``mailpoll.scrub``."""

    id = IntegerField(primary_key=True)
    #: When this round began, and when the last whole one ended.
    started_at = TimestampField()
    finished_at = TimestampField(null=True)
    #: How far it is: the id of a message, or behind the last of them, of an attachment.
    position = BigIntegerField(default=0)
    #: The last ids of the round: what is stored later belongs to the next.
    last_message_id = BigIntegerField(default=0)
    last_attachment_id = BigIntegerField(default=0)
    #: A fencing token, raised by each run, and until when the run may take.
    token = BigIntegerField(default=0)
    lease_until = TimestampField(null=True)
    #: Since ever.
    blobs = BigIntegerField(default=0)
    bytes = BigIntegerField(default=0)
    corrupt = BigIntegerField(default=0)
    missing = BigIntegerField(default=0)
    healed = BigIntegerField(default=0)

    class Meta:
        table_name = "email_scrub"

    @property
    def end(self) -> int:
        """The position at which the round is over."""
        return self.last_message_id + self.last_attachment_id  # type: ignore[no-any-return]


class EmailDamage(Table):
    """A blob that the scrub found damaged, and that could not be healed yet."""

    id = IdField()
    account = ForeignKeyField(EmailAccount, on_delete="RESTRICT", index=False)
    message_id = BigIntegerField()
    storage_key = CharField(128)
    kind = CharField(32)
    reason = TextField()
    found_at = TimestampField()
    #: When it is looked at, and healing is tried, again.
    next_attempt_at = TimestampField()

    class Meta:
        table_name = "email_damages"


class EmailExport(Table):
    """An archive of an account's messages, made part by part."""

    id = IdField()
    uuid = CharField(36, unique=True)
    account = ForeignKeyField(EmailAccount, on_delete="RESTRICT", index=False)
    format = CharField(16)
    #: What was asked for: see ``mailpoll.archives.selection``.
    selection = JsonField(default=dict)
    state = CharField(16, default=ExportState.RUNNING)
    #: The last message that is in it: [``internal_date``, id]. Null at the begin and at the end.
    position = JsonField(null=True)
    #: Whether all messages are in it, so that only its end is missing.
    complete = BooleanField(default=False)
    #: Messages in it, those that could not be read, and the archive's bytes.
    messages = BigIntegerField(default=0)
    unreadable = BigIntegerField(default=0)
    bytes = BigIntegerField(default=0)
    parts = IntegerField(default=0)
    #: Messages that it is going to have, as counted at the begin.
    expected = BigIntegerField(null=True)
    attempts = IntegerField(default=0)
    lease_token = BigIntegerField(default=0)
    lease_until = TimestampField(null=True)
    error = TextField(null=True)
    created_at = TimestampField()
    updated_at = TimestampField()
    finished_at = TimestampField(null=True)
    expires_at = TimestampField(null=True)

    class Meta:
        table_name = "email_exports"


class EmailExportPart(Table):
    """A piece of an archive, or of the directory that stands at a zip's end; a blob each."""

    id = IdField()
    account = ForeignKeyField(EmailAccount, on_delete="RESTRICT", index=False)
    export = ForeignKeyField(EmailExport, on_delete="RESTRICT", index=False)
    number = IntegerField()
    directory = BooleanField(default=False)
    #: Of the blob, which begins with a name of its own: see ``mailpoll.archives.jobs``.
    size = BigIntegerField()
    sha256 = CharField(64)
    storage_type = CharField(8)
    storage_key = CharField(128)

    class Meta:
        table_name = "email_export_parts"


#: What mailpoll writes, parents first.
TABLES = [
    EmailHost,
    EmailAccount,
    EmailFolder,
    EmailRawMessage,
    EmailLocation,
    EmailFlag,
    EmailAttachment,
    EmailSearch,
    EmailThreadKey,
    EmailFetchFailure,
    EmailLeftOut,
    EmailAccountDay,
    EmailTombstone,
    EmailDoomedBlob,
    EmailHold,
    EmailHour,
    EmailEvent,
    WebhookEndpoint,
    WebhookDelivery,
    EmailJob,
    ApiKey,
    AuditEvent,
    Mark,
    Alarm,
    EmailScrub,
    EmailDamage,
    EmailExport,
    EmailExportPart,
]


def count(query: peewee.ModelSelect) -> int:
    """The number of rows of a query, without wrapping it in a subquery."""
    return int(query.select(fn.COUNT(peewee.SQL("1"))).scalar())
