"""What became of each UID, in the database; every write is checked against the account's lease.

The order is sacred: blobs durable, then one transaction of rows and cursor, then the queue. A
process may die between any two lines here; the next poll goes on from the last commit.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from peewee import fn

from .. import database
from ..blobs import BlobMissing, NewBlob, Storage, StorageType, StoreUnavailable, blob_key
from ..imap import Folder
from ..models import (
    EmailAccount,
    EmailAccountDay,
    EmailFetchFailure,
    EmailFolder,
    EmailLeftOut,
    EmailLocation,
    EmailRawMessage,
    FetchVerdict,
)
from ..settings import Settings
from .download import Batch, Body, Copy, Failure

log = structlog.get_logger()

#: Seconds that a poll's lease holds after its last commit.
LEASE = 120
#: A UID that cannot be fetched is tried in this many polls before it counts as unreadable.
FETCH_ATTEMPTS = 3
#: Seconds until an unfetched UID is tried again, doubled each time up to a day.
FETCH_PAUSE = 60
FETCH_PAUSE_MAX = 86_400
#: UIDs in one statement.
CHUNK = 500

INSERT_MESSAGE = database.Statement("""
    INSERT INTO email_raw_messages (account_id, sha256, size, storage_type, storage_key,
        internal_date, stored_at, imported, next_attempt_at, email_id, status)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'stored')
""")
INSERT_LOCATION = database.Statement("""
    INSERT INTO email_locations (folder_id, uidvalidity, generation, uid, server_size,
        internal_date, seen_at, message_id, message_date)
    SELECT ?, ?, ?, ?, ?, ?, ?, id, internal_date FROM email_raw_messages WHERE id = ?
    ON CONFLICT DO NOTHING
""")
INSERT_LEFT_OUT = database.Statement("""
    INSERT INTO email_left_out (folder_id, uidvalidity, generation, first_uid, last_uid)
    VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
""")

#: Which contents an account has already.
KNOWN = database.Statement(
    "SELECT sha256, id FROM email_raw_messages WHERE account_id = ? AND sha256 IN []"
)
OF_WINDOW = "folder_id = ? AND uidvalidity = ? AND generation = ?"
#: UIDs of a range of which something is written down.
VERDICTS = database.Statement(f"""
    SELECT uid FROM email_locations WHERE {OF_WINDOW} AND uid BETWEEN ? AND ?
    UNION ALL SELECT uid FROM email_fetch_failures WHERE {OF_WINDOW} AND uid BETWEEN ? AND ?
""")  # noqa: S608
#: Runs of UIDs left out that touch a range.
RUNS = database.Statement(f"""
    SELECT first_uid, last_uid FROM email_left_out
    WHERE {OF_WINDOW} AND first_uid <= ? AND last_uid >= ?
""")  # noqa: S608
DUE_FAILURES = database.Statement("""
    SELECT * FROM email_fetch_failures
    WHERE folder_id IN [] AND verdict IN ('waiting', 'unreadable') AND next_attempt_at <= ?
""")
FORGET_FAILURES = database.Statement(
    f"DELETE FROM email_fetch_failures WHERE {OF_WINDOW} AND uid IN []"  # noqa: S608
)

#: The counters of a folder of which nothing is stored.
NOTHING = {"messages": 0, "bytes": 0, "expunged": 0}

#: Tells the queue of messages whose rows are committed: (message ids, part of the import).
Announce = Callable[[Sequence[int], bool], None]


def wire(folder: EmailFolder) -> bytes:
    """The folder's name as the server spells it."""
    return str(folder.wire_name).encode("latin-1")


