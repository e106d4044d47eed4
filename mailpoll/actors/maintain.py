"""Housekeeping: enqueue what was left behind, move, read back and forget what is due."""

import itertools
import random
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dramatiq
import structlog
from peewee import Tuple
from periodiq import cron

from .. import (
    audit,
    counters,
    database,
    doomed,
    events,
    faults,
    receipts,
    retention,
    runtime,
    search,
    threads,
    webhooks,
)
from .. import scrub as scrubbing
from ..archives import jobs as jobs_of_exports
from ..blobs import BlobCorrupt, BlobMissing, StorageType, StoreUnavailable
from ..broker import IMPORT, MAINTENANCE, PROCESS, Queued
from ..crypto import DataKeyError
from ..fsck import stored
from ..fsck.findings import Outcome
from ..models import (
    LOCAL,
    EmailAccount,
    EmailAttachment,
    EmailExportPart,
    EmailHour,
    EmailJob,
    EmailRawMessage,
    JobState,
    Mark,
    MarkName,
)
from ..settings import settings
from .delete import delete_account
from .export import make_export
from .notify import deliver_events
from .process import exhausted, give_up, import_messages, process_message

log = structlog.get_logger()

#: Messages enqueued again in one pass.
SWEEP = 1_000
#: Entries above which a queue is merely busy; one of an import is for many messages.
BUSY = {PROCESS: 1_000, IMPORT: 50}
#: Milliseconds over which messages are spread that may have killed workers.
SUSPECTS = 5_000
#: How long the figures of an hour are kept.
HOURS_KEPT = timedelta(days=8)
#: Blobs moved in one page.
PAGE = 100
#: The index of rows whose blobs are in local files is sorted by account and this. In the order of
#: their ids, the whole table would be read for the few of them.
SORTED_BY = {
    EmailRawMessage: EmailRawMessage.id,
    EmailAttachment: EmailAttachment.sha256,
    EmailExportPart: EmailExportPart.id,
}


@dramatiq.actor(queue_name=MAINTENANCE, priority=-5, periodic=cron("* * * * *"))
def sweep() -> None:
    """Enqueue stored messages, running jobs and webhooks that nothing works on any more.

    A row with status ``stored`` is the outbox entry; this makes up for every message that Redis,
    a worker or a dashboard lost. A queue with a long backlog is busy, not lost, and left alone.
    """
    new, old = _lost(PROCESS, imported=False), _lost(IMPORT, imported=True)
    if new or old:
        counters.add("sweeper_reenqueued", len(new) + len(old))
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
    messages += [(make_export.message(one), None) for one in jobs_of_exports.running(SWEEP)]
    messages += [(deliver_events.message(one), None) for one in webhooks.behind()]
    if messages:
        sweep.broker.enqueue_all(messages)
    receipts.forget_old()
    database.shorten_log()


@dramatiq.actor(queue_name=MAINTENANCE, priority=20, periodic=cron("17 * * * *"))
def forget_events() -> None:
    """Remove events and deliveries that are older than they are kept."""
    config = settings()
    removed = events.forget(config.event_days, webhooks.received())
    webhooks.forget(config.webhook_log_days)
    if removed:
        log.info("old events removed", events=removed)


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
    if not storage.has_object_store:
        return
    events.note_storage(fallen_back=_any_local())
    if storage.circuit_open:
        return
    moved = 0
    for row in itertools.chain.from_iterable(map(local_blobs, SORTED_BY)):
        try:
            if not _move(row.account_id, row.storage_key, row.size, row.sha256):
                return
            moved += 1
        except (BlobMissing, BlobCorrupt, DataKeyError) as error:
            log.error("blob cannot be moved", key=row.storage_key, error=str(error))
    events.note_storage(fallen_back=_any_local())
    if moved:
        log.info("moved to the object store", blobs=moved)


@dramatiq.actor(
    queue_name=MAINTENANCE,
    priority=20,
    periodic=cron("37 * * * *"),
    max_retries=0,
    time_limit=600_000,
)
def clear_fallback() -> None:
    """Remove local copies of what the object store has: their poll died before its commit.

    The mail came again, and then the store took it. No row leads to the first copy.
    """
    storage = runtime.storage()
    if not storage.has_fallback or storage.circuit_open:
        return
    removed = 0
    try:
        for uuid in storage.stores[StorageType.LOCAL].accounts():
            removed += _clear(uuid)
    except StoreUnavailable as error:
        log.info("copies left in local files stay: the store is away", error=str(error))
    if removed:
        log.info("copies left in local files removed", blobs=removed)


