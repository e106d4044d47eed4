"""What the parts of requests and answers are made of."""

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
)

MAX_PAGE = 200
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
Description = Annotated[str, StringConstraints(max_length=320, pattern=r"^[^\x00-\x1f\x7f]*$")]
Reason = Annotated[
    str, StringConstraints(min_length=1, max_length=1_000, pattern=r"^[^\x00-\x1f\x7f]+$")
]
#: What a list is filtered by. PostgreSQL takes no NUL.
Filter = Annotated[str, StringConstraints(max_length=1_000, pattern=r"^[^\x00]*$")]
FolderName = Annotated[
    str, StringConstraints(min_length=1, max_length=1_000, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Folders = Annotated[list[FolderName], Field(min_length=1, max_length=10_000)]
Status = Literal["stored", "processed", "failed"]


class Request(BaseModel):
    """Unknown fields are refused, and no value is ever shown in an error."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Page(BaseModel):
    """``next`` is the cursor of the next page, or null on the last one."""

    next: str | None
