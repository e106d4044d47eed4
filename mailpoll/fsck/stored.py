"""Stores against rows: each blob is read back and hashed, and each must have a row."""

import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from itertools import islice
from pathlib import Path

from .. import database, doomed, parsing, runtime, spool
from ..blobs import (
    BlobCorrupt,
    BlobMissing,
    BlobStore,
    Listed,
    NewBlob,
    StorageType,
    StoreUnavailable,
    blob_key,
    split_key,
)
from ..crypto import DecryptionError
from ..imap import Fault, ImapError
from ..models import (
    EmailAccount,
    EmailAttachment,
    EmailDoomedBlob,
    EmailExport,
    EmailExportPart,
    EmailFolder,
    EmailJob,
    EmailLocation,
    EmailRawMessage,
    ExportState,
    JobState,
)
from ..settings import settings
from .findings import Difference, Kind, Outcome, Repair, Tally
from .rows import PAGE, process_again
from .server import Mailbox, discard

#: A blob without a row, or a spooled file, is left alone for so long: a poll may have just put it.
ORPHAN_AGE = timedelta(hours=24)
#: Blobs read at the same time, and bytes read at once.
READERS = 8
CHUNK = 1 << 18
#: Raw messages up to this many bytes are parsed in memory.
IN_MEMORY = 1_000_000
#: Seconds to wait before a store that failed is asked again.
PAUSES = (0.5, 2.0)

TABLES = (EmailRawMessage, EmailAttachment, EmailExportPart)

#: A row that points at a blob.
Named = EmailRawMessage | EmailAttachment | EmailExportPart


class State(StrEnum):
    """What a store has under a key."""

    WHOLE = "whole"
    MISSING = "missing"
    CORRUPT = "corrupt"
    UNREADABLE = "unreadable"


#: What each is called as a difference.
KINDS = {
    State.MISSING: Kind.BLOB_MISSING,
    State.CORRUPT: Kind.BLOB_CORRUPT,
    State.UNREADABLE: Kind.BLOB_UNREADABLE,
}


@dataclass(frozen=True, slots=True)
class Row:
    """A row that points at a blob."""

    table: type[EmailRawMessage] | type[EmailAttachment] | type[EmailExportPart]
    id: int
    message_id: int
    sha256: str
    size: int
    storage_type: StorageType
    storage_key: str

    @property
    def account_uuid(self) -> str:
        return self.storage_key.partition("/")[0]


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


def columns_of(table: type[Named]) -> tuple[object, ...]:
    """What ``row_of`` needs."""
    columns = (table.id, table.sha256, table.size, table.storage_type, table.storage_key)
    return (*columns, EmailAttachment.message) if table is EmailAttachment else columns


def row_of(found: Named) -> Row:
    """``message_id`` is 0 for what is of no message."""
    message_id = 0 if isinstance(found, EmailExportPart) else found.id
    if isinstance(found, EmailAttachment):
        message_id = found.message_id
    return Row(
        type(found),
        found.id,
        message_id,
        found.sha256,
        found.size,
        StorageType(found.storage_type),
        found.storage_key,
    )


def _wrong_key(account: EmailAccount, row: Row, key: str) -> Difference:
    def correct(_: EmailAccount | None) -> Repair:
        with database.transaction():
            row.table.update(storage_key=key).where(row.table.id == row.id).execute()
        return Repair(Outcome.REPAIRED)

    detail = f"content {row.sha256}"
    return Difference(Kind.KEY_WRONG, account, key=row.storage_key, detail=detail, mend=correct)


# Bytes


def state_of(row: Row) -> State:
    """What the store that a row names has under its key, read to the end.

    Raises:
      StoreUnavailable: the store as a whole cannot be read.
      DataKeyError: the blob is sealed, and no key opens it.
    """
    return _state(row.storage_type, row.storage_key, row.size)


