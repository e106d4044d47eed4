"""How the installation is: when what happened last, alarms, and the scrub's findings."""

from enum import StrEnum
from typing import Self

from peewee import (
    BigIntegerField,
    BooleanField,
    CharField,
    ForeignKeyField,
    IntegerField,
    TextField,
)

from .. import database
from ..database import IdField, TimestampField
from .account import EmailAccount
from .base import Table


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
