"""What became of each UID, in the database; every write is checked against the account's lease.

The order is sacred: blobs durable, then one transaction of rows and cursor, then the queue. A
process may die between any two lines here; the next poll goes on from the last commit.
"""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from peewee import fn

from .. import counters, database, doomed, faults, leases
from ..blobs import (
    BlobCorrupt,
    BlobMissing,
    NewBlob,
    Storage,
    StorageType,
    StoreUnavailable,
    blob_key,
)
from ..imap import Fetched, Folder
from ..models import (
    EmailAccount,
    EmailAccountDay,
    EmailEvent,
    EmailFetchFailure,
    EmailFolder,
    EmailHour,
    EmailLeftOut,
    EmailLocation,
    EmailRawMessage,
    EmailTombstone,
    EventType,
    FetchVerdict,
)
from ..settings import Settings
from . import flag_rows
from .download import Batch, Body, Copy, Failure
from .window import NOTHING, OF_WINDOW, counters_of, leave_out, rows_of

log = structlog.get_logger()

#: Seconds that a poll's lease holds after its last commit.
LEASE = 120
#: A UID that cannot be fetched is tried in this many polls before it counts as unreadable.
FETCH_ATTEMPTS = 3
#: Seconds until an unfetched UID is tried again, doubled each time up to a day.
FETCH_PAUSE = 60
FETCH_PAUSE_MAX = 86_400

INSERT_MESSAGE = database.Statement("""
    INSERT INTO email_raw_messages (account_id, sha256, size, storage_type, storage_key,
        internal_date, stored_at, imported, next_attempt_at, email_id, status)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'stored')
""")
INSERT_LOCATION = database.Statement("""
    INSERT INTO email_locations (folder_id, uidvalidity, generation, uid, server_size,
        internal_date, seen_at, flags, labels, message_id, message_date)
    SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, id, internal_date FROM email_raw_messages WHERE id = ?
    ON CONFLICT DO NOTHING
""")
#: Where messages lie and lay: whether still, as far as the folder's present window says.
PLACES = database.Statement("""
    SELECT l.message_id, l.folder_id, f.name, l.seen_at,
        l.expunged_at IS NULL AND f.gone_at IS NULL AND l.uidvalidity = f.uidvalidity
            AND l.generation = f.generation
    FROM email_locations l JOIN email_folders f ON f.id = l.folder_id
    WHERE l.message_id IN [] ORDER BY l.seen_at, l.id
""")
#: Those of some messages that the folder is known to hold: the first place found tells, however
#: many there are. ``PRESENT_HERE`` asks for the same in the folder's present window.
LISTED_HERE = database.Statement("""
    SELECT m.id FROM email_raw_messages m WHERE EXISTS (
        SELECT 1 FROM email_locations l
        WHERE l.message_id = m.id AND l.folder_id = ? AND l.expunged_at IS NULL
    ) AND m.id IN []
""")
PRESENT_HERE = database.Statement("""
    SELECT m.id FROM email_raw_messages m WHERE EXISTS (
        SELECT 1 FROM email_locations l
        WHERE l.message_id = m.id AND l.folder_id = ? AND l.uidvalidity = ? AND l.generation = ?
            AND l.expunged_at IS NULL
    ) AND m.id IN []
""")

#: Which contents retention has deleted by their age: by SHA-256, or by the server's names.
BURIED = database.Statement(
    "SELECT sha256 FROM email_tombstones WHERE account_id = ? AND sha256 IN []"
)
BURIED_NAMES = database.Statement("""
    SELECT email_id, MIN(size) FROM email_tombstones WHERE account_id = ? AND email_id IN []
    GROUP BY email_id HAVING COUNT(*) = 1
""")
#: Which contents an account has already.
KNOWN = database.Statement(
    "SELECT sha256, id FROM email_raw_messages WHERE account_id = ? AND sha256 IN []"
)
FORGET_FAILURES = database.Statement(
    f"DELETE FROM email_fetch_failures WHERE {OF_WINDOW} AND uid IN []"  # noqa: S608
)

#: A server's clock may be that far behind the database's, when it dates what arrives.
CLOCKS_APART = timedelta(minutes=10)


#: Tells the queue of messages whose rows are committed: (message ids, part of the import).
Announce = Callable[[Sequence[int], bool], None]


