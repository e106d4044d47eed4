"""Messages that could not be processed."""

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints

from .fields import Request


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
