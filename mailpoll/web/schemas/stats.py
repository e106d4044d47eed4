"""How complete accounts are, and how much came in."""

from datetime import datetime

from pydantic import BaseModel, Field

from .fields import Request
from .messages import Person


class Proof(BaseModel):
    """What became of every message that the server counts in a folder.

    ``server`` is the sum of all but ``gone`` (removed before it could be fetched) and ``expunged``
    (stored, and removed at the server since).
    """

    server: int
    stored: int
    waiting: int
    unreadable: int
    too_large: int
    left_out: int = Field(
        description="Arrived before the account's import_since, or retention wants it gone"
    )
    withheld: int = Field(description="Counted by the server, but not listed")
    to_import: int
    missing: int
    gone: int
    expunged: int


class FolderStats(BaseModel):
    """``imported``: the first import is done; ``complete``: every message is accounted for."""

    name: str
    special_use: str | None
    messages: int
    bytes: int
    server_messages: int | None
    imported: bool
    complete: bool
    proof: Proof | None
    proved_at: datetime | None
    uidvalidity: int | None
    low: int | None = Field(description="Every UID from low to high is accounted for")
    high: int | None
    unfetched: int
    last_error: str | None


class Day(BaseModel):
    day: str
    messages: int
    bytes: int
    attachments: int
    attachment_bytes: int
    failures: int


class Unfetched(BaseModel):
    """A UID without a message, and why."""

    folder: str
    uid: int
    verdict: str
    reason: str
    size: int | None
    subject: str | None = Field(description="Of a message that is over the limit of size")
    from_: list[Person] = Field(alias="from", serialization_alias="from")
    date: datetime | None
    attempts: int
    next_attempt_at: datetime | None


class ImportProgress(BaseModel):
    """The first import: ``left`` is from the login's estimate until every folder was seen."""

    done: bool
    messages: int
    left: int | None
    seconds_left: int | None = Field(description="At the speed so far")
    estimated_bytes: int | None
    days: int | None = Field(description="Under the provider's limit of bytes a day; null: none")


class Budget(BaseModel):
    """What may be fetched from a mailbox today (UTC), and whether its provider wants a pause."""

    bytes_today: int
    bytes_limit: int | None
    resets_at: datetime
    not_before: datetime | None = Field(description="Nobody connects before; null: no pause")


class Damaged(BaseModel):
    """A stored blob that the scrub found damaged and could not heal yet."""

    message_id: int
    storage_key: str
    kind: str
    reason: str
    found_at: datetime


class Scrub(BaseModel):
    """The reading back of everything that is stored; counts since ever, but for ``damaged``."""

    started_at: datetime | None = Field(description="Of the round that runs, or ran last")
    finished_at: datetime | None = Field(description="When a round last came to its end")
    progress: float = Field(description="Of the round, from 0 to 1")
    blobs: int
    bytes: int
    corrupt: int
    missing: int
    healed: int
    damaged: int = Field(description="Blobs that are damaged now")


class AccountStats(BaseModel):
    account_id: str
    address: str
    state: str
    messages: int
    bytes: int
    attachments: int
    attachment_bytes: int
    by_status: dict[str, int]
    by_storage_type: dict[str, int]
    folders: list[FolderStats]
    days: list[Day]
    unfetched: list[Unfetched]
    damaged: list[Damaged]
    budget: Budget
    last_poll_at: datetime | None
    last_success_at: datetime | None
    next_poll_at: datetime | None
    imported_at: datetime | None
    import_: ImportProgress = Field(alias="import", serialization_alias="import")
    delay: str | None = Field(description="Why it is not polled, or not on time, in words")
    lateness_ms: int | None = Field(description="How late the last poll began")
    lateness_p95_ms: int | None = Field(description="Of the latest 50 polls")
    poll_duration_ms: int | None
    last_error: str | None
    last_error_kind: str | None


class Stats(BaseModel):
    """All accounts together."""

    accounts: dict[str, int]
    messages: int
    bytes: int
    attachments: int
    attachment_bytes: int
    by_status: dict[str, int]
    by_storage_type: dict[str, int]
    unfetched: dict[str, int]
    folders: dict[str, int] = Field(description="By proof: complete, importing, unproved")
    late_accounts: int
    lateness_p95_ms: int | None = Field(description="Of the last poll of each active account")
    oldest_pending_seconds: float
    storage: str
    storage_circuit_open: bool
    scrub: Scrub
    days: list[Day]


class Hour(BaseModel):
    """Messages stored within the hour that begins then; ``imported``: by a first import."""

    hour: datetime
    messages: int
    imported: int


class Hours(BaseModel):
    items: list[Hour]


class HoursQuery(Request):
    hours: int = Field(24, ge=1, le=168)
