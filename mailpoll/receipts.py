"""What stays of a deleted account: how much was removed, and that a look found nothing more.

It names the account by its UUID. Only if the operator wants it, a hash of the address is kept too.
"""

import hashlib
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from . import database
from .models import EmailJob, JobState
from .settings import settings

KIND = "delete_account"
#: What was removed besides rows and blobs.
OTHERS = (
    TEMPORARY_FILES := "temporary_files",
    QUEUE_ENTRIES := "queue_entries",
    REDIS_KEYS := "redis_keys",
)
#: Counts of rows begin with these.
TABLES = ("email_", "webhook_")
#: Counts of a store begin with these.
OBJECTS, BYTES = "objects_", "bytes_"


def address_hash(address: str) -> str | None:
    """What a receipt can be found by later, with ``MAILPOLL_RECEIPT_ADDRESS_HASH``."""
    return _digest(address) if settings().receipt_address_hash else None


def _digest(address: str) -> str:
    return hashlib.sha256(address.lower().encode()).hexdigest()


def of(job: EmailJob) -> dict[str, Any]:
    """A deletion as ``DeleteJob`` of the API."""
    counts = job.counts
    stores = [name.removeprefix(OBJECTS) for name in counts if name.startswith(OBJECTS)]
    scan = job.scan
    return {
        "id": job.uuid,
        "account_id": job.account_uuid,
        "address_sha256": job.address_sha256,
        "state": job.state,
        "step": job.step,
        "attempts": job.attempts,
        "requested_at": job.created_at,
        "updated_at": job.updated_at,
        "finished_at": job.finished_at,
        "rows": {name: amount for name, amount in counts.items() if name.startswith(TABLES)},
        "stores": {
            name: {"objects": counts[OBJECTS + name], "bytes": counts[BYTES + name]}
            for name in stores
        },
        **{name: counts.get(name, 0) for name in OTHERS},
        "scan": scan and {**scan, "empty": not any(scan["found"].values())},
    }


def find(name: str) -> EmailJob | None:
    """The latest deletion by its own id, the account's, or an address whose hash was kept."""
    table = EmailJob
    named = (
        (table.uuid == name)
        | (table.account_uuid == name)
        | (table.address_sha256 == _digest(name))
    )
    with database.connected():
        return (  # type: ignore[no-any-return]
            table.select().where(table.kind == KIND, named).order_by(table.id.desc()).first()
        )


def deleted(account_uuids: Iterable[str]) -> list[str]:
    """Those of some accounts whose deletion is done."""
    table = EmailJob
    done = (table.kind == KIND) & (table.state == JobState.DONE)
    found: list[str] = []
    with database.connected():
        for chunk in database.chunks(account_uuids):
            rows = table.select(table.account_uuid).where(table.account_uuid.in_(chunk), done)
            found += [uuid for (uuid,) in rows.tuples()]
    return found


def latest(limit: int, before: int | None = None) -> list[EmailJob]:
    """Deletions, newest first.

    Parameters:
      before: only those whose row has a lower id.
    """
    table = EmailJob
    rows = table.select().where(table.kind == KIND)
    if before is not None:
        rows = rows.where(table.id < before)
    with database.connected():
        return list(rows.order_by(table.id.desc()).limit(limit))


def forget_old() -> None:
    """Remove the receipts that are older than ``MAILPOLL_RECEIPT_DAYS``."""
    days = settings().receipt_days
    if not days:
        return
    table = EmailJob
    with database.transaction(durable=False):
        table.delete().where(
            table.kind == KIND,
            table.state == JobState.DONE,
            table.finished_at < database.now() - timedelta(days=days),
        ).execute()
