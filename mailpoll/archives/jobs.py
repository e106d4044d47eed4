"""Exports that are too large for one request: made part by part, kept for a while, downloaded.

Each part is a blob under the account's own prefix, so that it goes with the account, is sealed as
its mail is, and is checked as every blob is. A step makes one part: blob durable, then one
transaction of its row and of how far the export is. Whoever comes next goes on from there.
"""

import uuid as uuids
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import structlog

from .. import accounts, audit, database, faults, runtime
from ..blobs import NewBlob, StorageType, blob_key
from ..models import (
    AccountState,
    EmailAccount,
    EmailExport,
    EmailExportPart,
    ExportState,
)
from ..settings import settings
from . import selection
from .contents import CHUNK, Collector
from .formats import FORMATS, Format
from .selection import Entry, Position, Selection
from .writing import Written, run_of

log = structlog.get_logger()

#: Seconds that a step may take before another worker takes over.
LEASE = 900
#: After so many bytes, or messages, a part ends.
PART_BYTES, PART_MESSAGES = 64_000_000, 2_000
#: Steps that fail before an export counts as failed, without one that did not.
ATTEMPTS = 20
#: How a blob begins: with a name that no other has, and that is no part of the archive. So two rows
#: never name the same blob, and one can be removed with its row.
PREFIX = 64
#: Exports that are removed together.
PAGE = 100


class ExportRefused(Exception):
    """There are as many exports of the account as there may be."""


class Lost(Exception):
    """Another run has the export, or its account is being deleted: nothing was written."""


def create(account: EmailAccount, format_name: str, chosen: Selection) -> EmailExport:
    """Begin an export of what there is now.

    Raises:
      AccountGone: the account is being deleted.
      ExportRefused: too many are there already.
    """
    last_id = selection.newest_id(account)
    chosen = replace(chosen, last_id=last_id)
    expected = selection.number(account, chosen)
    moment, table = database.now(), EmailExport
    with database.transaction():
        if not EmailAccount.lock(account.id):
            raise accounts.AccountGone(account.uuid)
        if table.select().where(table.account == account.id).count() >= settings().export_limit:
            raise ExportRefused(
                f"the account has {settings().export_limit} exports (MAILPOLL_EXPORT_LIMIT): "
                "delete one, or wait until one expires"
            )
        export = table.create(
            uuid=str(uuids.uuid4()),
            account=account,
            format=format_name,
            selection=chosen.as_json(),
            expected=expected,
            created_at=moment,
            updated_at=moment,
        )
        audit.record("export.create", "export", export.uuid)
    return export  # type: ignore[no-any-return]


def find(uuid: str) -> EmailExport | None:
    """The export with its account, unless that is being deleted."""
    table = EmailExport
    with database.connected():
        return (  # type: ignore[no-any-return]
            table.select(table, EmailAccount)
            .join(EmailAccount)
            .where(table.uuid == uuid, EmailAccount.state != AccountState.DELETING)
            .get_or_none()
        )


def latest(limit: int, before: int | None = None) -> list[EmailExport]:
    """Exports, newest first.

    Parameters:
      before: only those whose row has a lower id.
    """
    table = EmailExport
    rows = table.select(table, EmailAccount).join(EmailAccount)
    rows = rows.where(EmailAccount.state != AccountState.DELETING)
    if before is not None:
        rows = rows.where(table.id < before)
    with database.connected():
        return list(rows.order_by(table.id.desc()).limit(limit))


def step(export_id: int) -> bool:
    """Make the next part of an export; whether there is more to do.

    Raises:
      StoreUnavailable, DataKeyError: to be tried again; counts as an attempt.
    """
    export = _take(export_id)
    if export is None:
        return False
    try:
        if export.complete:
            _finish(export)
            return False
        _make_part(export)
        return True
    except Lost:
        accounts.empty_if_deleted(export.account_id, export.account.uuid)
        return False
    except Exception as error:
        if accounts.empty_if_deleted(export.account_id, export.account.uuid):
            return False
        _give_back(export, type(error).__name__)
        raise


def running(limit: int) -> list[int]:
    """Exports that nobody works on, and should."""
    table = EmailExport
    with database.connected():
        rows = table.select(table.id).where(
            table.state == ExportState.RUNNING,
            table.lease_until.is_null() | (table.lease_until <= database.now()),
        )
        return [export_id for (export_id,) in rows.limit(limit).tuples()]


