"""Folders, messages, and what is known of each."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self

import peewee
from peewee import (
    BigIntegerField,
    BooleanField,
    CharField,
    ForeignKeyField,
    IntegerField,
    TextField,
)

from .. import database
from ..database import IdField, JsonField, TimestampField
from .account import EmailAccount
from .base import Table


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


#: How the wire names of folders of imports begin: a server's never do.
ARCHIVED = "\n"

#: The conditions of indexes on few rows, as they stand there: planners do not see through a
#: parameter that a condition is fulfilled.
STORED = peewee.SQL("status = 'stored'")
UNFINISHED = peewee.SQL("status <> 'processed'")
LOCAL = peewee.SQL("storage_type = 'local'")

#: What stands in ``EmailFlag`` for a place without ``\Seen``; no server can send that.
UNSEEN = ""


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
            for chunk in database.chunks(ids):
                due = {"next_attempt_at": moment}
                database.update(cls, due, "id IN [] AND status = 'stored'", chunk)

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
