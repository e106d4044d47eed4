"""What was deleted and is not stored again, what must stay, and the jobs that delete accounts."""

from enum import StrEnum

import peewee
from peewee import BigIntegerField, CharField, ForeignKeyField, IntegerField, TextField

from ..database import IdField, JsonField, TimestampField
from .account import EmailAccount
from .base import Table
from .mail import EmailRawMessage


class JobState(StrEnum):
    RUNNING = "running"
    DONE = "done"


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
