"""Legal holds, and the jobs that delete accounts."""

from datetime import datetime

from pydantic import BaseModel, Field

from .fields import MAX_PAGE, Page, Reason, Request


class NewHold(Request):
    """Why nothing may be deleted, as the audit will want to know."""

    reason: Reason


class Hold(BaseModel):
    """A legal hold. ``message_id`` is null where it is on the whole account."""

    account_id: str
    message_id: int | None
    reason: str
    held_by: str
    held_at: datetime


class HoldPage(Page):
    items: list[Hold]


class HoldQuery(Request):
    cursor: str | None = Field(None, max_length=200)
    limit: int = Field(50, ge=1, le=MAX_PAGE)


class Job(BaseModel):
    """Long work. ``state`` is running or done; ``counts`` says what was removed so far."""

    id: str
    kind: str
    account_id: str
    state: str
    step: str
    counts: dict[str, int]
    error: str | None
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None


class StoreCount(BaseModel):
    """Blobs of a store; ``bytes`` as they lay there."""

    objects: int
    bytes: int


class Scan(BaseModel):
    """The last look for anything of the account.

    ``found`` counts what was left, by table, store and so on; ``rounds`` is how many looks it took.
    Only the places that ``found`` names were looked at.
    """

    at: datetime
    machine: str = Field(
        description="Whose local files were looked at: temporary ones, and objects_local if that "
        "is in found. No other machine's were"
    )
    rounds: int
    empty: bool
    found: dict[str, int]


class DeleteJob(BaseModel):
    """A deletion, and its receipt when ``state`` is done. It outlives the account."""

    id: str
    account_id: str
    address_sha256: str | None = Field(
        description="Of the address in lower case, with MAILPOLL_RECEIPT_ADDRESS_HASH"
    )
    state: str
    step: str
    attempts: int
    requested_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    rows: dict[str, int] = Field(description="Removed rows by table")
    stores: dict[str, StoreCount] = Field(description="Removed blobs by store")
    temporary_files: int
    queue_entries: int
    redis_keys: int
    scan: Scan | None


class DeleteJobPage(Page):
    items: list[DeleteJob]


class DeleteJobQuery(Request):
    cursor: str | None = Field(None, max_length=200)
    limit: int = Field(50, ge=1, le=MAX_PAGE)