def _state(store_type: StorageType, key: str, size: int) -> State:
    """Read a blob to its end; a store that is away for a moment is asked again.

    A store that answers, and fails at this blob, has it damaged: its own checksum does not fit. It
    may do so by silence, which costs a time-out each time.

    Raises:
      StoreUnavailable: the store as a whole cannot be read.
    """
    store = runtime.storage().stores.get(store_type)
    if store is None:
        raise StoreUnavailable(f"{key}: no store of type {store_type} is configured here")
    for pause in PAUSES:
        try:
            return _read(store, key, size)
        except StoreUnavailable:
            if _answers(store):
                return State.UNREADABLE
            time.sleep(pause)
    return _read(store, key, size)


def _answers(store: BlobStore) -> bool:
    try:
        store.check()
    except StoreUnavailable:
        return False
    return True


def _read(store: BlobStore, key: str, size: int) -> State:
    length = 0
    try:
        with store.open(key) as stream:
            while chunk := stream.read(CHUNK):
                length += len(chunk)
    except BlobMissing:
        return State.MISSING
    except BlobCorrupt:
        return State.CORRUPT
    return State.WHOLE if length == size else State.CORRUPT


def broken(
    account: EmailAccount, row: Row, mailbox: Mailbox | None
) -> Iterator[tuple[Difference, list[StorageType]]]:
    """Look once more, since rows and blobs move together but not at once, and then name it.

    Returns:
      at most one difference, with the other stores that have the blob whole.
    """
    with database.connected():
        found = row.table.get_or_none(row.table.id == row.id)
    if found is None:
        return
    row = replace(row_of(found), storage_key=row.storage_key)
    state = state_of(row)
    if state is State.WHOLE:
        return
    others = [
        other
        for other in runtime.storage().stores
        if other != row.storage_type and _state(other, row.storage_key, row.size) is State.WHOLE
    ]
    kind = KINDS[state]
    detail = f"{_what(found)}, {row.storage_type}"
    if others and state is State.MISSING:
        kind, detail = Kind.BLOB_MISPLACED, f"{row.storage_type}, found in {others[0]}"
    place = next(iter(_places(row)), None)
    difference = Difference(
        kind,
        account,
        place.folder.name if place else None,
        place.uid if place else None,
        row.storage_key,
        detail,
    )
    if others:
        difference.mend = partial(_choose_store, row.storage_key, row.sha256, row.size)
    elif isinstance(found, EmailRawMessage):
        difference.mend = partial(_fetch_again, row, mailbox)
    elif isinstance(found, EmailExportPart):
        difference.mend = partial(_give_up_export, found)
    else:
        difference.mend = partial(_extract_again, row)
    yield difference, others


def _what(found: Named) -> str:
    if isinstance(found, EmailRawMessage):
        return "raw message"
    if isinstance(found, EmailExportPart):
        return f"part {found.number} of an export"
    return f"attachment {found.safe_name!r}"


def _places(row: Row) -> list[EmailLocation]:
    """Where the message lies at the server, as far as its UIDs are still valid."""
    place, folder = EmailLocation, EmailFolder
    with database.connected():
        return list(
            place.select(place, folder)
            .join(folder)
            .where(
                place.message == row.message_id,
                place.uidvalidity == folder.uidvalidity,
                place.generation == folder.generation,
                place.expunged_at.is_null(),
            )
            .order_by(place.id)
        )


def _choose_store(key: str, sha256: str, size: int, account: EmailAccount | None) -> Repair:
    """Let all rows name one store that has the blob whole, and remove other copies."""
    assert account is not None
    stores = runtime.storage().stores  # the primary one first
    whole = [one for one in stores if _state(one, key, size) is State.WHOLE]
    if not whole:
        return Repair(Outcome.LEFT, "no store has it whole any more")
    with database.transaction():
        for table in TABLES:
            table.update(storage_type=whole[0]).where(
                table.account == account.id,
                table.sha256 == sha256,
                table.storage_type != whole[0],
            ).execute()
    for other, store in stores.items():
        if other != whole[0]:
            store.delete([key])
    return Repair(Outcome.REPAIRED, f"it is in {whole[0]} only now")


