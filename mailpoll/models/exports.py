"""Archives of an account's messages."""

from enum import StrEnum

from peewee import (
    BigIntegerField,
    BooleanField,
    CharField,
    ForeignKeyField,
    IntegerField,
    TextField,
)

from ..database import IdField, JsonField, TimestampField
from .account import EmailAccount
from .base import Table


class ExportState(StrEnum):
    """``failed``: a part of it was lost, or its account could not be read; make another one."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"


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
