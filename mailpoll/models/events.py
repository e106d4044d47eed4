"""The event log, and the endpoints that are told of it."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar

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
from .base import Table


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


ADD_EVENT = database.Statement("""
    INSERT INTO email_events (type, account_id, message_id, data, created_at)
    VALUES (?, ?, ?, ?, ?)
""")


class EmailEvent(Table):
    """Something that happened, written in the transaction that made it so.

    ``id`` says in which order transactions wrote, ``number`` in which order they can be read: it
    is given after the commit, without gaps. See ``mailpoll.events``.
    """

    id = IdField()
    number = BigIntegerField(null=True, unique=True)
    type = CharField(32)
    #: Null where it is about no account. The rows of a deleted account go with it. No foreign key
    #: to the model, which writes events itself.
    account_id = BigIntegerField(null=True)
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
