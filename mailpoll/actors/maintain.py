"""Every minute: enqueue what was left behind, and move fallen-back blobs to the object store."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import dramatiq
import structlog
from peewee import Tuple
from periodiq import cron

from .. import database, runtime
from ..blobs import BlobCorrupt, BlobMissing, StorageType, StoreUnavailable
from ..broker import IMPORT, MAINTENANCE, PROCESS, Queued
from ..models import LOCAL, EmailAttachment, EmailJob, EmailRawMessage, JobState
from ..settings import settings
from .delete import delete_account
from .process import exhausted, give_up, import_messages, process_message

log = structlog.get_logger()

#: Messages enqueued again in one pass.
SWEEP = 1_000
#: Entries above which a queue is merely busy; one of an import is for many messages.
BUSY = {PROCESS: 1_000, IMPORT: 50}
#: Milliseconds over which messages are spread that may have killed workers.
SUSPECTS = 5_000
#: Blobs moved in one page.
PAGE = 100
#: The index of rows whose blobs are in local files is sorted by account and this. In the order of
#: their ids, the whole table would be read for the few of them.
SORTED_BY = {EmailRawMessage: EmailRawMessage.id, EmailAttachment: EmailAttachment.sha256}


@dramatiq.actor(queue_name=MAINTENANCE, priority=-5, periodic=cron("* * * * *"))
def sweep() -> None:
    """Enqueue stored messages and running jobs that nothing works on any more.

    A row with status ``stored`` is the outbox entry; this makes up for every message that Redis,
    a worker or a dashboard lost. A queue with a long backlog is busy, not lost, and left alone.
    """
    new, old = _lost(PROCESS, imported=False), _lost(IMPORT, imported=True)
    if new or old:
        EmailRawMessage.postpone([row.id for row in (*new, *old)], settings().sweep_after)
        log.info("swept", messages=len(new) + len(old))
    messages: list[Queued] = [(process_message.message(row.id), _spread(row)) for row in new]
    # Each alone: one of them may have killed its worker.
    messages += [(import_messages.message([row.id]), _spread(row)) for row in old]
    with database.connected():
        jobs = EmailJob.select().where(
            EmailJob.state == JobState.RUNNING,
            EmailJob.lease_until.is_null() | (EmailJob.lease_until <= database.now()),
        )
        messages += [(delete_account.message(job.id), None) for job in jobs]
    if messages:
        sweep.broker.enqueue_all(messages)


def _lost(queue: str, *, imported: bool) -> list[EmailRawMessage]:
    """A lane's overdue messages; none while its queue is busy.

    Lane by lane, so that a backlog of the import, which is overdue too, hides no new mail.
    """
    rows = []
    away = not _store_answers()
    for message in EmailRawMessage.lost(SWEEP, imported=imported):
        if away and message.storage_type == StorageType.OSS:
            continue  # each attempt would only end among the dead letters
        if exhausted(message):
            give_up(message)
        else:
            rows.append(message)
    busy = rows and sweep.broker.do_qsize(queue) > BUSY[queue]
    return [] if busy else rows


def _store_answers() -> bool:
    storage = runtime.storage()
    try:
        storage.check()
        return True
    except StoreUnavailable as error:
        log.info("what lies in the object store is not swept: it is away", error=str(error))
        return False


def _spread(message: EmailRawMessage) -> int | None:
    """Milliseconds to wait before a message that may have killed two workers is tried again.

    Each such message gets a time of its own: those that died beside the guilty one must not be
    beside it again until they have used up their attempts too.
    """
    return random.randint(0, SUSPECTS) if message.attempts > 1 else None  # noqa: S311


@dramatiq.actor(
    queue_name=MAINTENANCE, priority=0, periodic=cron("* * * * *"), max_retries=0, time_limit=55_000
)
def drain_fallback() -> None:
    """Move blobs that fell back to local files into the object store, until none is left.

    Each step leaves the blob readable, and is found again by the next run if this one dies: put and
    verify, remove the local copy, then commit the rows. (Committed first, a copy that was not
    removed any more would be left for ever.) Who reads a row meanwhile finds the blob all the same.
    """
    storage = runtime.storage()
    if not storage.has_object_store or storage.circuit_open:
        return
    moved = 0
    for row in itertools.chain.from_iterable(map(local_blobs, SORTED_BY)):
        try:
            if not _move(row.account_id, row.storage_key, row.size, row.sha256):
                return
            moved += 1
        except (BlobMissing, BlobCorrupt) as error:
            log.error("blob cannot be moved", key=row.storage_key, error=str(error))
    if moved:
        log.info("moved to the object store", blobs=moved)


def local_blobs(table: Any) -> Iterator[Any]:
    """The rows of a table whose blobs are in local files, read page by page."""
    within = SORTED_BY[table]
    query = (
        table.select(table.id, table.account, table.storage_key, table.size, table.sha256)
        .where(LOCAL)
        .order_by(table.account, within)
        .limit(PAGE)
    )
    page = _read(query)
    while page:
        yield from page
        last = (page[-1].account_id, getattr(page[-1], within.name))
        page = _read(query.where(Tuple(table.account, within) > last))


def _read(query: Any) -> list[Any]:
    with database.connected():
        return list(query)


def _move(account_id: int, key: str, size: int, sha256: str) -> bool:
    """Move one blob, whatever number of rows point at it; false when the store is away again."""
    storage = runtime.storage()
    if not storage.move_to_primary(key, size, sha256):
        return False
    storage.delete([key], StorageType.LOCAL)
    with database.transaction():
        for table in (EmailRawMessage, EmailAttachment):
            table.update(storage_type=StorageType.OSS).where(
                table.account == account_id,
                table.sha256 == sha256,
                table.storage_type == StorageType.LOCAL,
            ).execute()
    return True
