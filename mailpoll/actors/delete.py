"""Delete an account with everything it has: queue entries, rows, blobs in every store, files.

The account is fenced when the deletion is asked for, so nothing new can commit. Each step can run
again; the job's row says which one is next, and stays as the receipt. What a transaction removes is
counted in it. What knows no transactions is written down and counted page by page before it is
removed: whoever resumes removes that page again, and counts only what comes after it.
"""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import dramatiq
import peewee
import structlog
from peewee import Tuple

from .. import database, faults, queues, removal, runtime, search, spool
from ..blobs import StorageType, StoreUnavailable
from ..broker import MAINTENANCE
from ..models import (
    EmailAccount,
    EmailAccountDay,
    EmailAttachment,
    EmailDamage,
    EmailDay,
    EmailDoomedBlob,
    EmailEvent,
    EmailExport,
    EmailExportPart,
    EmailFetchFailure,
    EmailFlag,
    EmailFolder,
    EmailHold,
    EmailJob,
    EmailLeftOut,
    EmailLocation,
    EmailRawMessage,
    EmailSearch,
    EmailThreadKey,
    EmailTombstone,
    JobState,
    WebhookDelivery,
    count,
)
from ..receipts import BYTES, OBJECTS, QUEUE_ENTRIES, REDIS_KEYS, TEMPORARY_FILES

log = structlog.get_logger()

#: Seconds that a job's lease holds without progress.
LEASE = 120
#: Messages whose rows go in one transaction.
PAGE = 200
#: Blobs that are removed together.
BLOBS = 1_000
#: Messages asked for in one statement.
LOOKUP = 1_000
#: How often in one run something may be found that came after its place was emptied.
ROUNDS = 5

#: ``internal_date`` and id of a message: the order of the account's index.
Place = tuple[datetime, int]


class JobTaken(Exception):
    """Another run has the job by now: nothing of this step was written."""


class StillThere(Exception):
    """Something of the account came again after it was removed; to be tried again."""


@dataclass(frozen=True, slots=True)
class Outside:
    """Where an account has things that no transaction covers.

    Parameters:
      name: what is counted.
      pages: names and sizes of what is there, page by page, while it is being removed.
      remove: removes what has these names, if it is there.
      sizes: the name under which bytes are counted.
    """

    name: str
    pages: Callable[[], Iterator[dict[str, int]]]
    remove: Callable[[Sequence[str]], object]
    sizes: str = ""

    def amounts(self, page: dict[str, int]) -> dict[str, int]:
        counted = {self.name: len(page)}
        return counted | {self.sizes: sum(page.values())} if self.sizes else counted


@dramatiq.actor(queue_name=MAINTENANCE, priority=10, time_limit=3_600_000)
def delete_account(job_id: int) -> None:
    """Run or resume a deletion."""
    job = _take(job_id)
    if job is None:
        return
    try:
        _run(job)
    except JobTaken:
        log.info("deletion goes on elsewhere", account=job.account_uuid)
    except Exception:
        _give_back(job)  # the retry must find it free
        raise


def _run(job: EmailJob) -> None:
    log.info("deleting account", account=job.account_uuid, step=job.step)
    for _ in range(ROUNDS):
        _remove(job)
        found = _left(job)
        if not any(found.values()):
            _progress(job, "done", state=JobState.DONE, scan=_scanned(job, found))
            log.info("account deleted", account=job.account_uuid, counts=job.counts)
            return
        log.info("not all gone yet", account=job.account_uuid, found=found)
        _progress(job, "queues", scan=_scanned(job, found))
    raise StillThere(f"account {job.account_uuid}")


