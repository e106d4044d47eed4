"""Stores against rows: each row's blob is read back, and each blob must have a row."""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path

from .. import database, doomed, runtime, spool
from ..blobs import BlobStore, Listed, StorageType, blob_key, split_key
from ..models import (
    EmailAccount,
    EmailAttachment,
    EmailDoomedBlob,
    EmailExportPart,
    EmailJob,
    EmailRawMessage,
    JobState,
)
from ..settings import settings
from .damage import TABLES, Row, State, broken, choose_store, columns_of, row_of, state_of
from .findings import Difference, Kind, Outcome, Repair, Tally
from .rows import PAGE
from .server import Mailbox

#: A blob without a row, or a spooled file, is left alone for so long: a poll may have just put it.
ORPHAN_AGE = timedelta(hours=24)
#: Blobs read at the same time.
READERS = 8


class Seen:
    """(key, store) of the blobs that rows name; on disk when there are many."""

    def __init__(self) -> None:
        self._file = sqlite3.connect("")  # a private temporary file, which SQLite removes
        self._file.execute(
            "CREATE TABLE seen (key TEXT, store TEXT, PRIMARY KEY (key, store)) WITHOUT ROWID"
        )

    def add(self, key: str, store: StorageType) -> bool:
        """Note a blob; false when it was noted before."""
        added = self._file.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, str(store)))
        return added.rowcount == 1

    def __contains__(self, item: tuple[str, StorageType]) -> bool:
        query = "SELECT 1 FROM seen WHERE key = ? AND store = ?"
        return self._file.execute(query, (item[0], str(item[1]))).fetchone() is not None

    def close(self) -> None:
        self._file.close()


def check(account: EmailAccount, mailbox: Mailbox | None, tally: Tally) -> Iterator[Difference]:
    """Read back every blob of an account, and look for blobs that no row names.

    Parameters:
      mailbox: where lost bytes are fetched again; ``None`` when no server is to be asked.

    Raises:
      StoreUnavailable: a store cannot be read.
    """
    with closing(Seen()) as seen, ThreadPoolExecutor(READERS) as readers:
        for page in _pages(account):
            fresh = []
            for row in page:
                key = blob_key(account.uuid, row.sha256)
                if row.storage_key != key:
                    yield _wrong_key(account, row, key)
                if seen.add(key, row.storage_type):
                    fresh.append(replace(row, storage_key=key))
            for row, state in zip(fresh, readers.map(state_of, fresh), strict=True):
                tally.blobs += 1
                tally.bytes += row.size
                tally.now = f"{account.address}: blob {tally.blobs:,}"
                if state is not State.WHOLE:
                    for difference, elsewhere in broken(account, row, mailbox):
                        for other in elsewhere:
                            seen.add(row.storage_key, other)  # one difference, not two
                        yield difference
            tally.messages += sum(1 for row in page if row.table is EmailRawMessage)
            tally.attachments += sum(1 for row in page if row.table is EmailAttachment)
        yield from _listed(account, seen, tally)


def check_leftovers() -> Iterator[Difference]:
    """Blobs of accounts that are not there, and this machine's forgotten spool files.

    Raises:
      StoreUnavailable: a store cannot be listed.
    """
    for store_type, store in runtime.storage().stores.items():
        for uuid in store.accounts():
            yield from _unknown_account(uuid, store_type, store)
    before = time.time() - ORPHAN_AGE.total_seconds()
    files = settings().spool_dir
    for path in sorted(files.iterdir()) if files.is_dir() else ():
        if _written_at(path) < before:
            yield Difference(Kind.LEFTOVER, key=str(path), mend=partial(_remove, path))


