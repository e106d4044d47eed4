"""What the API takes and gives. Times are ISO 8601 in UTC, sizes are bytes."""

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
)

MAX_PAGE = 200
#: An address as people write it: something, @, a domain. The server's login is the real test.
ADDRESS = re.compile(r"[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+")

#: Years that every database and every time zone can express.
YEARS = range(1970, 10_000 - 1)


def _written_out(value: object) -> object:
    """Refuse bare numbers, which could be seconds, milliseconds or years."""
    if isinstance(value, datetime) or (isinstance(value, str) and re.match(r"\d{4}-", value)):
        return value
    raise ValueError("should be a time such as 2026-01-31T12:00:00Z")


def _utc(value: datetime) -> datetime:
    if value.year not in YEARS:
        raise ValueError(f"should be a time from {YEARS[0]} to {YEARS[-1]}")
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


#: A time without an offset is in UTC.
Moment = Annotated[datetime, BeforeValidator(_written_out), AfterValidator(_utc)]

Text = Annotated[
    str, StringConstraints(min_length=1, max_length=320, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Secret = Annotated[
    str, StringConstraints(min_length=1, max_length=10_000, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Host = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:\[\]%-]+$")
]
Port = Annotated[int, Field(ge=1, le=65_535, strict=True)]
Interval = Annotated[int, Field(ge=5, le=86_400, strict=True)]
FolderName = Annotated[
    str, StringConstraints(min_length=1, max_length=1_000, pattern=r"^[^\x00-\x1f\x7f]+$")
]
#: What a list is filtered by. PostgreSQL takes no NUL.
Filter = Annotated[str, StringConstraints(max_length=1_000, pattern=r"^[^\x00]*$")]
Folders = Annotated[list[FolderName], Field(min_length=1, max_length=10_000)]
Security = Literal["tls", "starttls", "plain"]
Auth = Literal["password", "oauth2"]
OauthProvider = Literal["google", "microsoft", "generic"]
State = Literal["active", "paused", "auth_failed"]
Status = Literal["stored", "processed", "failed"]


def _address(value: str) -> str:
    if not ADDRESS.fullmatch(value):
        raise ValueError("should look like name@example.org")
    return value


class Request(BaseModel):
    """Unknown fields are refused, and no value is ever shown in an error."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class NewAccount(Request):
    """A mailbox to poll. Without a host its server is looked for by the address."""

    address: Text = Field(examples=["me@example.org"])
    refresh_token: Secret | None = Field(
        None, description="OAuth 2 refresh token: mailpoll gets access tokens with it"
    )
    oauth_provider: OauthProvider | None = Field(
        None, description="Whose token server; goes by the host where that is known"
    )
    password: Secret | None = Field(
        None,
        description="Password, app password, or an OAuth 2 access token that nobody renews",
    )
    host: Host | None = None
    port: Port | None = None
    security: Security | None = Field(None, description="As discovered, else tls")
    username: Text | None = Field(None, description="Defaults to the address")
    auth: Auth = "password"
    folders: Folders | None = Field(
        None, description="Folders to poll, as people read them; null polls all"
    )
    poll_interval: Interval | None = Field(None, description="Seconds")
    import_since: Moment | None = Field(
        None, description="Leave out mail that arrived before; null imports all"
    )
    test: bool = Field(True, description="Log in before saving, and refuse what does not work")

    _address = field_validator("address")(_address)


class AccountChange(Request):
    """Only the fields that are given change."""

    refresh_token: Secret | None = None
    oauth_provider: OauthProvider | None = None
    password: Secret | None = None
    host: Host | None = None
    port: Port | None = None
    security: Security | None = None
    username: Text | None = None
    auth: Auth | None = None
    folders: Folders | None = None
    poll_interval: Interval | None = None
    test: bool = True


class Discovery(Request):
    """An address whose server is looked for."""

    address: Text = Field(examples=["me@example.org"])

    _address = field_validator("address")(_address)


class Place(BaseModel):
    """Where the server of an address is, ``source`` says by what it was found.

    ``provider``, ``auth`` (what it takes, best first) and ``help`` are those of a known provider.
    """

    host: str
    port: int
    security: str
    username: str | None
    source: str
    provider: str | None
    auth: list[str]
    help: str | None


class Account(BaseModel):
    """A mailbox as the API shows it. The password never comes back."""

    id: str
    address: str
    host: str
    port: int
    security: str
    username: str
    auth: str
    oauth_provider: str | None
    folders: list[str] | None
    poll_interval: int
    import_since: datetime | None
    state: str
    created_at: datetime
    updated_at: datetime
    next_poll_at: datetime | None
    last_poll_at: datetime | None
    last_success_at: datetime | None
    imported_at: datetime | None
    last_error: str | None
    last_error_kind: str | None
    last_error_at: datetime | None
    failures: int


class Page(BaseModel):
    """``next`` is the cursor of the next page, or null on the last one."""

    next: str | None


class AccountPage(Page):
    items: list[Account]


class AccountQuery(Request):
    cursor: str | None = Field(None, max_length=200)
    limit: int = Field(50, ge=1, le=MAX_PAGE)
    state: State | None = None
    address: Filter | None = Field(None, description="Part of the address")


class Estimate(BaseModel):
    """What an import would bring in, and how long that takes at least."""

    messages: int
    bytes: int
    exact: bool = Field(description="False: the bytes are from a sample")
    days: int | None = Field(description="Under the provider's limit of bytes a day; null: none")


class LoginTest(BaseModel):
    """The result of a login: the folders that can be polled, and how much is in them."""

    ok: bool
    folders: list[str]
    estimate: Estimate | None


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


class Person(BaseModel):
    name: str
    address: str


class Attachment(BaseModel):
    """``n`` counts from 0 in the order of the message."""

    n: int
    name: str
    safe_name: str
    content_type: str
    content_id: str
    inline: bool
    size: int
    sha256: str
    storage_type: str


class Location(BaseModel):
    """Where the message lies at the server."""

    folder: str
    uidvalidity: int
    uid: int


class MessageSummary(BaseModel):
    id: int
    account_id: str
    status: str
    subject: str | None
    from_: list[Person] = Field(alias="from", serialization_alias="from")
    date: datetime | None
    internal_date: datetime
    stored_at: datetime
    size: int
    sha256: str
    storage_type: str
    attachment_count: int
    error: str | None

    model_config = ConfigDict(populate_by_name=True)


class Message(MessageSummary):
    """A whole message: fields, bodies, attachments and places."""

    to: list[Person]
    cc: list[Person]
    bcc: list[Person]
    reply_to: list[Person]
    message_id: str | None
    in_reply_to: str | None
    references: list[str]
    headers: list[tuple[str, str]]
    text: str | None
    text_derived: bool = Field(description="The text was made from the HTML")
    html: str | None
    attachments: list[Attachment]
    locations: list[Location]
    attempts: int
    processed_at: datetime | None
    parser: str | None
    defects: list[str]


class MessagePage(Page):
    items: list[MessageSummary]


class MessageQuery(Request):
    cursor: str | None = Field(None, max_length=200)
    limit: int = Field(50, ge=1, le=MAX_PAGE)
    status: Status | None = None
    folder: Filter | None = None
    since: Moment | None = Field(None, description="Arrived at or after")
    before: Moment | None = Field(None, description="Arrived before")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    message_id: Filter | None = Field(None, description="Message-ID without <>")


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
    left_out: int = Field(description="Arrived before the account's import_since")
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
    oldest_pending_seconds: float
    storage: str
    storage_circuit_open: bool
    days: list[Day]


class Queue(BaseModel):
    queue: str
    waiting: int
    delayed: int
    running: int
    dead: int


class TaskStats(BaseModel):
    actor: str
    runs: int
    failures: int
    skipped: int
    mean_ms: float


class DeadTask(BaseModel):
    id: str
    queue: str
    actor: str
    args: list[int | None]
    failed_at: datetime
    retries: int
    reason: str


class Tasks(BaseModel):
    queues: list[Queue]
    tasks: list[TaskStats]
    dead: list[DeadTask]


class Health(BaseModel):
    """The process answers."""

    status: str


class Readiness(BaseModel):
    """``ready``: all parts answer."""

    ready: bool
    database: bool
    queue: bool
    storage: bool


class Problem(BaseModel):
    """RFC 9457. ``errors`` names each wrong field."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    errors: list[dict[str, str]] | None = None