class Ledger:
    """The rows of one account's folders.

    Parameters:
      account: leased by the caller. Every method that writes may raise ``LeaseLost``.
    """

    def __init__(
        self, account: EmailAccount, storage: Storage, settings: Settings, announce: Announce
    ) -> None:
        self.account = account
        self._storage = storage
        self._settings = settings
        self._announce = announce
        self._renewed = time.monotonic()

    def keep_lease(self) -> None:
        """Renew the lease while long work has nothing to commit."""
        if time.monotonic() - self._renewed > LEASE / 4:
            with database.transaction(durable=False):
                self.account.fence(LEASE)
            self._renewed = time.monotonic()

    # Folders

    def folders(self, listed: Sequence[Folder]) -> dict[bytes, EmailFolder]:
        """The rows of the listed folders; new ones are made and vanished ones marked."""
        with database.connected():
            rows = {wire(row): row for row in EmailFolder.of_account(self.account.id)}
        new = [folder for folder in listed if folder.wire_name not in rows]
        present = {folder.wire_name for folder in listed}
        changed = [row for name, row in rows.items() if (name in present) != (row.gone_at is None)]
        if new or changed:
            with database.transaction():
                self.account.fence(LEASE)
                self._create(new)
                for row in changed:
                    gone_at = None if wire(row) in present else database.now()
                    _update(row, {"gone_at": gone_at})
                if new:
                    found = EmailFolder.of_account(self.account.id)
                    rows |= {wire(row): row for row in found if wire(row) not in rows}
        return rows

    def _create(self, new: Sequence[Folder]) -> None:
        rows = [
            {
                "account": self.account.id,
                "wire_name": folder.wire_name.decode("latin-1"),
                "name": folder.name,
                "special_use": folder.special_use,
            }
            for folder in new
        ]
        for start in range(0, len(rows), CHUNK):
            EmailFolder.insert_many(rows[start : start + CHUNK]).execute()

    def save(self, folder: EmailFolder, **values: object) -> None:
        """Write what changed of a folder, under the fence.

        Not flushed at once: what a power cut takes back is simply asked of the server again.
        """
        if any(getattr(folder, name) != value for name, value in values.items()):
            with database.transaction(durable=False):
                self.account.fence(LEASE)
                _update(folder, values)

    def restart(
        self, folder: EmailFolder, uidvalidity: int, generation: int, uidnext: int, empty: bool
    ) -> None:
        """Begin a folder's window anew: nothing is known of these UIDs.

        What is stored stays, and the identity by content makes a second download harmless. A
        UIDVALIDITY that comes back finds the places that were written down under it.
        """
        again = folder.high is not None
        counters = self._forget(folder, uidvalidity, generation) if again else NOTHING
        moment = database.now()
        recent = folder.restarted_at and moment - folder.restarted_at < timedelta(days=1)
        self.save(
            folder,
            uidvalidity=uidvalidity,
            generation=generation,
            high=uidnext - 1,
            low=1 if empty else uidnext,
            uidnext=None,
            **counters,
            restarts=(folder.restarts if recent else 0) + 1 if again else 0,
            restarted_at=moment if again else None,
            proof=None,
            complete=False,
            reconciled_at=None,
        )

    def _forget(self, folder: EmailFolder, uidvalidity: int, generation: int) -> dict[str, int]:
        """Drop reasons and runs of UIDs that name other mail now.

        Returns:
          the counters of what is known already under the numbers that are valid from here on.
        """
        with database.transaction():
            self.account.fence(LEASE)
            for table in (EmailFetchFailure, EmailLeftOut):
                table.delete().where(table.folder == folder.id).execute()
            return _counters(folder, uidvalidity, generation)

    # Verdicts

    def verdicts(self, folder: EmailFolder, first: int, last: int) -> set[int]:
        """The UIDs from ``first`` to ``last`` of which something is written down already."""
        with database.connected():
            span = (*_generation(folder), first, last)
            known = {uid for (uid,) in VERDICTS.run(*span, *span).fetchall()}
            for low, high in _runs(folder, first, last):
                known.update(range(max(low, first), min(high, last) + 1))
        return known

    def newest_place(self, folder: EmailFolder) -> EmailLocation | None:
        """The place with the highest UID whose date the server told, unless it has left."""
        table = EmailLocation
        with database.connected():
            row = table.select().where(_of(table, folder)).order_by(table.uid.desc()).first()
        return row if row and row.internal_date and not row.expunged_at else None

    def due_failures(self, folders: Sequence[EmailFolder]) -> list[EmailFetchFailure]:
        """What could not be fetched before and is to be tried again now."""
        with database.connected():
            moment = database.timestamp(database.now())
            found = DUE_FAILURES.models(EmailFetchFailure, [one.id for one in folders], moment)
        return sorted(found, key=lambda failure: (failure.folder_id, failure.uid))

    # Commit

    def commit(
        self, folder: EmailFolder, batch: Batch, edge: dict[str, int], *, imported: bool
    ) -> int:
        """Blobs, then rows and cursor in one transaction, then the queue.

        Parameters:
          edge: the side of the folder's window that moves, and where to; empty when none does.

        Returns:
          how many messages were new.
        """
        try:
            storage_type = self._put_blobs(batch.bodies)
            with database.transaction():
                self.account.fence(LEASE)
                ids, new = self._insert_messages(batch.bodies, storage_type, imported)
                self._insert_locations(folder, batch.bodies, ids)
                self._insert_copies(folder, batch.copies)
                self._record_failures(folder, batch.failures)
                self._forget_failures(folder, batch)
                _leave_out(folder, batch.left_out)
                _update(folder, edge)
        finally:
            for body in batch.bodies:
                if isinstance(body.source, Path):
                    body.source.unlink(missing_ok=True)
        self._renewed = time.monotonic()
        if new:
            self._announce(new, imported)
        return len(new)

    def _put_blobs(self, bodies: Sequence[Body]) -> str:
        known = self._known(bodies)
        fresh = {body.sha256: body for body in bodies if body.sha256 not in known}
        if not fresh:
            return str(self._storage.primary_type)
        blobs = [
            NewBlob(blob_key(self.account.uuid, digest), body.size, digest, body.source)
            for digest, body in fresh.items()
        ]
        return str(self._storage.put(blobs))

    def _known(self, bodies: Sequence[Body]) -> dict[str, int]:
        """Which of these contents the account has already: SHA-256 to message id."""
        digests = list({body.sha256 for body in bodies})
        if not digests:
            return {}
        with database.connected():
            return dict(KNOWN.run(self.account.id, digests).fetchall())

    def _insert_messages(
        self, bodies: Sequence[Body], storage_type: str, imported: bool
    ) -> tuple[dict[str, int], list[int]]:
        """Insert what is new and count it by day; tells the ids of all, and of the new ones.

        The fence taken before holds the account's row, so nobody else can insert meanwhile.
        """
        known = self._known(bodies)
        fresh = {body.sha256: body for body in bodies if body.sha256 not in known}
        if not fresh:
            return known, []
        moment = database.now()
        stored_at = database.timestamp(moment)
        sweep_at = database.timestamp(moment + timedelta(seconds=self._settings.sweep_after))
        INSERT_MESSAGE.run_many(
            [
                (
                    self.account.id,
                    digest,
                    body.size,
                    storage_type,
                    blob_key(self.account.uuid, digest),
                    database.timestamp(body.internal_date),
                    stored_at,
                    imported,
                    sweep_at,
                    body.email_id,
                )
                for digest, body in fresh.items()
            ]
        )
        days: dict[str, list[int]] = {}
        for body in fresh.values():
            days.setdefault(body.internal_date.date().isoformat(), []).append(body.size)
        for day, sizes in sorted(days.items()):
            EmailAccountDay.add(self.account.id, day, messages=len(sizes), bytes=sum(sizes))
        new = self._known(list(fresh.values()))
        return known | new, sorted(new.values())

    def _insert_locations(
        self, folder: EmailFolder, bodies: Sequence[Body], ids: dict[str, int]
    ) -> None:
        if not bodies:
            return
        seen_at = database.timestamp(database.now())
        rows = [
            (
                *_generation(folder),
                body.uid,
                body.told_size,
                body.told_date and database.timestamp(body.told_date),
                seen_at,
                ids[body.sha256],
            )
            for body in bodies
        ]
        self._insert_places(folder, rows, sum(body.size for body in bodies))

    def _insert_places(self, folder: EmailFolder, rows: list[Any], size: int) -> None:
        if INSERT_LOCATION.run_many(rows) == len(rows):
            _update(folder, {"messages": folder.messages + len(rows), "bytes": folder.bytes + size})
        else:  # some were there already
            _update(folder, _counters(folder, folder.uidvalidity, folder.generation))

    def stored_as(self, email_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Contents that are stored by the server's name for them: to (message id, size).

        A name that two contents have is none.
        """
        table = EmailRawMessage
        found: dict[str, tuple[int, int]] = {}
        with database.connected():
            for start in range(0, len(email_ids), CHUNK):
                query = (
                    table.select(table.email_id, fn.MIN(table.id), fn.MIN(table.size))
                    .where(
                        table.account == self.account,
                        table.email_id.in_(email_ids[start : start + CHUNK]),
                    )
                    .group_by(table.email_id)
                    .having(fn.COUNT(table.id) == 1)
                )
                found |= {name: (number, size) for name, number, size in query.tuples()}
        return found

    def of_sizes(self, sizes: Sequence[int]) -> dict[int, list[EmailRawMessage]]:
        """Stored messages by their size in bytes: id, size and where they lie."""
        table = EmailRawMessage
        found: dict[int, list[EmailRawMessage]] = {}
        with database.connected():
            for start in range(0, len(sizes), CHUNK):
                query = table.select(
                    table.id, table.size, table.storage_key, table.storage_type
                ).where(table.account == self.account, table.size.in_(sizes[start : start + CHUNK]))
                for row in query:
                    found.setdefault(row.size, []).append(row)
        return found

    def begins_with(self, message: EmailRawMessage, start: bytes) -> bool:
        """Whether a stored message's bytes begin like this; not if they cannot be read now."""
        try:
            kind = StorageType(message.storage_type)
            with self._storage.open(message.storage_key, kind) as stream:
                return stream.read(len(start)) == start
        except (BlobMissing, StoreUnavailable):
            return False

    def _insert_copies(self, folder: EmailFolder, copies: Sequence[Copy]) -> None:
        if not copies:
            return
        seen_at = database.timestamp(database.now())
        rows = [
            (
                *_generation(folder),
                copy.entry.uid,
                copy.entry.size,
                copy.entry.internal_date and database.timestamp(copy.entry.internal_date),
                seen_at,
                copy.message_id,
            )
            for copy in copies
        ]
        self._insert_places(folder, rows, sum(copy.size for copy in copies))

    def _record_failures(self, folder: EmailFolder, failures: Sequence[Failure]) -> None:
        table = EmailFetchFailure
        moment = database.now()
        for failure in failures:
            row = table.get_or_none(_of(table, folder), table.uid == failure.uid) or table(
                folder=folder,
                uidvalidity=folder.uidvalidity,
                generation=folder.generation,
                uid=failure.uid,
                attempts=0,
                seen_at=moment,
            )
            row.attempts += 1
            row.verdict, row.reason, row.size = failure.verdict, failure.reason, failure.size
            row.headers = failure.headers.replace(b"\0", b"?").decode("latin-1") or None
            row.next_attempt_at = _next_attempt(moment, row.attempts)
            if row.verdict == FetchVerdict.WAITING and row.attempts >= FETCH_ATTEMPTS:
                row.verdict = FetchVerdict.UNREADABLE
            row.save()
            log.warning(
                "message not fetched",
                account=self.account.uuid,
                folder=folder.id,
                uid=failure.uid,
                verdict=str(row.verdict),
                reason=failure.reason,
            )

    def _forget_failures(self, folder: EmailFolder, batch: Batch) -> None:
        uids = [body.uid for body in batch.bodies] + [copy.entry.uid or 0 for copy in batch.copies]
        for chunk in _chunks(uids):
            FORGET_FAILURES.run(*_generation(folder), list(chunk))

    # What the server's whole list says

    def settle(
        self,
        folder: EmailFolder,
        *,
        absent: Sequence[int],
        returned: Sequence[int],
        left_out: Sequence[int] | None,
    ) -> None:
        """Write down which of the known UIDs have left the server, and which have come back.

        Parameters:
          left_out: those of the UIDs left out that are still there; ``None`` changes none.
        """
        moment = database.now()
        with database.transaction():
            self.account.fence(LEASE)
            for chunk in _chunks(absent):
                self._mark(folder, chunk, moment, FetchVerdict.GONE)
            for chunk in _chunks(returned):
                self._mark(folder, chunk, None, FetchVerdict.WAITING)
            if left_out is not None:
                EmailLeftOut.delete().where(_of(EmailLeftOut, folder)).execute()
                _leave_out(folder, left_out)

    def _mark(
        self,
        folder: EmailFolder,
        uids: Sequence[int],
        expunged_at: datetime | None,
        verdict: FetchVerdict,
    ) -> None:
        place, failure = EmailLocation, EmailFetchFailure
        changed = (
            place.update(expunged_at=expunged_at)
            .where(
                _of(place, folder),
                place.uid.in_(uids),
                place.expunged_at.is_null(expunged_at is not None),
            )
            .execute()
        )
        expunged = folder.expunged + (changed if expunged_at else -changed)
        _update(folder, {"expunged": expunged})
        failure.update(verdict=verdict, next_attempt_at=database.now()).where(
            _of(failure, folder), failure.uid.in_(uids)
        ).execute()


def known_uids(folder: EmailFolder, first: int, last: int) -> tuple[set[int], set[int], set[int]]:
    """UIDs of a folder by what is written down of them.

    Returns:
      (those that should be at the server, those that have left it, those left out).
    """
    place, failure = EmailLocation, EmailFetchFailure
    present: set[int] = set()
    gone: set[int] = set()
    left_out: set[int] = set()
    with database.connected():
        rows = place.select(place.uid, place.expunged_at).where(
            _of(place, folder), place.uid.between(first, last)
        )
        for uid, expunged_at in rows.tuples():
            (gone if expunged_at else present).add(uid)
        verdicts = failure.select(failure.uid, failure.verdict).where(
            _of(failure, folder), failure.uid.between(first, last)
        )
        for uid, verdict in verdicts.tuples():
            (gone if verdict == FetchVerdict.GONE else present).add(uid)
        for low, high in _runs(folder, first, last):
            left_out.update(range(max(low, first), min(high, last) + 1))
    return present, gone, left_out


def counts(folder: EmailFolder) -> dict[str, int]:
    """UIDs of the folder without a message by verdict, and those left out."""
    table, run = EmailFetchFailure, EmailLeftOut
    with database.connected():
        query = (
            table.select(table.verdict, fn.COUNT(table.id))
            .where(_of(table, folder))
            .group_by(table.verdict)
        )
        found = {str(verdict): 0 for verdict in FetchVerdict} | dict(query.tuples())
        length = fn.SUM(run.last_uid - run.first_uid + 1)
        found["left_out"] = int(run.select(length).where(_of(run, folder)).scalar() or 0)
    return found


def _generation(folder: EmailFolder) -> tuple[int, int, int]:
    return folder.id, folder.uidvalidity, folder.generation


def _counters(folder: EmailFolder, uidvalidity: int, generation: int) -> dict[str, int]:
    """A folder's counters, counted from its places."""
    place = EmailLocation
    sums = (
        place.select(
            fn.COUNT(place.id),
            fn.COALESCE(fn.SUM(EmailRawMessage.size), 0),
            fn.COUNT(place.expunged_at),
        )
        .join(EmailRawMessage)
        .where(
            place.folder == folder.id,
            place.uidvalidity == uidvalidity,
            place.generation == generation,
        )
    )
    return dict(zip(NOTHING, map(int, sums.tuples().get()), strict=True))


def _of(table: Any, folder: EmailFolder) -> Any:
    """The condition of a row that belongs to the folder's window."""
    return (
        (table.folder == folder.id)
        & (table.uidvalidity == folder.uidvalidity)
        & (table.generation == folder.generation)
    )


def _runs(folder: EmailFolder, first: int, last: int) -> list[tuple[int, int]]:
    """The runs of UIDs left out that touch a range."""
    return RUNS.run(*_generation(folder), last, first).fetchall()


def _leave_out(folder: EmailFolder, uids: Sequence[int]) -> None:
    runs: list[list[int]] = []
    for uid in sorted(uids):
        if runs and uid == runs[-1][1] + 1:
            runs[-1][1] = uid
        else:
            runs.append([uid, uid])
    if runs:
        INSERT_LEFT_OUT.run_many([(*_generation(folder), low, high) for low, high in runs])


def _update(folder: EmailFolder, values: dict[str, Any]) -> None:
    """Write columns of a folder's row, inside the caller's transaction."""
    if values:
        database.update(EmailFolder, values, "id = ?", folder.id)
        for name, value in values.items():
            setattr(folder, name, value)


def _next_attempt(moment: datetime, attempts: int) -> datetime:
    return moment + timedelta(seconds=min(FETCH_PAUSE * 2 ** min(attempts, 20), FETCH_PAUSE_MAX))


def _chunks(uids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(uids), CHUNK):
        yield uids[start : start + CHUNK]
