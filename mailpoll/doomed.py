"""Blobs that no row names any more are deleted, and nobody stores mail on one that is going.

A content is doomed in the transaction that deletes its last row. Later one transaction, which holds
the account's row, notes that its deletion begins, unless a row names it by then; its blob goes; and
that it is gone stays noted for a time. Whoever stores looks here: polls and imports before they put
blobs and again where they insert their rows (imports have no lease, and a deletion that stood still
goes on without one), a worker before it puts attachments. No deletion begins while a message of the
account waits to be processed, so a worker's message is there before whatever it has to see here.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from . import database, faults, runtime
from .blobs import StoreUnavailable, blob_key
from .models import EmailAccount, LeaseLost

#: Blobs deleted together.
PAGE = 200
#: Seconds that the account's lease holds meanwhile.
LEASE = 120
#: How long it stays noted that a blob is gone: longer than any put and its transaction take.
KEPT = timedelta(hours=1)

DOOM = database.Statement("""
    INSERT INTO email_doomed_blobs (account_id, sha256, doomed_at) VALUES (?, ?, ?)
    ON CONFLICT (account_id, sha256) DO UPDATE SET doomed_at = excluded.doomed_at, gone_at = NULL,
        begun_at = CASE WHEN email_doomed_blobs.gone_at IS NULL
            THEN email_doomed_blobs.begun_at END
""")
#: Those whose deletion has begun, and, while no message waits to be processed, all others.
WAITING = database.Statement("""
    SELECT sha256 FROM email_doomed_blobs
    WHERE account_id = ? AND gone_at IS NULL AND (begun_at IS NOT NULL OR NOT EXISTS (
        SELECT 1 FROM email_raw_messages WHERE account_id = ? AND status = 'stored'))
    ORDER BY sha256 LIMIT ?
""")
#: Those of some contents that a row names by now.
NAMED = database.Statement("""
    SELECT sha256 FROM email_raw_messages WHERE account_id = ? AND sha256 IN []
    UNION SELECT sha256 FROM email_attachments WHERE account_id = ? AND sha256 IN []
    UNION SELECT sha256 FROM email_export_parts WHERE account_id = ? AND sha256 IN []
""")
SPARE = database.Statement("DELETE FROM email_doomed_blobs WHERE account_id = ? AND sha256 IN []")
BEGIN = database.Statement("""
    UPDATE email_doomed_blobs SET begun_at = CASE WHEN doomed_at > ? THEN doomed_at ELSE ? END
    WHERE account_id = ? AND sha256 IN []
""")
#: What was doomed once more meanwhile is deleted once more.
END = database.Statement("""
    UPDATE email_doomed_blobs SET gone_at = ?
    WHERE account_id = ? AND sha256 IN [] AND begun_at >= doomed_at
""")
LEFT = database.Statement("""
    SELECT 1 FROM email_doomed_blobs WHERE account_id = ? AND gone_at IS NULL LIMIT 1
""")
FORGET = database.Statement("DELETE FROM email_doomed_blobs WHERE gone_at < ?")
BEGUN = database.Statement("""
    SELECT sha256, begun_at, gone_at FROM email_doomed_blobs
    WHERE account_id = ? AND sha256 IN [] AND begun_at IS NOT NULL
""")

#: Contents whose deletion has begun: SHA-256 to when, and when it was over.
Deletions = dict[str, tuple[Any, Any]]


class BeingDeleted(StoreUnavailable):
    """A blob that is to be stored is being deleted, or was meanwhile: it must be put again."""

    def __init__(self) -> None:
        super().__init__("the store is deleting blobs that are needed again", retry_after=5)


def doom(account_id: int, digests: Sequence[str]) -> None:
    """Have blobs deleted if no row names them, in a transaction that holds the account's row."""
    moment = database.timestamp(database.now())
    DOOM.run_many([(account_id, digest, moment) for digest in sorted(set(digests))])


def delete_page(account: EmailAccount) -> int | None:
    """Delete a page of an account's doomed blobs from every store.

    Parameters:
      account: held under its lease by the caller.

    Returns:
      how many went; ``None`` when there is none to be deleted now.

    Raises:
      LeaseLost: somebody else has the account, or may have it before the blobs are gone: one that
        is stored again meanwhile must not be deleted.
      StoreUnavailable: the blobs are left, and are found again later.
    """
    begun = time.monotonic()
    with database.transaction():
        account.keep(LEASE)
        page = [sha256 for (sha256,) in WAITING.run(account.id, account.id, PAGE).fetchall()]
        if not page:
            return None
        rows = NAMED.run(*(account.id, page) * 3).fetchall()
        named = sorted({sha256 for (sha256,) in rows})
        unnamed = sorted(set(page) - set(named))
        SPARE.run(account.id, named)
        moment = database.timestamp(database.now())
        BEGIN.run(moment, moment, account.id, unnamed)
    faults.point("blobs-doomed")
    storage = runtime.storage()
    for store_type in storage.stores:
        if time.monotonic() - begun > LEASE / 2:
            raise LeaseLost(f"account {account.uuid}: stood still")
        storage.delete([blob_key(account.uuid, one) for one in unnamed], store_type)
    faults.point("retention-blobs-deleted")
    with database.transaction():
        account.keep(LEASE)
        END.run(database.timestamp(database.now()), account.id, unnamed)
    return len(unnamed)


def left(account_id: int) -> bool:
    """Whether the account has doomed blobs that are not deleted yet."""
    with database.connected():
        return LEFT.run(account_id).fetchone() is not None


def forget() -> None:
    """Drop the notes of blobs that have long been gone."""
    with database.transaction(durable=False):
        FORGET.run(database.timestamp(database.now() - KEPT))


def before_put(account_id: int, digests: Sequence[str]) -> Deletions:
    """To be asked before blobs are put, and its answer given to ``check`` where rows are inserted.

    Raises:
      BeingDeleted: one of them is going just now.
    """
    with database.connected():
        found = _begun(account_id, digests)
    if any(gone_at is None for _, gone_at in found.values()):
        raise BeingDeleted
    return found


def check(account_id: int, digests: Sequence[str], before: Deletions) -> None:
    """That nobody has begun to delete blobs since they were put.

    Inside the transaction that inserts rows of them, which holds the account's row.

    Raises:
      BeingDeleted: somebody has; the transaction must not commit.
    """
    found = _begun(account_id, digests)
    if any(one not in before or before[one] != times for one, times in found.items()):
        raise BeingDeleted


def _begun(account_id: int, digests: Sequence[str]) -> Deletions:
    return {
        sha256: (begun_at, gone_at)
        for chunk in database.chunks(sorted(set(digests)))
        for sha256, begun_at, gone_at in BEGUN.run(account_id, list(chunk)).fetchall()
    }
