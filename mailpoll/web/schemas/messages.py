"""Messages, their attachments and threads, and searches for them."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from .deletion import Hold
from .fields import MAX_PAGE, Filter, Moment, Page, Request, Status


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