def expire() -> int:
    """Remove the exports that are over; how many."""
    table, moment = EmailExport, database.now()
    with database.connected():
        rows = list(
            table.select(table, EmailAccount)
            .join(EmailAccount)
            .where(table.expires_at <= moment, EmailAccount.state != AccountState.DELETING)
            .limit(PAGE)
        )
    for row in rows:
        remove(row)
    return len(rows)


def remove(export: EmailExport) -> None:
    """Remove an export with its parts; nobody can download it from the begin of this on.

    Raises:
      StoreUnavailable: its blobs are still there, and so are their rows.
    """
    table, part = EmailExport, EmailExportPart
    with database.transaction():
        table.update(
            state=ExportState.EXPIRED,
            lease_token=table.lease_token + 1,
            lease_until=None,
            expires_at=database.now(),
        ).where(table.id == export.id).execute()
        rows = list(part.select().where(part.export == export.id))
    for kind in {row.storage_type for row in rows}:
        keys = [row.storage_key for row in rows if row.storage_type == kind]
        runtime.storage().delete(keys, StorageType(kind))
    faults.point("parts-removed")
    with database.transaction():
        part.delete().where(part.export == export.id).execute()
        table.delete().where(table.id == export.id).execute()


def parts(export: EmailExport, *, directory: bool = False) -> list[EmailExportPart]:
    """The rows of an archive's pieces, in order."""
    table = EmailExportPart
    with database.connected():
        rows = table.select().where(table.export == export.id, table.directory == directory)
        return list(rows.order_by(table.number))


def content(rows: list[EmailExportPart]) -> Iterator[bytes]:
    """The bytes of parts, one behind the other.

    Raises:
      BlobMissing, BlobCorrupt, StoreUnavailable, DataKeyError: at any piece.
    """
    for row in rows:
        kind = StorageType(row.storage_type)
        with runtime.storage().open(row.storage_key, kind) as stream:
            stream.read(PREFIX)
            while piece := stream.read(CHUNK):
                yield piece


def fail(export_id: int, reason: str) -> None:
    """An export that cannot be made, or not be had any more: says why, until it expires."""
    moment, table = database.now(), EmailExport
    with database.transaction():
        table.update(
            state=ExportState.FAILED,
            error=reason,
            updated_at=moment,
            finished_at=moment,
            expires_at=moment + timedelta(hours=settings().export_hours),
            lease_token=table.lease_token + 1,
            lease_until=None,
        ).where(
            table.id == export_id, table.state.in_((ExportState.RUNNING, ExportState.DONE))
        ).execute()


# Steps


def _take(export_id: int) -> EmailExport | None:
    table, moment = EmailExport, database.now()
    with database.transaction():
        taken = (
            table.update(
                lease_token=table.lease_token + 1,
                lease_until=moment + timedelta(seconds=LEASE),
                attempts=table.attempts + 1,
            )
            .where(
                table.id == export_id,
                table.state == ExportState.RUNNING,
                table.lease_until.is_null() | (table.lease_until <= moment),
            )
            .execute()
        )
        if not taken:
            return None
        export = (
            table.select(table, EmailAccount).join(EmailAccount).where(table.id == export_id).get()
        )
    if export.attempts > ATTEMPTS:
        fail(export.id, f"given up after {ATTEMPTS} attempts: {export.error or 'none ended'}")
        return None
    return export  # type: ignore[no-any-return]


def _give_back(export: EmailExport, error: str) -> None:
    table = EmailExport
    with database.transaction():
        table.update(lease_until=None, error=error).where(
            table.id == export.id, table.lease_token == export.lease_token
        ).execute()


