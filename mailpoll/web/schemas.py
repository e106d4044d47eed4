"""What the API takes and gives. Times are ISO 8601 in UTC, sizes are bytes."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from ..models import EventType, Payload

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
Days = Annotated[int, Field(ge=0, le=36_500, strict=True)]
Reason = Annotated[
    str, StringConstraints(min_length=1, max_length=1_000, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Description = Annotated[str, StringConstraints(max_length=320, pattern=r"^[^\x00-\x1f\x7f]*$")]
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
KeyScope = Literal["read", "operate", "admin"]
KeyName = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")
]


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
    poll_interval_max: Interval | None = Field(
        None, description="Seconds; polls follow the mailbox's own rhythm up to this"
    )
    import_since: Moment | None = Field(
        None, description="Leave out mail that arrived before; null imports all"
    )
    push: bool = Field(
        False,
        strict=True,
        description="Keep a connection open on which the server tells of new mail",
    )
    sync_flags: bool = Field(False, strict=True, description="Follow flags, moves and removals")
    retention_days: Days | None = Field(
        None, description="Days that mail is kept; 0: for ever, null: as configured"
    )
    retention_expunged_days: Days | None = Field(
        None, description="Days that it is kept after it left the server; 0 and null as above"
    )
    archive: bool = Field(
        False, strict=True, description="Without a server: its mail comes by import only"
    )
    test: bool = Field(True, description="Log in before saving, and refuse what does not work")

    _address = field_validator("address")(_address)

    @model_validator(mode="after")
    def _alone(self) -> Self:
        if self.archive and self.model_fields_set - {"address", "archive", "test"}:
            raise ValueError("archive: an account without a server takes an address only")
        return self


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
    poll_interval_max: Interval | None = None
    push: Annotated[bool, Field(strict=True)] | None = None
    sync_flags: Annotated[bool, Field(strict=True)] | None = None
    retention_days: Days | None = None
    retention_expunged_days: Days | None = None
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


class Kept(BaseModel):
    """Days after which mail is deleted, as the account says or else as configured; 0 is never."""

    days: int
    expunged_days: int


class AccountFigures(BaseModel):
    """Since ever, and ``days``: messages of the latest 30 days (UTC), today last."""

    messages: int
    bytes: int
    failures: int
    days: list[int]


class Account(BaseModel):
    """A mailbox as the API shows it. The password never comes back."""

    id: str
    address: str
    archive: bool = Field(description="It has no server: its mail comes by import only")
    host: str
    port: int
    security: str
    username: str
    auth: str
    oauth_provider: str | None
    folders: list[str] | None
    poll_interval: int
    poll_interval_max: int | None
    adapted_interval: int | None = Field(description="Seconds, by the mailbox's rhythm")
    import_since: datetime | None
    push: bool
    watched: bool = Field(description="The server tells of new mail by itself now")
    watch_error: str | None = Field(description="Why it does not, or ended it last")
    sync_flags: bool
    retention_days: int | None
    retention_expunged_days: int | None
    kept: Kept
    hold: Hold | None = Field(description="A legal hold: nothing is deleted")
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


class ListedAccount(Account):
    """``figures``: where they were asked for."""

    figures: AccountFigures | None


class Page(BaseModel):
    """``next`` is the cursor of the next page, or null on the last one."""

    next: str | None


class HoldPage(Page):
    items: list[Hold]


class HoldQuery(Request):
    cursor: str | None = Field(None, max_length=200)
    limit: int = Field(50, ge=1, le=MAX_PAGE)


class AccountPage(Page):
    items: list[ListedAccount]


class AccountQuery(Request):
    # That of a list by address holds one, of up to 320 characters.
    cursor: str | None = Field(None, max_length=2_000)
    limit: int = Field(50, ge=1, le=MAX_PAGE)
    state: State | None = None
    address: Filter | None = Field(None, description="Part of the address")
    sort: Literal["added", "address", "next_poll", "failures"] = Field(
        "added", description="Pages of next_poll and failures are of a moment: they change"
    )
    descending: bool = False
    figures: bool = Field(False, description="With messages, and those of 30 days")


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


class ImportRow(BaseModel):
    """What became of one row. ``outcome``: fine (in a dry run), added, or refused with ``errors``.

    ``row`` counts from 1.
    """

    row: int
    address: str | None
    outcome: Literal["fine", "added", "refused"]
    account_id: str | None
    errors: list[dict[str, str]]


class ImportReport(BaseModel):
    dry_run: bool
    added: int
    refused: int
    items: list[ImportRow]


class AccountImport(Request):
    """Many mailboxes at once, each as a new one is given; a wrong one does not hold up others."""

    accounts: list[dict[str, Any]] = Field(min_length=1, max_length=500)
    dry_run: bool = Field(
        True, strict=True, description="Only check: neither servers nor logins are tried"
    )


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
    """Where the message lies at the server, or lay until ``expunged_at``."""

    folder: str
    uidvalidity: int
    uid: int
    flags: list[str] | None = Field(description="null: not followed, or not seen yet")
    labels: list[str] | None = Field(description="Of Gmail")
    expunged_at: datetime | None


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
    thread_id: int | None = Field(description="The conversation; null until it is processed")
    preview: str | None = Field(description="The first words of its own text, on one line")
    flags: list[str] | None = Field(
        description="Flags and keywords of all places where it lies; null where not followed"
    )
    labels: list[str] | None = Field(description="Gmail's labels, in the same way")
    error: str | None

    model_config = ConfigDict(populate_by_name=True)


class CalendarTime(BaseModel):
    """A date, or a time: in UTC when it ends with Z, else by the clocks of ``time_zone``."""

    value: str
    time_zone: str


class Participant(BaseModel):
    address: str
    name: str
    status: str


class CalendarEvent(BaseModel):
    """An event as the invitation says it. ``recurrence`` is its RRULE."""

    uid: str
    summary: str
    description: str
    location: str
    status: str
    sequence: int
    start: CalendarTime | None
    end: CalendarTime | None
    duration: str
    recurrence: str
    organizer: Participant | None
    attendees: list[Participant]


class Calendar(BaseModel):
    """What a calendar part holds. ``method`` is REQUEST, CANCEL, REPLY …"""

    n: int = Field(description="The attachment that it is")
    method: str
    events: list[CalendarEvent]
    complete: bool = Field(description="False: there is more than is read")


class TnefFile(BaseModel):
    """A file in it; ``…/attachments/{n}/files/{k}`` downloads it."""

    k: int
    name: str
    safe_name: str
    content_type: str
    size: int
    sha256: str


class Tnef(BaseModel):
    """What a winmail.dat holds."""

    n: int = Field(description="The attachment that it is")
    subject: str
    text: str
    html: str
    files: list[TnefFile]
    complete: bool = Field(description="False: it is cut, or there is more than is read")


class AuthenticationResult(BaseModel):
    method: str
    result: str
    reason: str
    properties: dict[str, str]


class AuthenticationResults(BaseModel):
    """The topmost Authentication-Results field: what a server has found, not who anyone is."""

    server: str
    results: list[AuthenticationResult]


class DkimSignature(BaseModel):
    """A signature, when it was checked. ``result`` is pass, fail, temperror or permerror."""

    domain: str
    selector: str
    result: str
    reason: str


class MessageDetail(Request):
    verify: Literal["dkim"] | None = Field(
        None, description="Check the DKIM signatures now, which asks DNS"
    )


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
    reply_text: str | None = Field(description="The text without quotations and signature")
    html: str | None
    attachments: list[Attachment]
    inline: dict[str, int] = Field(description="Content-ID, as in cid: of the HTML, to attachment")
    calendars: list[Calendar]
    tnef: list[Tnef]
    not_read: list[int] = Field(description="Attachments that could not be looked into now")
    authentication: AuthenticationResults | None
    dkim: list[DkimSignature] | None = Field(description="Null until verify=dkim has checked them")
    dkim_checked_at: datetime | None
    locations: list[Location]
    hold: Hold | None = Field(description="A legal hold on this message itself")
    attempts: int
    processed_at: datetime | None
    parser: str | None
    defects: list[str]


class MessagePage(Page):
    items: list[MessageSummary]


class ListedMessage(MessageSummary):
    """With the address of its account."""

    address: str


class AllMessagesPage(Page):
    items: list[ListedMessage]


Flag = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]


class MessageQuery(Request):
    cursor: str | None = Field(None, max_length=200)
    limit: int = Field(50, ge=1, le=MAX_PAGE)
    status: Status | None = None
    folder: Filter | None = None
    since: Moment | None = Field(None, description="Arrived at or after")
    before: Moment | None = Field(None, description="Arrived before")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    message_id: Filter | None = Field(None, description="Message-ID without <>")
    flag: Flag | None = Field(None, description="Such as \\Flagged or $Forwarded, in any case")
    unseen: bool | None = Field(None, description="Without, or with, the flag \\Seen")


class SearchQuery(Request):
    q: Annotated[str, StringConstraints(min_length=1, max_length=1_000)] = Field(
        description="Such as: from:ana invoice has:attachment after:2026-01-01 -draft",
        examples=["invoice"],
    )
    account: UUID | None = Field(None, description="Only in this one")
    sort: Literal["rank", "date"] = "rank"
    cursor: str | None = Field(None, max_length=200)
    limit: int = Field(20, ge=1, le=MAX_PAGE)


class Piece(BaseModel):
    """A part of a text, as plain text; ``match``: it is what was looked for."""

    text: str
    match: bool


class SearchHit(MessageSummary):
    """A message that was found, with its subject and a part of its text as pieces."""

    score: int = Field(description="What its head has of the query; 0 by date")
    subject_pieces: list[Piece]
    excerpt: list[Piece]


class SearchPage(Page):
    items: list[SearchHit]


class ThreadSummary(BaseModel):
    """A conversation, by its newest message."""

    id: int
    account_id: str
    messages: int = Field(description="At most 1,000 are counted")
    newest: MessageSummary


class ThreadPage(Page):
    items: list[ThreadSummary]


class Thread(Page):
    """A page of a conversation's messages, oldest first. ``id`` is the one that it has now."""

    id: int
    account_id: str
    items: list[MessageSummary]