def _written_at(path: Path) -> float:
    """When a file was last written; one that its worker has just taken away is new."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return time.time()


def _remove(path: Path, _: EmailAccount | None) -> Repair:
    spool.remove(path)
    return Repair(Outcome.REPAIRED, "removed")


# Rows


def _pages(account: EmailAccount) -> Iterator[list[Row]]:
    """The rows that point at blobs: some messages, then their attachments."""
    table, last = EmailRawMessage, ""
    while True:
        with database.connected():
            messages = list(
                table.select(*columns_of(table))
                .where(table.account == account, table.sha256 > last)
                .order_by(table.sha256)
                .limit(PAGE)
            )
            ids = [message.id for message in messages]
            attachments = list(
                EmailAttachment.select(*columns_of(EmailAttachment))
                .where(EmailAttachment.message.in_(ids))
                .order_by(EmailAttachment.message, EmailAttachment.position)
            )
        yield [row_of(found) for found in (*messages, *attachments)]
        if len(messages) < PAGE:
            break
        last = messages[-1].sha256
    with database.connected():
        parts = list(EmailExportPart.select().where(EmailExportPart.account == account))
    yield [row_of(part) for part in parts]


def _wrong_key(account: EmailAccount, row: Row, key: str) -> Difference:
    def correct(_: EmailAccount | None) -> Repair:
        with database.transaction():
            row.table.update(storage_key=key).where(row.table.id == row.id).execute()
        return Repair(Outcome.REPAIRED)

    detail = f"content {row.sha256}"
    return Difference(Kind.KEY_WRONG, account, key=row.storage_key, detail=detail, mend=correct)


# Listings


def left_behind(account: EmailAccount) -> Iterator[Difference]:
    """Local copies of what the object store has, of polls and workers that died after a fall-back.

    Raises:
      StoreUnavailable: a store cannot be read.
    """
    with closing(Seen()) as nothing:
        for difference in _unnamed(account, StorageType.LOCAL, nothing, Tally()):
            if difference.kind is Kind.BLOB_DOUBLED:
                yield difference


def _listed(account: EmailAccount, seen: Seen, tally: Tally) -> Iterator[Difference]:
    """Blobs that a store has and that no row names there."""
    for store_type in runtime.storage().stores:
        yield from _unnamed(account, store_type, seen, tally)


def _unnamed(
    account: EmailAccount, store_type: StorageType, seen: Seen, tally: Tally
) -> Iterator[Difference]:
    store = runtime.storage().stores[store_type]
    for page in _chunked(store.list_account(account.uuid)):
        tally.now = f"{account.address}: listing {store_type}"
        unnamed = [found for found in page if (found.key, store_type) not in seen]
        if not unnamed:
            continue
        digests = [found.key.rpartition("/")[2] for found in unnamed]
        named, going = _named(account, digests), _doomed(account, digests)
        for found in unnamed:
            if found.key.rpartition("/")[2] in going:
                continue  # retention is at it
            rows = named.get(found.key.rpartition("/")[2], {})
            if store_type in rows or not _exists(store, found.key):
                continue  # committed, or moved, while this was looked at
            if rows:
                yield _doubled(account, found, store_type, rows)
            else:
                yield _orphan(account, found, store_type)


def _chunked(listing: Iterable[Listed]) -> Iterator[list[Listed]]:
    listing = iter(listing)
    while page := list(islice(listing, PAGE)):
        yield page


def _exists(store: BlobStore, key: str) -> bool:
    try:
        return store.exists(key)
    except ValueError:
        return True  # not a name that mailpoll gives


def _named(account: EmailAccount, digests: Sequence[str]) -> dict[str, dict[StorageType, int]]:
    """SHA-256 to stores and size, of those contents that a row names by now."""
    found: dict[str, dict[StorageType, int]] = {}
    with database.connected():
        for table in TABLES:
            query = table.select(table.sha256, table.storage_type, table.size).where(
                table.account == account.id, table.sha256.in_(digests)
            )
            for sha256, store_type, size in query.tuples():
                found.setdefault(sha256, {})[StorageType(store_type)] = size
    return found


def _doomed(account: EmailAccount, digests: Sequence[str]) -> set[str]:
    """Contents whose blobs retention has yet to delete."""
    table = EmailDoomedBlob
    with database.connected():
        rows = table.select(table.sha256).where(
            table.account == account.id,
            table.sha256.in_(list(digests)),
            table.gone_at.is_null(),
        )
        return {sha256 for (sha256,) in rows.tuples()}


def _doubled(
    account: EmailAccount, found: Listed, store_type: StorageType, rows: dict[StorageType, int]
) -> Difference:
    sha256 = found.key.rpartition("/")[2]
    (named, size), *_ = rows.items()
    return Difference(
        Kind.BLOB_DOUBLED,
        account,
        key=found.key,
        detail=f"in {store_type}, rows say {named}",
        mend=partial(choose_store, found.key, sha256, size),
    )


def _orphan(account: EmailAccount, found: Listed, store_type: StorageType) -> Difference:
    difference = Difference(Kind.ORPHAN, account, key=found.key, detail=str(store_type))
    age = datetime.now(UTC) - found.modified_at
    if age < ORPHAN_AGE:
        difference.outcome = Outcome.RECENT
        difference.reason = "a poll may have just put it"
    else:
        difference.mend = partial(_delete_orphan, found.key)
    return difference


def _delete_orphan(key: str, account: EmailAccount | None) -> Repair:
    """Delete a blob that nothing can come to name, as retention does."""
    assert account is not None
    sha256 = key.rpartition("/")[2]
    if sha256 in _named(account, [sha256]):
        return Repair(Outcome.REPAIRED, "a row names it by now")
    try:
        split_key(key)
    except ValueError:
        return Repair(Outcome.LEFT, "it is not of a name that mailpoll gives")
    with database.transaction():
        account.keep(doomed.LEASE)
        doomed.doom(account.id, [sha256])
    while doomed.delete_page(account) is not None:
        pass
    if doomed.left(account.id):
        reason = "messages wait to be processed, and it may become theirs: else it goes after them"
        return Repair(Outcome.LEFT, reason)
    return Repair(Outcome.REPAIRED, "deleted")


def _unknown_account(uuid: str, store_type: StorageType, store: BlobStore) -> Iterator[Difference]:
    newest, count = None, 0
    for found in store.list_account(uuid):
        count += 1
        newest = max(newest or found.modified_at, found.modified_at)
    # Asked after the listing: an account's row is there before its first blob.
    with database.connected():
        job = EmailJob.get_or_none(EmailJob.account_uuid == uuid)
        known = EmailAccount.select().where(EmailAccount.uuid == uuid).exists()
    if known or newest is None or (job and job.state == JobState.RUNNING):
        return
    difference = Difference(
        Kind.ORPHAN_ACCOUNT, key=f"{uuid}/", detail=f"{count:,} blobs, {store_type}"
    )
    if job is None:
        difference.reason = "no deletion of it is known: is the database older than the store?"
    elif datetime.now(UTC) - newest < ORPHAN_AGE:
        difference.outcome = Outcome.RECENT
    else:
        difference.mend = partial(_delete_account, uuid, store)
    yield difference


def _delete_account(uuid: str, store: BlobStore, _: EmailAccount | None) -> Repair:
    deleted = store.delete_account(uuid)
    return Repair(Outcome.REPAIRED, f"deleted {deleted:,} blobs of an account that was deleted")