class _Part:
    """The bytes of a part as they come, with its own name before them."""

    def __init__(self, export: EmailExport, number: int, *, directory: bool = False) -> None:
        name = f"mailpoll export {export.uuid} {'d' if directory else 'p'}{number:08}\n"
        self.export, self.number, self.directory = export, number, directory
        self._collector = Collector(export.account.uuid, 2**62)
        self._collector.write(name.encode().ljust(PREFIX, b"\n"))

    @property
    def size(self) -> int:
        """Of the archive's bytes in it."""
        return self._collector.size - PREFIX

    def write(self, piece: bytes) -> None:
        self._collector.write(piece)

    def store(self) -> dict[str, Any] | None:
        """Put it into the store; its row's columns, or ``None`` when there is nothing in it."""
        if not self.size:
            self._collector.discard()
            return None
        uuid, digest = self.export.account.uuid, self._collector.sha256()
        source, size = self._collector.finish(), self._collector.size
        try:
            key = blob_key(uuid, digest)
            kind = runtime.storage().put([NewBlob(key, size, digest, source)])
        finally:
            self.discard()
        return {
            "account": self.export.account_id,
            "export": self.export.id,
            "number": self.number,
            "directory": self.directory,
            "size": size,
            "sha256": digest,
            "storage_type": kind,
            "storage_key": key,
        }

    def discard(self) -> None:
        self._collector.discard()


def _make_part(export: EmailExport) -> None:
    chosen = Selection.of_json(export.selection)
    entries = selection.entries(export.account, chosen, export.position)
    archive, written = FORMATS[export.format](export.bytes), Written()
    number = export.parts + 1
    part, records = _Part(export, number), _Part(export, number, directory=True)
    taken = _Taken(entries, part)
    try:
        uuid = export.account.uuid
        for piece in run_of(archive, uuid, taken, number, written, strict=False):
            part.write(piece)
        records.write(archive.take_records())
        rows = [row for row in (part.store(), records.store()) if row]
    finally:
        part.discard()
        records.discard()
    faults.point("part-durable")
    _commit(
        export,
        rows,
        position=taken.position,
        complete=taken.exhausted,
        messages=export.messages + written.messages,
        unreadable=export.unreadable + written.unreadable,
        bytes=export.bytes + part.size,
        parts=number,
    )


class _Taken:
    """The messages of a part: as many as have room in it, and where the next one goes on."""

    def __init__(self, entries: Iterator[Entry], part: _Part) -> None:
        self.position: Position | None = part.export.position
        self.exhausted = False
        self._entries = entries
        self._part = part

    def __iter__(self) -> Iterator[Entry]:
        for _ in range(PART_MESSAGES):
            if self._part.size >= PART_BYTES:
                return
            entry = next(self._entries, None)
            if entry is None:
                self.exhausted = True
                return
            yield entry
            self.position = entry.position


def _finish(export: EmailExport) -> None:
    """Write the archive's end, and give it out."""
    archive: Format = FORMATS[export.format](export.bytes)
    number = export.parts + 1
    part = _Part(export, number)
    try:
        records = content(parts(export, directory=True))
        members = export.messages + export.parts
        for piece in archive.end(records, members):
            part.write(piece)
        size = part.size
        rows = [row for row in (part.store(),) if row]
    finally:
        part.discard()
    moment = database.now()
    _commit(
        export,
        rows,
        bytes=export.bytes + size,
        parts=number,
        state=ExportState.DONE,
        position=None,
        error=None,
        finished_at=moment,
        expires_at=moment + timedelta(hours=settings().export_hours),
    )
    log.info("export done", export=export.uuid, messages=export.messages, bytes=export.bytes)


def _commit(export: EmailExport, rows: list[dict[str, Any]], **columns: Any) -> None:
    """Write the rows of parts, and how far the export is; of one that was removed, nothing stays.

    Raises:
      Lost: another run has it, or it was removed, or the account is being deleted.
    """
    try:
        _write(export, rows, columns)
    except Lost:
        with database.connected():
            there = EmailExport.select().where(EmailExport.id == export.id).exists()
        if not there:
            for row in rows:
                runtime.storage().delete([row["storage_key"]], row["storage_type"])
        raise


def _write(export: EmailExport, rows: list[dict[str, Any]], columns: dict[str, Any]) -> None:
    table = EmailExport
    moment = database.now()
    done = {"updated_at": moment, "lease_until": None, "attempts": 0, "error": None, **columns}
    with database.transaction():
        if not EmailAccount.lock(export.account_id):
            raise Lost(export.uuid)
        mine = (table.id == export.id) & (table.lease_token == export.lease_token)
        if not table.update(**done).where(mine, table.state == ExportState.RUNNING).execute():
            raise Lost(export.uuid)
        for row in rows:
            EmailExportPart.create(**row)
        faults.point("before-commit")
