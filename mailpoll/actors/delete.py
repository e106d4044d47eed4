"""Delete an account with everything it has: queue entries, rows, and blobs in every store.

The account is fenced when the deletion is asked for, so nothing new can commit. Each step can run
again; the job's row says which one is next, and stays as the tombstone.
"""

from collections.abc import Set
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import dramatiq
import peewee
import redis
import structlog
from peewee import Tuple

from .. import database, runtime
from ..broker import MAINTENANCE
from ..models import (
    EmailAccount,
    EmailAccountDay,
    EmailAttachment,
    EmailDay,
    EmailFetchFailure,
    EmailFolder,
    EmailJob,
    EmailLeftOut,
    EmailLocation,
    EmailRawMessage,
    JobState,
)
from ..queues import forget

log = structlog.get_logger()

#: Seconds that a job's lease holds without progress.
LEASE = 120
#: Messages whose rows go in one transaction.
PAGE = 200
#: Messages asked for in one statement.
LOOKUP = 1_000

#: ``internal_date`` and id of a message: the order of the account's index.
Place = tuple[datetime, int]


@dramatiq.actor(queue_name=MAINTENANCE, priority=10, time_limit=3_600_000)
def delete_account(job_id: int) -> None:
    """Run or resume a deletion."""
    job = _take(job_id)
    if job is None:
        return
    try:
        _run(job)
    except Exception:
        _give_back(job)  # the retry must find it free
        raise


def _run(job: EmailJob) -> None:
    account_id, uuid = job.account_id, job.account_uuid
    log.info("deleting account", account=uuid, step=job.step)
    if job.step == "queues":
        # Redis is a hint: messages of the account that it cannot give up now become no-ops.
        try:
            mine = partial(_messages_among, account_id)
            removed = forget(delete_account.broker, account_id, mine)
            _progress(job, "messages", queue_entries=removed)
        except redis.RedisError as error:
            log.warning("queues not searched", account=uuid, error=str(error))
            _progress(job, "messages")
    if job.step == "messages":
        last = None
        while last := _delete_messages(job, last):
            pass
        _progress(job, "account")
    if job.step == "account":
        _delete_account_rows(job)
        _progress(job, "blobs")
    if job.step == "blobs":
        # After the rows, so that no row ever points at a blob that is gone.
        blobs = runtime.storage().delete_account(uuid)
        _progress(job, "done", blobs=blobs, state=JobState.DONE)
        log.info("account deleted", account=uuid, counts=job.counts)


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


def _progress(job: EmailJob, step: str, state: JobState = JobState.RUNNING, **counts: int) -> None:
    """Commit that a step is done, with what it removed; alone or in the caller's transaction."""
    moment = database.now()
    done = state == JobState.DONE
    for name, amount in counts.items():
        job.counts[name] = job.counts.get(name, 0) + amount
    columns: dict[str, Any] = {
        "step": step,
        "state": state,
        "counts": job.counts,
        "updated_at": moment,
        "lease_until": None if done else moment + timedelta(seconds=LEASE),
        "finished_at": moment if done else None,
    }
    with database.transaction():
        EmailJob.update(**columns).where(EmailJob.id == job.id).execute()
    job.step, job.state = step, state


def _messages_among(account_id: int, ids: Set[int]) -> set[int]:
    """Which of these messages are the account's, processed ones too: an entry may be doubled."""
    table = EmailRawMessage
    found: set[int] = set()
    with database.connected():
        for chunk in peewee.chunked(ids, LOOKUP):
            query = table.select(table.id).where(table.account == account_id, table.id.in_(chunk))
            found.update(message_id for (message_id,) in query.tuples())
    return found


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
        attachments = EmailAttachment.delete().where(EmailAttachment.message.in_(ids)).execute()
        locations = EmailLocation.delete().where(EmailLocation.message.in_(ids)).execute()
        messages = table.delete().where(table.id.in_(ids)).execute()
        _progress(job, "messages", messages=messages, locations=locations, attachments=attachments)
    return places[-1]  # type: ignore[no-any-return]


def _delete_account_rows(job: EmailJob) -> None:
    with database.transaction():
        folders = EmailFolder.select(EmailFolder.id).where(EmailFolder.account == job.account_id)
        for table in (EmailFetchFailure, EmailLeftOut):
            table.delete().where(table.folder.in_(folders)).execute()
        count = EmailFolder.delete().where(EmailFolder.account == job.account_id).execute()
        EmailDay.lock(job.account_id)
        EmailAccountDay.delete().where(EmailAccountDay.account == job.account_id).execute()
        EmailAccount.delete().where(EmailAccount.id == job.account_id).execute()
        job.counts["folders"] = job.counts.get("folders", 0) + count