class ListQuery(Request):
    cursor: str | None = Field(None, max_length=200)
    limit: int = Field(50, ge=1, le=MAX_PAGE)


ExportFormat = Literal["mbox", "zip", "maildir", "manifest"]


class ExportQuery(Request):
    format: ExportFormat = "mbox"
    folder: Filter | None = Field(None, description="Only of the folder of this name")
    since: Moment | None = Field(None, description="Arrived at or after")
    until: Moment | None = Field(None, description="Arrived before")
    q: Annotated[str, StringConstraints(min_length=1, max_length=1_000)] | None = Field(
        None, description="Only what this search finds, newest first"
    )


class NewExport(ExportQuery):
    """An archive to be made in the background."""

    account_id: UUID
    message_ids: (
        Annotated[
            list[Annotated[int, Field(ge=1, le=2**63 - 1, strict=True)]],
            Field(min_length=1, max_length=50_000),
        ]
        | None
    ) = Field(None, description="Only these, in this order; of this account")

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        others = self.folder or self.since or self.until or self.q
        if self.message_ids is not None and others:
            raise ValueError("message_ids: cannot be given together with folder, since, until or q")
        if self.message_ids is not None:
            self.message_ids = list(dict.fromkeys(self.message_ids))  # an archive has each once
        return self


