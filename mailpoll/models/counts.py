"""How much came in, by day and by hour."""

from datetime import datetime

import peewee
from peewee import BigIntegerField, CharField, ForeignKeyField, IntegerField

from .. import database
from ..database import TimestampField
from .account import EmailAccount
from .base import Table

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

#: Rows of ``email_days`` for each day, as the triggers choose them, and of ``email_hours``.
SHARDS = 8


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
