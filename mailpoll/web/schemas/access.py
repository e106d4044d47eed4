"""API keys and the audit log."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from .fields import MAX_PAGE, Filter, Moment, Page, Request

KeyScope = Literal["read", "operate", "admin"]
KeyName = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")
]


class NewApiKey(Request):
    """A key for a program or a person; each scope includes those before it."""

    name: KeyName = Field(description="Shown in the audit log; never given out twice")
    scope: KeyScope = Field(
        description="read: figures and mail; operate: also poll, retry, pause; admin: everything"
    )
    expires_at: Moment | None = Field(None, description="null: never")


class ApiKey(BaseModel):
    """A key without its token, of which only a hash is kept."""

    id: str
    name: str
    scope: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="Up to a minute old")
    revoked_at: datetime | None


class CreatedApiKey(ApiKey):
    """A new key, with its token for the only time."""

    token: str


class ApiKeyPage(Page):
    items: list[ApiKey]


class ApiKeyQuery(Request):
    cursor: str | None = Field(None, max_length=200)
    limit: int = Field(50, ge=1, le=MAX_PAGE)


class AuditEvent(BaseModel):
    """Who did what to what, and when. ``target`` is the public id of the ``kind`` of thing."""

    id: int
    at: datetime
    who: str
    action: str
    kind: str | None
    target: str | None
    request_id: str | None = Field(description="X-Request-Id of the answer")
    client: str | None = Field(description="The address that the request came from")


class AuditPage(Page):
    items: list[AuditEvent]


class AuditQuery(Request):
    cursor: str | None = Field(None, max_length=200)
    limit: int = Field(50, ge=1, le=MAX_PAGE)
    who: Filter | None = None
    action: Filter | None = Field(None, description="Such as account.delete")
    target: Filter | None = Field(None, description="A public id")
    since: Moment | None = Field(None, description="At or after")
    before: Moment | None = None
