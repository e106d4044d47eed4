"""Exports and imports."""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import BaseModel, Field, StringConstraints, model_validator

from .fields import MAX_PAGE, Filter, FolderName, Moment, Page, Request

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
