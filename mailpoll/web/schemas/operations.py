"""Settings, queues, alarms, health and errors."""

from datetime import datetime

from pydantic import BaseModel, Field


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
