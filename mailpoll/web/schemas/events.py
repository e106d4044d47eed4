"""The event log, and the webhooks that tell of it."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

from ...models import EventType, Payload
from .fields import MAX_PAGE, Description, Moment, Request, Secret

EventTypes = Annotated[str, StringConstraints(max_length=1_000)]


def _event_types(value: str | None) -> str | None:
    """Words of the closed list, separated by commas."""
    unknown = {one for one in (value or "").split(",") if one} - set(EventType)
    if unknown:
        raise ValueError(f"should be some of {', '.join(EventType)}, separated by commas")
    return value


class StreamQuery(Request):
    after: int = Field(0, ge=0, le=2**63 - 1, description="The id of the last event that you have")
    types: EventTypes | None = Field(None, description="Such as message.new,message.failed")
    account: UUID | None = None

    _types = field_validator("types")(_event_types)

    @property
    def kinds(self) -> list[str] | None:
        return [one for one in self.types.split(",") if one] if self.types else None


class EventQuery(StreamQuery):
    limit: int = Field(100, ge=1, le=1_000)
    wait: float = Field(0, ge=0, le=25, description="Seconds to wait when there is none yet")
    newest: bool = Field(False, description="The newest first; does not go with wait")

    @model_validator(mode="after")
    def _no_wait_for_old(self) -> Self:
        if self.newest and self.wait:
            raise ValueError("newest does not go with wait")
        return self


class Event(BaseModel):
    """``id`` counts from 1 without gaps; events of a deleted account are removed with it."""

    id: int
    type: str
    account_id: str | None
    message_id: int | None
    data: dict[str, Any]
    created_at: datetime


class EventPage(BaseModel):
    items: list[Event]
    last: int = Field(description="Give it as `after` to go on from here")


class NewWebhook(Request):
    """A program to be told of events, in order, each until it has taken it."""

    url: Secret = Field(examples=["https://example.org/mail"])
    description: Description = ""
    types: list[EventType] | None = Field(None, description="null: all", min_length=1)
    accounts: Annotated[list[UUID], Field(min_length=1, max_length=10_000)] | None = Field(
        None, description="null: all"
    )
    imports: bool = Field(
        False, strict=True, description="Tell of the messages of first imports too"
    )
    payload: Payload = Field(Payload.IDS, description="How much of a message is sent")
    body_limit: Annotated[int, Field(ge=0, le=1_000_000, strict=True)] = Field(
        100_000, description="Bytes of text and of HTML in the bodies form"
    )
    rate: Annotated[int, Field(ge=1, le=1_000, strict=True)] | None = Field(
        None, description="Deliveries a second, at most"
    )


class WebhookChange(Request):
    """Only the fields that are given change."""

    url: Secret | None = None
    description: Description | None = None
    types: Annotated[list[EventType], Field(min_length=1)] | None = None
    accounts: Annotated[list[UUID], Field(min_length=1, max_length=10_000)] | None = None
    imports: Annotated[bool, Field(strict=True)] | None = None
    payload: Payload | None = None
    body_limit: Annotated[int, Field(ge=0, le=1_000_000, strict=True)] | None = None
    rate: Annotated[int, Field(ge=1, le=1_000, strict=True)] | None = None
    state: Literal["active", "paused"] | None = None

    @model_validator(mode="after")
    def _given(self) -> Self:
        for name in self.model_fields_set - {"types", "accounts", "rate"}:
            if getattr(self, name) is None:
                raise ValueError(f"{name} should not be null")
        return self


class Webhook(BaseModel):
    """``position``: the id of the last event that was delivered, or was not for this endpoint."""

    id: str
    url: str
    description: str
    types: list[str] | None
    accounts: list[str] | None
    imports: bool
    payload: str
    body_limit: int
    rate: int | None
    state: str
    position: int
    behind: int = Field(description="Events behind the position, wanted or not")
    attempts: int
    failing_since: datetime | None
    next_attempt_at: datetime | None
    last_error: str | None
    last_success_at: datetime | None
    created_at: datetime


class WebhookWithSecret(Webhook):
    """The secret is shown now and never again."""

    secret: str


class WebhookPage(BaseModel):
    items: list[Webhook]


class WebhookReplay(Request):
    """From an event on, or from a time on."""

    after: Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)] | None = Field(
        None, description="The id of an event"
    )
    since: Moment | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.after is None) == (self.since is None):
            raise ValueError("give either after or since")
        return self


class Delivery(BaseModel):
    """One request: ``delivered``, ``failed`` (tried again) or ``refused`` (set aside)."""

    id: int | None
    event: int | None
    type: str
    attempt: int
    outcome: str
    status: int | None
    error: str | None
    request: str = Field(description="The beginning of its body")
    answer: str | None = Field(description="The beginning of the answer's body")
    duration_ms: int
    created_at: datetime


class DeliveryQuery(Request):
    cursor: str | None = None
    limit: int = Field(50, ge=1, le=MAX_PAGE)
    outcome: Literal["delivered", "failed", "refused"] | None = None


class DeliveryPage(BaseModel):
    items: list[Delivery]
    next: str | None