class Export(BaseModel):
    """An archive. ``state`` is running, done, failed or expired.

    ``bytes`` is its size when it is done, ``unreadable`` counts messages that it names only.
    """

    id: str
    account_id: str
    format: str
    state: str
    expected: int | None = Field(description="Messages that were chosen; null of a search")
    messages: int
    unreadable: int
    bytes: int
    error: str | None
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    expires_at: datetime | None


class ExportPage(Page):
    items: list[Export]


class ExportListQuery(Request):
    cursor: str | None = Field(None, max_length=200)
    limit: int = Field(50, ge=1, le=MAX_PAGE)


class ImportQuery(Request):
    name: Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")] = Field(
        "", description="What the file is called: .eml, .mbox, .zip or .tar tell what it is"
    )
    folder: FolderName | None = Field(None, description="Where all messages go")
    mboxo: bool = Field(False, description="Its mbox files quote From alone")
    dry_run: bool = Field(False, description="Read everything, and store nothing")


class LeftOut(BaseModel):
    source: str
    reason: str


class Imported(BaseModel):
    """What became of an upload; ``reasons`` are those of the first things that were left out."""

    new: int
    known: int = Field(description="Messages that were stored before, or came twice")
    places: int = Field(description="Folders in which messages were noted")
    bytes: int
    left_out: int
    reasons: list[LeftOut]


