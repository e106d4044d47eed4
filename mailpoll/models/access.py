"""Who may use the API, and who did what."""

from enum import StrEnum

from peewee import CharField

from ..database import IdField, TimestampField
from .base import Table


class Scope(StrEnum):
    """What an API key may do; each scope includes those before it."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"

    def includes(self, other: "Scope") -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(other)


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
