"""The tables, and the queries that have a name. Indexes and constraints stand in ``migrations/``.

Times are aware UTC datetimes. Nothing here knows IMAP, blobs or queues.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

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

from . import database
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


class JobState(StrEnum):
    RUNNING = "running"
    DONE = "done"


#: Polls whose lateness is remembered.
LATENESS_KEPT = 50

ACCOUNT = database.Statement("SELECT * FROM email_accounts WHERE id = ?")
FOLDERS = database.Statement("SELECT * FROM email_folders WHERE account_id = ?")
FENCE = database.Statement("""
    UPDATE email_accounts SET lease_until = ?
    WHERE id = ? AND lease_token = ? AND state = 'active'
""")


KEEP = database.Statement("""
    UPDATE email_accounts SET lease_until = ?
    WHERE id = ? AND lease_token = ? AND state <> 'deleting'
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
#: Rows of ``email_days`` for each day, as the triggers choose them.
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
    poll_interval = IntegerField()
    #: First poll: import what arrived since; null imports all there is.
    import_since = TimestampField(null=True)
    state = CharField(16, default=AccountState.ACTIVE)
    #: Fencing token of the lease: raised at each claim, checked by each commit.
    lease_token = BigIntegerField(default=0)
    lease_until = TimestampField(null=True)
    next_poll_at = TimestampField()
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

    @classmethod
    def by_id(cls, account_id: int) -> Self | None:
        """The account, or ``None``; inside the caller's connection."""
        return next(iter(ACCOUNT.models(cls, account_id)), None)

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
        patience = timedelta(minutes=2)
        for chunk in peewee.chunked(ids, 500):
            cls.update(queued_until=start + patience).where(cls.id.in_(chunk)).execute()

    @classmethod
    def mark_unqueued(cls, account_id: int) -> None:
        """Note that the queue did not take the poll, so that the next tick sends it."""
        with database.transaction(durable=False):
            cls.update(queued_until=None).where(cls.id == account_id).execute()

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
                "next_poll_at": moment + timedelta(seconds=account.poll_interval),
                "last_poll_at": moment,
                "last_lateness_ms": lateness,
                "recent_lateness_ms": history[-LATENESS_KEPT:],
            }
            return account if account._change(columns) else None

    def _change(self, columns: dict[str, Any]) -> bool:
        """Write columns if the lease is as it was read; also to this instance."""
        where = "id = ? AND lease_token = ?"
        if not database.update(type(self), columns, where, self.id, self.lease_token):
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
            raise LeaseLost(f"account {self.uuid}")

    def fence(self, seconds: int) -> None:
        """Renew the lease inside the transaction that relies on it.

        Raises:
          LeaseLost: the token is no longer ours, so the transaction must not commit.
        """
        until = database.now() + timedelta(seconds=seconds)
        if not FENCE.run(database.timestamp(until), self.id, self.lease_token).rowcount:
            raise LeaseLost(f"account {self.uuid}")

    def release(self, **outcome: Any) -> None:
        """End the lease, if it is still ours, and write down how the poll went."""
        with database.transaction(durable=False):
            self._change({"lease_until": None, **outcome})


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
    last_error = TextField(null=True)
    checked_at = TimestampField(null=True)

    class Meta:
        table_name = "email_folders"

    @property
    def imported(self) -> bool:
        return self.low is not None and self.low <= 1

    @classmethod
    def of_account(cls, account_id: int) -> list[Self]:
        """An account's folders, vanished ones too; inside the caller's connection."""
        return FOLDERS.models(cls, account_id)

    @classmethod
    def forget_numbers(cls, account_id: int) -> None:
        """Let every UID be unknown: the account's folders are those of another mailbox from now on.

        What is stored stays. Servers give many mailboxes the same UIDVALIDITY, so that it alone
        does not tell their UIDs apart.
        """
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
            last_error=None,
        ).where(cls.account == account_id).execute()


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
    #: The text was made from the HTML: the message has none of its own.
    text_derived = BooleanField(default=False)
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

    class Meta:
        table_name = "email_locations"


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
    """A run of UIDs that the account does not want: they arrived before ``import_since``."""

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


class EmailJob(Table):
    """Long work with a step to resume from. The row outlives the account: it is its tombstone."""

    id = IdField()
    uuid = CharField(36, unique=True)
    kind = CharField(16)
    account_uuid = CharField(36, index=True)
    account_id = BigIntegerField()
    state = CharField(16, default=JobState.RUNNING)
    step = CharField(32)
    #: How much of each kind was removed so far.
    counts = JsonField(default=dict)
    attempts = IntegerField(default=0)
    lease_until = TimestampField(null=True)
    error = TextField(null=True)
    created_at = TimestampField()
    updated_at = TimestampField()
    finished_at = TimestampField(null=True)

    class Meta:
        table_name = "email_jobs"


#: What mailpoll writes, parents first.
TABLES = [
    EmailHost,
    EmailAccount,
    EmailFolder,
    EmailRawMessage,
    EmailLocation,
    EmailAttachment,
    EmailFetchFailure,
    EmailLeftOut,
    EmailAccountDay,
    EmailJob,
]


def count(query: peewee.ModelSelect) -> int:
    """The number of rows of a query, without wrapping it in a subquery."""
    return int(query.select(fn.COUNT(peewee.SQL("1"))).scalar())