class AttachmentQuery(Request):
    cursor: str | None = Field(None, max_length=200)
    limit: int = Field(50, ge=1, le=MAX_PAGE)
    name: Filter | None = Field(None, description="Part of the name, in any case")
    type: Filter | None = Field(None, description="Such as application/pdf or image/")
    min_size: int | None = Field(None, ge=0, le=2**63 - 1)


class FoundAttachment(Attachment):
    """An attachment with the message that it came with."""

    message_id: int
    subject: str | None
    from_: list[Person] = Field(alias="from", serialization_alias="from")
    internal_date: datetime

    model_config = ConfigDict(populate_by_name=True)


class AttachmentPage(Page):
    items: list[FoundAttachment]


class AllMessagesQuery(Request):
    cursor: str | None = Field(None, max_length=200)
    limit: int = Field(50, ge=1, le=MAX_PAGE)
    status: Status | None = None
    error: Filter | None = Field(None, description="Failed for exactly this reason")


class FailedGroup(BaseModel):
    """Failed messages that share a reason; ``newest`` is the id of the one stored last."""

    error: str
    messages: int
    accounts: int
    newest: int


class FailedGroups(BaseModel):
    items: list[FailedGroup]


class FailedRetry(Request):
    error: Annotated[str, StringConstraints(max_length=10_000, pattern=r"^[^\x00]*$")] = Field(
        description="The reason of the messages, as in the list"
    )


class FailedRetried(BaseModel):
    """``more``: there are others with this reason; ask again."""

    enqueued: int
    more: bool


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


class Setting(BaseModel):
    """A variable as this process has read it. The value of a secret is never shown."""

    name: str
    value: str | None = Field(description="null: a secret")
    is_set: bool = Field(description="By the environment; else it is the default")


class SettingList(BaseModel):
    version: str
    items: list[Setting]
    concerns: list[str] = Field(description="What is allowed and should not stay so")


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


class Alarm(BaseModel):
    """Something that an operator should know of. ``cleared_at`` is null while it holds."""

    name: str
    holds: bool
    since: datetime
    seen_at: datetime
    cleared_at: datetime | None
    amount: int
    words: str
    advice: str
    notified_at: datetime | None


class Alarms(BaseModel):
    items: list[Alarm]


class Health(BaseModel):
    """The process answers."""

    status: str


class Readiness(BaseModel):
    """``ready``: all parts answer."""

    ready: bool
    database: bool
    queue: bool
    storage: bool


class FieldError(BaseModel):
    """A wrong field; ``offset`` is the character in it, from 0, where that is known."""

    field: str
    reason: str
    offset: int | None = None


class Problem(BaseModel):
    """RFC 9457. ``errors`` names each wrong field, ``request_id`` finds the request in the log."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    errors: list[FieldError] | None = None
    request_id: str | None = None