def _clear(uuid: str) -> int:
    with database.connected():
        account = EmailAccount.visible().where(EmailAccount.uuid == uuid).first()
    if account is None:
        return 0  # it is deleted, or a matter for fsck
    mended = [one.mend(account) for one in stored.left_behind(account) if one.mend]
    return sum(repair.outcome is Outcome.REPAIRED for repair in mended)


@dramatiq.actor(
    queue_name=MAINTENANCE,
    priority=20,
    periodic=cron("47 * * * *"),
    max_retries=0,
    time_limit=600_000,
)
def empty_deleted() -> None:
    """Remove what deleted accounts have in the stores again.

    Who put it had not heard of the deletion, and died or lost the store before it could take it
    away. Or it lies in the local files of a machine that the deletion did not run on.
    """
    for store_type, store in runtime.storage().stores.items():
        try:
            for uuid in receipts.deleted(list(store.accounts())):
                removed = store.delete_account(uuid)
                log.info("emptied again", account=uuid, store=store_type, blobs=removed)
        except StoreUnavailable as error:
            log.info("deleted accounts are not looked for: a store is away", error=str(error))


def _any_local() -> bool:
    with database.connected():
        return any(table.select().where(LOCAL).exists() for table in SORTED_BY)


@dramatiq.actor(
    queue_name=MAINTENANCE,
    priority=20,
    periodic=cron("* * * * *"),
    max_retries=0,
    time_limit=600_000,
)
def scrub() -> None:
    """Read back and hash a few more of all stored blobs, and heal what is damaged."""
    scrubbing.run(scrub.broker.limits)


@dramatiq.actor(
    queue_name=MAINTENANCE,
    priority=20,
    periodic=cron("*/5 * * * *"),
    max_retries=0,
    time_limit=600_000,
)
def retain() -> None:
    """Delete the mail whose time is over, a bounded share of it."""
    retention.run()


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
    faults.point("copied")
    storage.delete([key], StorageType.LOCAL)
    faults.point("local-removed")
    moved = 0
    with database.transaction():
        for table in SORTED_BY:
            moved += (
                table.update(storage_type=StorageType.OSS)
                .where(
                    table.account == account_id,
                    table.sha256 == sha256,
                    table.storage_type == StorageType.LOCAL,
                )
                .execute()
            )
        unnamed = not moved and EmailAccount.lock(account_id)
        if unnamed:  # else the account's deletion, or ``empty_deleted``, sees to it
            doomed.doom(account_id, [sha256])
    if unnamed:
        log.info("moved what was being deleted", key=key)
    faults.point("moved")
    return True


@dramatiq.actor(
    queue_name=MAINTENANCE,
    priority=20,
    periodic=cron("43 3 * * *"),
    max_retries=0,
    time_limit=3_600_000,
)
def erase_words() -> None:
    """Let the words of mail that retention has deleted go from the search index for good.

    And what tied it to other mail, where a run was killed before it came to that. Once a day, as it
    rewrites the index. The deletion of an account does it by itself.
    """
    mark = Mark.all().get(MarkName.WORDS_LEFT)
    if mark is None or not mark.value:
        return
    parts = sum(1 for _ in search.erase())
    forgotten = threads.forget_all_empty()
    log.info("words of deleted mail erased", parts=parts, threads=forgotten)
    with database.transaction():
        # Unless more was deleted meanwhile.
        Mark.update(value=0).where(Mark.name == mark.name, Mark.at == mark.at).execute()


@dramatiq.actor(queue_name=MAINTENANCE, priority=10, periodic=cron("7 * * * *"))
def prune_audit() -> None:
    """Remove audit events that are older than they are to be kept, and figures of old hours."""
    EmailHour.forget(database.now() - HOURS_KEPT)
    removed = audit.prune(settings().audit_days)
    if removed:
        log.info("old audit events removed", events=removed)