class Put(NamedTuple):
    """Where blobs were put, and what was known then of their deletion."""

    storage_type: str
    deletions: doomed.Deletions


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
        self._graves: bool | None = None

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
            rows = self._listed_rows()
        new = [folder for folder in listed if folder.wire_name not in rows]
        present = {folder.wire_name for folder in listed}
        changed = [row for name, row in rows.items() if (name in present) != (row.gone_at is None)]
        if new or changed:
            with database.transaction():
                self.account.fence(LEASE)
                self._create(new)
                for row in changed:
                    gone_at = None if wire(row) in present else database.now()
                    _update(row, {"gone_at": gone_at, "modseq": None, "flags_cursor": None})
                    flag_rows.forget(row, row.uidvalidity, row.generation)
                if new:
                    found = self._listed_rows()
                    rows |= {name: row for name, row in found.items() if name not in rows}
        return rows

    def _listed_rows(self) -> dict[bytes, EmailFolder]:
        """The folders that the server has listed; those of imports are none of its own."""
        found = EmailFolder.of_account(self.account.id)
        return {wire(row): row for row in found if not row.archived}

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
        for chunk in database.chunks(rows):
            EmailFolder.insert_many(chunk).execute()

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
        news_since = folder.news_since if again and not folder.imported else self._last_look()
        counters = self._forget(folder, uidvalidity, generation) if again else NOTHING
        moment = database.now()
        recent = folder.restarted_at and moment - folder.restarted_at < timedelta(days=1)
        self.save(
            folder,
            uidvalidity=uidvalidity,
            generation=generation,
            high=uidnext - 1,
            low=1 if empty else uidnext,
            news_since=news_since,
            uidnext=None,
            **counters,
            restarts=(folder.restarts if recent else 0) + 1 if again else 0,
            restarted_at=moment if again else None,
            proof=None,
            complete=False,
            reconciled_at=None,
            modseq=None,
            flags_cursor=None,
            flags_checked_at=None,
        )

    def _last_look(self) -> datetime | None:
        """What arrived since nobody has seen: the account's folders were looked at before."""
        looked: datetime | None = self.account.last_success_at
        # A server dates to the second.
        added: datetime = self.account.created_at.replace(microsecond=0)
        return max(added, looked - CLOCKS_APART) if looked else None

    def _forget(self, folder: EmailFolder, uidvalidity: int, generation: int) -> dict[str, int]:
        """Drop reasons and runs of UIDs that name other mail now.

        Returns:
          the counters of what is known already under the numbers that are valid from here on.
        """
        with database.transaction():
            self.account.fence(LEASE)
            for table in (EmailFetchFailure, EmailLeftOut):
                table.delete().where(table.folder == folder.id).execute()
            flag_rows.forget(folder, uidvalidity, generation)
            return counters_of(folder, uidvalidity, generation)

    # Commit

    def commit(self, folder: EmailFolder, batch: Batch, edge: dict[str, int], old: Set[str]) -> int:
        """Blobs, then rows and cursor in one transaction, then the queue.

        Parameters:
          edge: the side of the folder's window that moves, and where to; empty when none does.
          old: the SHA-256 of those that are no news, but an import.

        Returns:
          how many messages were new.
        """
        try:
            self._leave_out_buried(batch)
            with leases.kept(self.account, LEASE):
                put = self.put_blobs(batch.bodies)
            faults.point("blobs-durable")
            with database.transaction():
                self.account.fence(LEASE)
                ids, new = self.insert_messages(batch.bodies, put, old)
                self._insert_locations(folder, batch.bodies, ids, new)
                self._insert_copies(folder, batch.copies)
                self._record_failures(folder, batch.failures)
                self._forget_failures(folder, batch)
                leave_out(folder, batch.left_out)
                _update(folder, edge)
                faults.point("before-commit")
            faults.point("committed")
        finally:
            for body in batch.bodies:
                _discard(body)
        self._renewed = time.monotonic()
        if new:
            self._announce_all(new, {ids[sha256] for sha256 in old})
            faults.point("announced")
        return len(new)

    def _announce_all(self, new: Sequence[int], old: Set[int]) -> None:
        for imported in (False, True):
            chosen = [one for one in new if (one in old) is imported]
            if chosen:
                self._announce(chosen, imported)

    def _has_graves(self) -> bool:
        """Whether anything was deleted by its age; that happens only under the account's lease.

        Not a ``cached_property``: that of Python 3.11 has one lock for all threads, which this one
        would hold while it waits for the turn, and another, which has the turn, for the lock.
        """
        if self._graves is None:
            mine = EmailTombstone.account == self.account.id
            with database.connected():
                self._graves = bool(EmailTombstone.select().where(mine).exists())
        return self._graves

    def buried_uids(self, entries: Sequence[Fetched]) -> set[int]:
        """Those whose content was deleted by its age, as far as the server's names tell."""
        names = {one.email_id: one for one in entries if one.email_id}
        if not names or not self._has_graves():
            return set()
        sizes: dict[str, int] = {}
        with database.connected():
            for chunk in database.chunks(names):
                sizes |= dict(BURIED_NAMES.run(self.account.id, list(chunk)).fetchall())
        return {
            one.uid
            for one in entries
            if one.uid and one.email_id in sizes and one.size == sizes[one.email_id]
        }

    def _leave_out_buried(self, batch: Batch) -> None:
        """Take out of a batch what was deleted by its age and has come up again."""
        if not batch.bodies or not self._has_graves():
            return
        digests = list({body.sha256 for body in batch.bodies})
        with database.connected():
            rows = BURIED.run(self.account.id, digests).fetchall()
        buried = {sha256 for (sha256,) in rows}
        for body in [one for one in batch.bodies if one.sha256 in buried]:
            batch.bodies.remove(body)
            batch.left_out.append(body.uid)
            _discard(body)

    def put_blobs(self, bodies: Sequence[Body]) -> Put:
        """Make the bytes durable of what the account does not have yet.

        Raises:
          StoreUnavailable: the store is away, or is deleting some of these just now.
        """
        with database.connected():
            known = self.known(bodies)
            fresh = {body.sha256: body for body in bodies if body.sha256 not in known}
            if not fresh:
                return Put(str(self._storage.primary_type), {})
            deletions = doomed.before_put(self.account.id, list(fresh))
        blobs = [
            NewBlob(blob_key(self.account.uuid, digest), body.size, digest, body.source)
            for digest, body in fresh.items()
        ]
        return Put(str(self._storage.put(blobs)), deletions)

    def known(self, bodies: Sequence[Body]) -> dict[str, int]:
        """Which of these contents the account has already: SHA-256 to message id."""
        digests = list({body.sha256 for body in bodies})
        if not digests:
            return {}
        with database.connected():
            return dict(KNOWN.run(self.account.id, digests).fetchall())

    def insert_messages(
        self, bodies: Sequence[Body], put: Put, imported: Set[str]
    ) -> tuple[dict[str, int], list[int]]:
        """Insert what is new and count it by day; tells the ids of all, and of the new ones.

        Parameters:
          imported: SHA-256 of those that are no new mail.

        The fence taken before holds the account's row, so nobody else can insert meanwhile.

        Raises:
          doomed.BeingDeleted: a blob may have gone since it was put.
        """
        known = self.known(bodies)
        fresh = {body.sha256: body for body in bodies if body.sha256 not in known}
        if not fresh:
            return known, []
        doomed.check(self.account.id, list(fresh), put.deletions)
        moment = database.now()
        stored_at = database.timestamp(moment)
        sweep_at = database.timestamp(moment + timedelta(seconds=self._settings.sweep_after))
        INSERT_MESSAGE.run_many(
            [
                (
                    self.account.id,
                    digest,
                    body.size,
                    put.storage_type,
                    blob_key(self.account.uuid, digest),
                    database.timestamp(body.internal_date),
                    stored_at,
                    digest in imported,
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
        EmailHour.add(self.account.id, len(fresh), len(fresh.keys() & imported))
        new = self.known(list(fresh.values()))
        return known | new, sorted(new.values())

    def _insert_locations(
        self,
        folder: EmailFolder,
        bodies: Sequence[Body],
        ids: dict[str, int],
        new: Sequence[int],
    ) -> None:
        if not bodies:
            return
        seen_at = database.timestamp(database.now())
        rows = [
            (
                *folder.numbering,
                body.uid,
                body.told_size,
                body.told_date and database.timestamp(body.told_date),
                seen_at,
                *flag_rows.as_json(body.flags, body.labels),
                ids[body.sha256],
            )
            for body in bodies
        ]
        told = {ids[body.sha256]: (body.flags, body.labels) for body in bodies}
        for message_id in new:
            told.pop(message_id, None)
        self._tell_located(folder, set(told))
        flag_rows.tell(self.account.id, folder, told)
        self._insert_places(folder, rows, sum(body.size for body in bodies))
        marks = {body.uid: (body.flags, body.labels) for body in bodies}
        flag_rows.index(self.account.id, folder, marks)

    def _tell_located(self, folder: EmailFolder, message_ids: Set[int]) -> None:
        """Announce that stored messages lie in this folder too, before the places are written.

        A message that lay here under another number has not moved: the server counted anew.
        """
        listed = _here(LISTED_HERE, message_ids, folder.id)
        for message_id, places in _places(message_ids - listed).items():
            data = {"folder": folder.name}
            kind = EventType.MESSAGE_LOCATED
            if places and not any(place.present for place in places):
                kind, data["from"] = EventType.MESSAGE_MOVED, places[-1].folder
            EmailEvent.add(kind, self.account.id, message_id, data)

    def _insert_places(self, folder: EmailFolder, rows: list[Any], size: int) -> None:
        if INSERT_LOCATION.run_many(rows) == len(rows):
            _update(folder, {"messages": folder.messages + len(rows), "bytes": folder.bytes + size})
        else:  # some were there already
            _update(folder, counters_of(folder, folder.uidvalidity, folder.generation))

    # Flags

    def note_flags(self, folder: EmailFolder, entries: Mapping[int, Fetched]) -> None:
        """Write down and announce the flags that differ from those that are known.

        What is seen for the first time is no change, and announced by nobody.
        """
        told = {uid: one for uid, one in entries.items() if one.flags is not None}
        for chunk in database.chunks(sorted(told)):
            with database.connected():
                changed = flag_rows.differing(folder, {uid: told[uid] for uid in chunk})
            if changed:
                with database.transaction(durable=False):
                    self.account.fence(LEASE)
                    flag_rows.change(self.account.id, folder, changed, told)
                self._renewed = time.monotonic()

    def stored_as(self, email_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Contents that are stored by the server's name for them: to (message id, size).

        A name that two contents have is none.
        """
        table = EmailRawMessage
        found: dict[str, tuple[int, int]] = {}
        with database.connected():
            for chunk in database.chunks(email_ids):
                query = (
                    table.select(table.email_id, fn.MIN(table.id), fn.MIN(table.size))
                    .where(
                        table.account == self.account,
                        table.email_id.in_(database.padded(chunk)),
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
            for chunk in database.chunks(sizes):
                query = table.select(
                    table.id, table.size, table.storage_key, table.storage_type
                ).where(table.account == self.account, table.size.in_(database.padded(chunk)))
                for row in query:
                    found.setdefault(row.size, []).append(row)
        return found

    def begins_with(self, message: EmailRawMessage, start: bytes) -> bool:
        """Whether a stored message's bytes begin like this; not if they cannot be read now."""
        try:
            kind = StorageType(message.storage_type)
            with self._storage.open(message.storage_key, kind) as stream:
                return stream.read(len(start)) == start
        except (BlobMissing, BlobCorrupt, StoreUnavailable):
            return False

    def _insert_copies(self, folder: EmailFolder, copies: Sequence[Copy]) -> None:
        if not copies:
            return
        seen_at = database.timestamp(database.now())
        rows = [
            (
                *folder.numbering,
                copy.entry.uid,
                copy.entry.size,
                copy.entry.internal_date and database.timestamp(copy.entry.internal_date),
                seen_at,
                *flag_rows.as_json(copy.entry.flags, copy.entry.labels),
                copy.message_id,
            )
            for copy in copies
        ]
        told = {copy.message_id: (copy.entry.flags, copy.entry.labels) for copy in copies}
        self._tell_located(folder, set(told))
        flag_rows.tell(self.account.id, folder, told)
        self._insert_places(folder, rows, sum(copy.size for copy in copies))
        marks = {copy.entry.uid or 0: (copy.entry.flags, copy.entry.labels) for copy in copies}
        flag_rows.index(self.account.id, folder, marks)

    def _record_failures(self, folder: EmailFolder, failures: Sequence[Failure]) -> None:
        table = EmailFetchFailure
        moment = database.now()
        for failure in failures:
            row = table.get_or_none(rows_of(table, folder), table.uid == failure.uid) or table(
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
            if row.verdict == FetchVerdict.TOO_LARGE and row.attempts == 1:
                counters.add("too_large")
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
        uids += batch.left_out
        for chunk in database.chunks(uids):
            FORGET_FAILURES.run(*folder.numbering, list(chunk))

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
            for chunk in database.chunks(absent):
                self._mark(folder, chunk, moment, FetchVerdict.GONE)
            for chunk in database.chunks(returned):
                self._mark(folder, chunk, None, FetchVerdict.WAITING)
            if left_out is not None:
                EmailLeftOut.delete().where(rows_of(EmailLeftOut, folder)).execute()
                leave_out(folder, left_out)

    def _mark(
        self,
        folder: EmailFolder,
        uids: Sequence[int],
        expunged_at: datetime | None,
        verdict: FetchVerdict,
    ) -> None:
        place, failure = EmailLocation, EmailFetchFailure
        among = database.padded(uids)
        marked = (
            rows_of(place, folder)
            & place.uid.in_(among)
            & place.expunged_at.is_null(expunged_at is not None)
        )
        found = place.select(place.message, place.id, place.uid, place.flags, place.labels).where(
            marked
        )
        rows = list(found.tuples())
        messages = {row[0] for row in rows}
        if expunged_at is None:
            self._tell_located(folder, messages)
            flag_rows.index(self.account.id, folder, {uid: marks for _, _, uid, *marks in rows})
        else:
            flag_rows.unindex([row_id for _, row_id, _, flags, _ in rows if flags is not None])
        changed = place.update(expunged_at=expunged_at).where(marked).execute()
        if expunged_at is not None:
            self._tell_expunged(folder, messages)
        expunged = folder.expunged + (changed if expunged_at else -changed)
        _update(folder, {"expunged": expunged})
        failure.update(verdict=verdict, next_attempt_at=database.now()).where(
            rows_of(failure, folder), failure.uid.in_(among)
        ).execute()

    def _tell_expunged(self, folder: EmailFolder, message_ids: Set[int]) -> None:
        """Announce that messages lie in this folder no longer; moved, if they came up elsewhere."""
        # There may be another copy in the folder.
        present = _here(PRESENT_HERE, message_ids, *folder.numbering)
        for message_id, places in _places(message_ids - present).items():
            here = [place for place in places if place.folder_id == folder.id]
            later = [p for p in places if p.present and p.seen_at >= here[0].seen_at]
            data = {"folder": folder.name}
            kind = EventType.MESSAGE_EXPUNGED
            if later:
                kind, data = (
                    EventType.MESSAGE_MOVED,
                    {"folder": later[-1].folder, "from": folder.name},
                )
            EmailEvent.add(kind, self.account.id, message_id, data)


class _Place(NamedTuple):
    """Where a message lies or lay, and whether it is still there."""

    folder_id: int
    folder: str
    seen_at: Any
    present: bool


def _here(statement: database.Statement, message_ids: Set[int], *place: int) -> set[int]:
    """Those of some messages that ``statement`` finds in a folder."""
    return {
        message_id
        for chunk in database.chunks(sorted(message_ids))
        for (message_id,) in statement.run(*place, list(chunk)).fetchall()
    }


def _places(message_ids: Set[int]) -> dict[int, list[_Place]]:
    """The places of stored messages, first seen first."""
    found: dict[int, list[_Place]] = {message_id: [] for message_id in sorted(message_ids)}
    for chunk in database.chunks(list(found)):
        for message_id, *place in PLACES.run(list(chunk)).fetchall():
            found[message_id].append(_Place(*place))
    return found


def _discard(body: Body) -> None:
    """Remove the file of a large message."""
    if isinstance(body.source, Path):
        body.source.unlink(missing_ok=True)


def _update(folder: EmailFolder, values: dict[str, Any]) -> None:
    """Write columns of a folder's row, inside the caller's transaction."""
    if values:
        database.update(EmailFolder, values, "id = ?", folder.id)
        for name, value in values.items():
            setattr(folder, name, value)


def _next_attempt(moment: datetime, attempts: int) -> datetime:
    """When to try again after so many attempts."""
    pause = min(FETCH_PAUSE * 2 ** min(attempts - 1, 20), FETCH_PAUSE_MAX)
    return moment + timedelta(seconds=pause)
