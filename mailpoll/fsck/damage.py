"""A row's blob: read back to its end, and what is done where it is not whole."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path

from .. import database, parsing, runtime, spool
from ..blobs import BlobCorrupt, BlobMissing, BlobStore, NewBlob, StorageType, StoreUnavailable
from ..crypto import DecryptionError
from ..imap import Fault, ImapError
from ..models import (
    EmailAccount,
    EmailAttachment,
    EmailExport,
    EmailExportPart,
    EmailFolder,
    EmailLocation,
    EmailRawMessage,
    ExportState,
)
from ..settings import settings
from .findings import Difference, Kind, Outcome, Repair
from .rows import process_again
from .server import Mailbox, discard

#: Bytes read at once.
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
        difference.mend = partial(choose_store, row.storage_key, row.sha256, row.size)
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


def choose_store(key: str, sha256: str, size: int, account: EmailAccount | None) -> Repair:
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
