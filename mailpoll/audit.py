"""Who did what, and when: an event for each change and each download, never with any content.

An event is written in the transaction of its change, so that neither is there without the other.
"""

from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta

from . import database
from .models import AuditEvent

#: Events removed in one transaction.
PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Origin:
    """Where changes come from: an API key's name or a word for what is none.

    Parameters:
      request_id: of the request that asks for them.
      client: the address that it came from.
    """

    who: str
    request_id: str | None = None
    client: str | None = None


ITSELF = Origin("mailpoll")
COMMAND_LINE = Origin("command line")
BOOTSTRAP = "api token"
NOBODY = "nobody"
#: Words that stand for no key, so that no key may have them for its name.
RESERVED = frozenset((COMMAND_LINE.who, BOOTSTRAP, NOBODY, ITSELF.who))

_origin: ContextVar[Origin] = ContextVar("origin", default=ITSELF)


def act_as(origin: Origin) -> None:
    """Whose doing all is from now on, in this thread."""
    _origin.set(origin)


def record(action: str, kind: str | None = None, target: str | None = None) -> None:
    """Write an event, in the caller's transaction if there is one.

    Parameters:
      action: what was done, such as ``account.pause``.
      kind, target: to what, by its public id.
    """
    origin = _origin.get()
    with database.transaction():
        AuditEvent.create(
            at=database.now(),
            who=origin.who,
            action=action,
            kind=kind,
            target=target and target[: AuditEvent.target.max_length],
            request_id=origin.request_id,
            client=origin.client,
        )


def who() -> str:
    """Whose doing this is."""
    return _origin.get().who


def record_many(action: str, kind: str, targets: Iterable[str]) -> None:
    """Write an event for each of many things of one kind, in the caller's transaction."""
    origin, moment = _origin.get(), database.now()
    common = {
        "at": moment,
        "who": origin.who,
        "action": action,
        "kind": kind,
        "request_id": origin.request_id,
        "client": origin.client,
    }
    AuditEvent.insert_many([{**common, "target": target} for target in targets]).execute()


def find(
    limit: int,
    *,
    before_id: int | None = None,
    who: str | None = None,
    action: str | None = None,
    target: str | None = None,
    since: datetime | None = None,
    before: datetime | None = None,
) -> list[AuditEvent]:
    """The newest events, newest first, that fulfil all conditions that are given."""
    table = AuditEvent
    conditions = [
        column == value
        for column, value in ((table.who, who), (table.action, action), (table.target, target))
        if value is not None
    ]
    if before_id is not None:
        conditions.append(table.id < before_id)
    if since is not None:
        conditions.append(table.at >= since)
    if before is not None:
        conditions.append(table.at < before)
    rows = table.select().order_by(table.id.desc()).limit(limit)
    with database.connected():
        return list(rows.where(*conditions) if conditions else rows)


def prune(days: int) -> int:
    """Remove events that are older; how many."""
    return sum(_prune_pages(database.now() - timedelta(days=days)))


def _prune_pages(end: datetime) -> Iterator[int]:
    table = AuditEvent
    old = table.select(table.id).where(table.at < end).order_by(table.at).limit(PAGE)
    removed = PAGE
    while removed == PAGE:
        with database.transaction(durable=False):
            removed = table.delete().where(table.id.in_(old)).execute()
        yield removed