def _remove(job: EmailJob) -> None:
    """Every step from the one that is next."""
    if job.page:  # killed while this was removed, and it is counted
        _outside(job, job.page["place"]).remove(job.page["names"])
        _progress(job, job.step)
    if job.step == "queues":
        _clear(job, QUEUE_ENTRIES)
        _clear(job, REDIS_KEYS)
        _progress(job, "messages")
    if job.step == "messages":
        faults.point("queues-forgotten")
        last = None
        while last := _delete_messages(job, last):
            faults.point("rows-deleted")
        while _delete_events(job) or _delete_thread_keys(job):
            pass
        for _ in search.erase():
            _progress(job, "messages")
        _progress(job, "account")
    if job.step == "account":
        _delete_account_rows(job)
        faults.point("account-deleted")
    if job.step == "blobs":
        # After the rows, so that no row ever points at a blob that is gone.
        for store_type in runtime.storage().stores:
            _clear(job, OBJECTS + store_type)
        _clear(job, TEMPORARY_FILES)
        runtime.storage().delete_account(job.account_uuid)  # and empty directories
        faults.point("stores-emptied")
        _progress(job, "scan")


# Things outside of the database


def _outside(job: EmailJob, name: str) -> Outside:
    if name == QUEUE_ENTRIES:
        return _queue_entries(job)
    if name == REDIS_KEYS:
        return _redis_keys(job)
    if name == TEMPORARY_FILES:
        return _temporary_files(job.account_uuid)
    return _blobs(job.account_uuid, StorageType(name.removeprefix(OBJECTS)))


def _clear(job: EmailJob, name: str) -> None:
    """Remove what is there, counting each thing once however often this is killed and resumed."""
    outside = _outside(job, name)
    for page in outside.pages():
        noted = {"place": outside.name, "names": list(page)}
        _progress(job, job.step, page=noted, removed=outside.amounts(page))
        outside.remove(list(page))
    _progress(job, job.step, removed=outside.amounts({}))


def _queue_entries(job: EmailJob) -> Outside:
    broker = delete_account.broker
    pages = partial(queues.entries, broker, job.account_id, partial(_mine, job.account_id))
    return Outside(
        QUEUE_ENTRIES,
        lambda: (dict.fromkeys(page, 0) for page in pages()),
        partial(queues.remove, broker, job.account_id),
    )


def _redis_keys(job: EmailJob) -> Outside:
    broker = delete_account.broker

    def pages() -> Iterator[dict[str, int]]:
        if keys := queues.keys_of(broker, job.account_id, job.account_uuid):
            yield dict.fromkeys(keys, 0)

    return Outside(REDIS_KEYS, pages, lambda names: broker.client.delete(*names))


def _blobs(uuid: str, store_type: StorageType) -> Outside:
    storage = runtime.storage()

    def pages() -> Iterator[dict[str, int]]:
        before: dict[str, int] = {}
        while listed := storage.list_account(uuid, store_type, BLOBS):
            page = {found.key: found.size for found in listed}
            if page == before:
                raise StoreUnavailable(f"{store_type}: deleted blobs are still listed")
            yield page
            before = page

    return Outside(
        OBJECTS + store_type,
        pages,
        lambda names: storage.delete(names, store_type),
        sizes=BYTES + store_type,
    )


def _temporary_files(uuid: str) -> Outside:
    """Unfinished writes and spooled messages, of this machine."""

    def pages() -> Iterator[dict[str, int]]:
        if files := _files(uuid):
            yield dict.fromkeys(map(str, files), 0)

    def remove(names: Sequence[str]) -> None:
        for name in names:
            spool.remove(Path(name))

    return Outside(TEMPORARY_FILES, pages, remove)


def _files(uuid: str) -> list[Path]:
    return [*runtime.storage().temporary_files(uuid), *spool.of_account(uuid)]


def _mine(account_id: int, ids: Set[int]) -> set[int]:
    """Which messages are the account's, processed ones too, or nobody's any more.

    Entries are only ever sent for rows that are there, and ids are never given out twice.
    """
    table = EmailRawMessage
    others: set[int] = set()
    with database.connected():
        for chunk in peewee.chunked(ids, LOOKUP):
            query = table.select(table.id).where(table.account != account_id, table.id.in_(chunk))
            others.update(message_id for (message_id,) in query.tuples())
    return set(ids) - others


# What is left