def _fetch_again(row: Row, mailbox: Mailbox | None, _: EmailAccount | None) -> Repair:
    """Get a raw message from any of its places; only the very same bytes will do."""
    if mailbox is None:
        return Repair(Outcome.LEFT, "the server was not asked")
    if refusal := mailbox.refusal():
        return Repair(Outcome.LEFT, refusal)
    changed = False
    try:
        for place in _places(row):
            body = mailbox.fetch(place.folder, place.uid, place.server_size)
            if body is None:
                continue
            try:
                if body.sha256 == row.sha256:
                    _put(row, body.source)
                    return Repair(Outcome.REPAIRED, "fetched again from the server")
            finally:
                discard(body)
            changed = True
    except (ImapError, DecryptionError) as error:
        if not (isinstance(error, ImapError) and error.fault is Fault.REFUSED):
            mailbox.close()
        return Repair(Outcome.LEFT, str(error))
    what = "sends other bytes now" if changed else "has the message no more"
    return Repair(Outcome.LOST, f"the server {what}")


def _give_up_export(part: EmailExportPart, _: EmailAccount | None) -> Repair:
    """An export is made of what is stored: it is not mended, but made anew by who wants it."""
    table, parts = EmailExport, EmailExportPart
    with database.transaction():
        moment = database.now()
        table.update(
            state=ExportState.FAILED,
            error="a part of it was lost from the store",
            lease_token=table.lease_token + 1,
            lease_until=None,
            finished_at=moment,
            expires_at=moment + timedelta(hours=settings().export_hours),
        ).where(table.id == part.export_id).execute()
        parts.delete().where(parts.id == part.id).execute()
    runtime.storage().stores[StorageType(part.storage_type)].delete([part.storage_key])
    return Repair(Outcome.REPAIRED, "its export counts as failed: make another one")


def _extract_again(row: Row, account: EmailAccount | None) -> Repair:
    """Get an attachment from its message again; only the very same bytes will do."""
    with database.connected():
        message = EmailRawMessage.get_or_none(EmailRawMessage.id == row.message_id)
    if message is None:
        return Repair(Outcome.LEFT, "the message was deleted meanwhile")
    try:
        with _raw(row_of(message)) as raw:
            for part in parsing.parse(raw).attachments:
                if part.sha256 == row.sha256:
                    with spool.new_directory(row.account_uuid) as directory:
                        path = Path(directory) / "part"
                        with path.open("wb") as file:
                            file.writelines(part.chunks())
                        _put(row, path)
                    return Repair(Outcome.REPAIRED, "taken from its message again")
    except (BlobMissing, BlobCorrupt):
        return Repair(Outcome.LOST, "the raw message it came with is not whole either")
    except parsing.Unparsable as error:
        return Repair(Outcome.LOST, str(error))
    # Another version took it out: then its row is written anew too.
    runtime.storage().stores[row.storage_type].delete([row.storage_key])
    return process_again(row.message_id, account)


@contextmanager
def _raw(row: Row) -> Iterator[bytes | Path]:
    """A raw message, in memory or in a file. Raises BlobMissing and BlobCorrupt."""
    if state_of(row) is not State.WHOLE:
        raise BlobCorrupt(row.storage_key)
    with runtime.storage().stores[row.storage_type].open(row.storage_key) as stream:
        if row.size <= IN_MEMORY:
            yield stream.read()
            return
        with spool.new_directory(row.account_uuid) as directory:
            path = Path(directory) / "raw"
            with path.open("wb") as file:
                shutil.copyfileobj(stream, file, CHUNK)
            yield path


def _put(row: Row, source: bytes | Path) -> None:
    """Put bytes that are known to be right in the place of what is there."""
    store = runtime.storage().stores[row.storage_type]
    store.put([NewBlob(row.storage_key, row.size, row.sha256, source)])


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
        mend=partial(_choose_store, found.key, sha256, size),
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
