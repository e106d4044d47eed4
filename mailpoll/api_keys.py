"""API keys: tokens that only their hash is kept of, with a scope, an end and a way to revoke them.

A token has 256 random bits, so that a plain SHA-256 hides it, and a guess tells nothing: what is
looked up is the guess's hash, of which nobody chooses the first bytes.
"""

import hashlib
import re
import secrets
import uuid as uuids
from datetime import datetime, timedelta

import peewee

from . import audit, database
from .models import ApiKey, Scope

#: What scanners for leaked secrets, and people, know a token by.
PREFIX = "mpk_"
TOKEN = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")
#: How old ``last_used_at`` may be: no request writes it again before.
USE_KEPT = timedelta(minutes=1)


class KeyRefused(Exception):
    """A key cannot be made as asked.

    Parameters:
      field: the field to look at.
      reason: what is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")


class NameTaken(KeyRefused):
    """There is, or was, a key of this name."""


def create(name: str, scope: Scope, expires_at: datetime | None = None) -> tuple[ApiKey, str]:
    """Make a key; its row, and the token, which nobody can be told again.

    Raises:
      KeyRefused: a field does not do.
    """
    if name in audit.RESERVED:
        raise KeyRefused("name", "is the audit log's word for something else")
    moment = database.now()
    if expires_at is not None and expires_at <= moment:
        raise KeyRefused("expires_at", "is over")
    token = PREFIX + secrets.token_urlsafe(32)
    try:
        with database.transaction():
            key = ApiKey.create(
                uuid=str(uuids.uuid4()),
                name=name,
                scope=scope,
                token_sha256=digest(token),
                created_at=moment,
                expires_at=expires_at,
            )
            audit.record("api_key.create", "api_key", key.uuid)
    except peewee.IntegrityError:
        raise NameTaken("name", "there is, or was, a key of this name") from None
    return key, token


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def revoke(uuid: str) -> ApiKey | None:
    """Let a key open nothing from the next request on; ``None``: there is no such key."""
    table = ApiKey
    with database.transaction():
        revoked = table.update(revoked_at=database.now()).where(
            table.uuid == uuid, table.revoked_at.is_null()
        )
        if revoked.execute():
            audit.record("api_key.revoke", "api_key", uuid)
        return table.get_or_none(table.uuid == uuid)  # type: ignore[no-any-return]


def of_token(token: str) -> ApiKey | None:
    """The key of a token, unless it is revoked or over; and note that it was used.

    The row is read for each request: a revocation holds at once in every process.
    """
    if not TOKEN.fullmatch(token):
        return None
    table = ApiKey
    with database.connected():
        key = table.get_or_none(table.token_sha256 == digest(token), table.revoked_at.is_null())
        if key is None:
            return None
        moment = database.now()
        if key.expires_at is not None and key.expires_at <= moment:
            return None
        if key.last_used_at is None or key.last_used_at <= moment - USE_KEPT:
            with database.transaction(durable=False):
                table.update(last_used_at=moment).where(table.id == key.id).execute()
    return key  # type: ignore[no-any-return]