def _left(job: EmailJob) -> dict[str, int]:
    """How much of the account is found anywhere; pages are not read to their end.

    Raises:
      StoreUnavailable, redis.RedisError: a place cannot be looked at.
    """
    uuid, storage = job.account_uuid, runtime.storage()
    in_redis = (_queue_entries(job), _redis_keys(job))
    return {
        **_rows_left(job.account_id),
        **{OBJECTS + kind: len(storage.list_account(uuid, kind, BLOBS)) for kind in storage.stores},
        TEMPORARY_FILES: len(_files(uuid)),
        **{one.name: len(next(one.pages(), ())) for one in in_redis},
        "write_ahead_log": 0 if database.checkpoint() else 1,
    }


def _rows_left(account_id: int) -> dict[str, int]:
    """Rows by table. Those without the account's id hang on others, by foreign keys."""
    folders = EmailFolder.select(EmailFolder.id).where(EmailFolder.account == account_id)
    messages = EmailRawMessage.select(EmailRawMessage.id).where(
        EmailRawMessage.account == account_id
    )
    owned: dict[Any, Any] = {
        EmailAccount: EmailAccount.id == account_id,
        EmailFolder: EmailFolder.account == account_id,
        EmailRawMessage: EmailRawMessage.account == account_id,
        EmailAccountDay: EmailAccountDay.account == account_id,
        EmailLocation: EmailLocation.message.in_(messages),
        EmailAttachment: EmailAttachment.message.in_(messages),
        EmailSearch: EmailSearch.account == account_id,
        EmailThreadKey: EmailThreadKey.account == account_id,
        EmailFetchFailure: EmailFetchFailure.folder.in_(folders),
        EmailLeftOut: EmailLeftOut.folder.in_(folders),
        EmailDamage: EmailDamage.account == account_id,
        EmailFlag: EmailFlag.account == account_id,
        EmailTombstone: EmailTombstone.account == account_id,
        EmailDoomedBlob: EmailDoomedBlob.account == account_id,
        EmailHold: EmailHold.account == account_id,
        EmailExport: EmailExport.account == account_id,
        EmailExportPart: EmailExportPart.account == account_id,
        EmailEvent: EmailEvent.account_id == account_id,
        WebhookDelivery: WebhookDelivery.account_id == account_id,
    }
    with database.connected():
        return {
            table._meta.table_name: count(table.select().where(mine))
            for table, mine in owned.items()
        }


def _scanned(job: EmailJob, found: dict[str, int]) -> dict[str, Any]:
    rounds = job.scan["rounds"] if job.scan else 0
    return {
        "at": database.now().isoformat(),
        "machine": socket.gethostname(),
        "rounds": rounds + 1,
        "found": found,
    }


# The job


def _take(job_id: int) -> EmailJob | None:
    table = EmailJob
    moment = database.now()
    with database.transaction():
        taken = (
            table.update(lease_until=moment + timedelta(seconds=LEASE), attempts=table.attempts + 1)
            .where(
                table.id == job_id,
                table.state == JobState.RUNNING,
                table.lease_until.is_null() | (table.lease_until <= moment),
            )
            .execute()
        )
        return table.get_by_id(job_id) if taken else None


def _give_back(job: EmailJob) -> None:
    table = EmailJob
    with database.transaction():
        table.update(lease_until=None).where(
            table.id == job.id, table.attempts == job.attempts
        ).execute()


#: Columns of a job besides its step.
Columns = dict[str, Any]


def _progress(
    job: EmailJob,
    step: str,
    state: JobState = JobState.RUNNING,
    *,
    page: Columns | None = None,
    scan: Columns | None = None,
    removed: Mapping[str, int] | None = None,
) -> None:
    """Commit that a step is done, with what it removed; alone or in the caller's transaction.

    Parameters:
      removed: how much, by what it was.
      page: what is removed next, outside of the database.
      scan: what the look that ended just now has found.

    Raises:
      JobTaken: the lease ended, and another run has begun.
    """
    moment = database.now()
    done = state == JobState.DONE
    for name, amount in (removed or {}).items():
        job.counts[name] = job.counts.get(name, 0) + amount
    columns: Columns = {
        "step": step,
        "state": state,
        "counts": job.counts,
        "page": page,
        "scan": scan or job.scan,
        "updated_at": moment,
        "lease_until": None if done else moment + timedelta(seconds=LEASE),
        "finished_at": moment if done else None,
    }
    table = EmailJob
    with database.transaction():
        mine = (table.id == job.id) & (table.attempts == job.attempts)
        if not table.update(**columns).where(mine, table.state == JobState.RUNNING).execute():
            raise JobTaken(job.uuid)
    for name, value in columns.items():
        setattr(job, name, value)


# Rows


def _delete_messages(job: EmailJob, last: Place | None = None) -> Place | None:
    """Delete one page of messages with all that hangs on them.

    Parameters:
      last: where the page before ended, so that none reads past what was deleted already.

    Returns:
      where this page ended; ``None`` when nothing was left.
    """
    table = EmailRawMessage
    order = (table.internal_date, table.id)
    with database.transaction():
        page = table.select(*order).where(table.account == job.account_id)
        if last:
            page = page.where(Tuple(*order) > (database.timestamp(last[0]), last[1]))
        page = page.order_by(*order).limit(PAGE)
        if not database.is_sqlite():
            # A worker that is finishing one adds its attachments before or not at all.
            page = page.for_update()
        places = list(page.tuples())
        if not places:
            return None
        ids = [message_id for _, message_id in places]
        _progress(job, "messages", removed=removal.remove_messages(ids))
    return places[-1]  # type: ignore[no-any-return]


def _delete_events(job: EmailJob) -> bool:
    """Delete some of the account's events and of what was sent of them; whether there were any."""
    with database.transaction():
        counts = _events_of(job.account_id, LOOKUP)
        if any(counts.values()):
            _progress(job, "messages", removed=counts)
    return any(counts.values())


def _delete_thread_keys(job: EmailJob) -> bool:
    """Delete some of what ties the account's messages together; whether there was any."""
    table = EmailThreadKey
    mine = table.account == job.account_id
    with database.transaction():
        some = table.select(table.key).where(mine).order_by(table.key).limit(LOOKUP)
        counts = {"email_thread_keys": _delete(table, mine & table.key.in_(some))}
        if any(counts.values()):
            _progress(job, "messages", removed=counts)
    return any(counts.values())


def _events_of(account_id: int, limit: int | None = None) -> dict[str, int]:
    """Delete an account's events, so many at most; how many of each table."""
    counts = {}
    for table in (EmailEvent, WebhookDelivery):
        some = table.select(table.id).where(table.account_id == account_id).limit(limit)
        counts[table._meta.table_name] = _delete(table, table.id.in_(some))
    return counts


def _delete_account_rows(job: EmailJob) -> None:
    account = job.account_id
    folders = EmailFolder.select(EmailFolder.id).where(EmailFolder.account == account)
    with database.transaction():
        counts = {
            "email_fetch_failures": _delete(
                EmailFetchFailure, EmailFetchFailure.folder.in_(folders)
            ),
            "email_left_out": _delete(EmailLeftOut, EmailLeftOut.folder.in_(folders)),
            "email_folders": _delete(EmailFolder, EmailFolder.account == account),
        }
        # Those that were written since.
        counts |= _events_of(account)
        for table in (
            *(EmailSearch, EmailDamage, EmailTombstone, EmailDoomedBlob, EmailThreadKey),
            *(EmailExportPart, EmailExport),
        ):
            counts[table._meta.table_name] = _delete(table, table.account == account)
        EmailDay.lock(account)
        counts["email_account_days"] = _delete(EmailAccountDay, EmailAccountDay.account == account)
        counts["email_accounts"] = _delete(EmailAccount, EmailAccount.id == account)
        _progress(job, "blobs", removed=counts)


def _delete(table: Any, rows: Any) -> int:
    return int(table.delete().where(rows).execute())
