"""One account's poll: folders, then batches, then the store.

The order is sacred: blobs durable, then one transaction of rows and cursor, then the queue. A
process may die between any two lines here; the next poll goes on from the last commit.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from . import database
from .blobs import NewBlob, Storage, blob_key
from .imap import Fault, Fetched, Folder, ImapError, Session, Status, selectable
from .models import (
    EmailAccount,
    EmailAccountDay,
    EmailFetchFailure,
    EmailFolder,
    EmailLocation,
    EmailRawMessage,
    FetchVerdict,
)
from .settings import Settings

log = structlog.get_logger()

#: Seconds that a poll's lease holds after its last commit.
LEASE = 120
#: UIDs looked at in one go at first; sparse folders double it, dense ones halve it.
WINDOW = 1_000
DENSE = 4_000
#: A UID that cannot be fetched is tried in this many polls before it counts as unreadable.
FETCH_ATTEMPTS = 3
#: Seconds until an unfetched UID is tried again, doubled each time up to a day.
FETCH_PAUSE = 60
FETCH_PAUSE_MAX = 86_400

INSERT_MESSAGE = database.Statement("""
    INSERT INTO email_raw_messages (account_id, sha256, size, storage_type, storage_key,
        internal_date, stored_at, imported, next_attempt_at, status)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'stored')
""")
INSERT_LOCATION = database.Statement("""
    INSERT INTO email_locations (folder_id, uidvalidity, uid, message_id, seen_at)
    VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
""")

#: Tells the queue of messages whose rows are committed: (message ids, part of the import).
Announce = Callable[[Sequence[int], bool], None]


@dataclass(slots=True)
class Outcome:
    """What a poll did. ``unfinished``: its time slice ended before the mail did."""

    messages: int = 0
    bytes: int = 0
    unfinished: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """A downloaded message, in memory or, when it is large, in a spooled file."""

    uid: int
    internal_date: datetime
    sha256: str
    size: int
    source: bytes | Path


@dataclass(slots=True)
class Batch:
    """What goes into one transaction: bodies, verdicts, and where the folder's window ends then."""

    bodies: list[Body] = field(default_factory=list)
    failures: list["Failure"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Failure:
    """A UID without a body."""

    uid: int
    size: int | None
    verdict: FetchVerdict
    reason: str


class _SliceOver(Exception):
    """The poll's time slice ended; everything so far is committed."""


class AccountSync:
    """The poll of one account over one open session.

    Parameters:
      account: leased by the caller.
      until: ``time.monotonic()`` value at which the time slice ends.
    """

    def __init__(
        self,
        account: EmailAccount,
        session: Session,
        storage: Storage,
        settings: Settings,
        announce: Announce,
        until: float,
    ) -> None:
        self.account = account
        self.session = session
        self.storage = storage
        self.settings = settings
        self.announce = announce
        self.until = until
        self.outcome = Outcome()
        # After a failed poll messages go one at a time, so that one that breaks the connection
        # is found and cannot hold back the others for ever.
        self.batch_messages = 1 if account.failures else settings.batch_messages
        self._renewed = time.monotonic()

    def run(self) -> Outcome:
        """New mail of every folder first, then the import, newest mail first."""
        folders = self._refresh_folders()
        try:
            for folder, status in folders:
                if _has_news(folder, status):
                    self._fetch_new(folder, status)
            self._retry_failures([folder for folder, _ in folders])
            self._import([folder for folder, _ in folders])
        except _SliceOver:
            self.outcome.unfinished = True
        return self.outcome

    # Folders

    def _refresh_folders(self) -> list[tuple[EmailFolder, Status | None]]:
        listed = selectable(*self.session.list_folders())
        rows = self._folder_rows(listed)
        chosen = self.account.folders
        wanted = [folder for folder in listed if chosen is None or folder.name in chosen]
        untold = [folder.wire_name for folder in wanted if folder.status is None]
        statuses = self.session.statuses(untold)
        return [
            (rows[folder.wire_name], folder.status or statuses.get(folder.wire_name))
            for folder in wanted
        ]

    def _folder_rows(self, listed: Sequence[Folder]) -> dict[bytes, EmailFolder]:
        """The rows of the listed folders; new ones are made and vanished ones marked."""
        table = EmailFolder
        with database.connected():
            rows = {_wire(row): row for row in table.select().where(table.account == self.account)}
        new = [folder for folder in listed if folder.wire_name not in rows]
        present = {folder.wire_name for folder in listed}
        changed = [row for name, row in rows.items() if (name in present) != (row.gone_at is None)]
        if new or changed:
            with database.transaction():
                self.account.fence(LEASE)
                for folder in new:
                    rows[folder.wire_name] = table.create(
                        account=self.account,
                        wire_name=folder.wire_name.decode("latin-1"),
                        name=folder.name,
                        special_use=folder.special_use,
                    )
                for row in changed:
                    row.gone_at = None if _wire(row) in present else database.now()
                    row.save(only=[table.gone_at])
        return rows

    # New mail and import

    def _fetch_new(self, folder: EmailFolder, status: Status | None) -> None:
        uidnext = self._open(folder, status)
        if uidnext is None:
            return
        width = WINDOW
        while folder.high < uidnext - 1:
            last = min(folder.high + width, uidnext - 1)
            seen = self._store_window(folder, folder.high + 1, last, newest_first=False)
            width = _next_width(width, seen)
        self._save(
            folder,
            uidnext=uidnext,
            server_messages=status.messages if status else folder.server_messages,
            checked_at=database.now(),
        )

    def _import(self, folders: Sequence[EmailFolder]) -> None:
        """Extend each folder's window downward in turn, a window of UIDs at a time."""
        waiting = [folder for folder in folders if folder.low is not None and not folder.imported]
        widths = {folder.id: WINDOW for folder in waiting}
        opened: int | None = None
        while waiting:
            folder = waiting.pop(0)
            if opened != folder.id:
                if self._open(folder, None) is None:
                    continue
                opened = folder.id
            first = max(1, folder.low - widths[folder.id])
            seen = self._store_window(folder, first, folder.low - 1, newest_first=True)
            widths[folder.id] = _next_width(widths[folder.id], seen)
            if not folder.imported:
                waiting.append(folder)

    def _open(self, folder: EmailFolder, status: Status | None) -> int | None:
        """EXAMINE a folder, start its window where needed, and tell its UIDNEXT.

        ``None``: the folder cannot be opened; the reason stands in its row.
        """
        try:
            seen = self.session.examine(_wire(folder))
        except ImapError as error:
            if error.fault is not Fault.REFUSED:
                raise
            self._save(folder, last_error=error.detail)
            return None
        told = status or Status()
        uidvalidity = seen.uidvalidity or told.uidvalidity or 0
        uidnext = seen.uidnext or told.uidnext or self._highest() + 1
        if folder.uidvalidity != uidvalidity or folder.high is None:
            self._save(
                folder,
                uidvalidity=uidvalidity,
                high=uidnext - 1,
                low=uidnext if seen.messages != 0 else 1,
                uidnext=None,
                messages=0,
                bytes=0,
            )
        self._save(folder, last_error=None)
        return max(uidnext, folder.high + 1)

    def _highest(self) -> int:
        """The highest UID of the open folder, for servers that do not tell UIDNEXT."""
        return max((found.uid or 0 for found in self.session.scan(1, None)), default=0)

    def _store_window(
        self, folder: EmailFolder, first: int, last: int, *, newest_first: bool
    ) -> int:
        """Fetch and commit what is missing between two UIDs; tells how many the server listed."""
        listed = self.session.scan(first, last)
        missing = self._missing(folder, listed)
        if newest_first:
            missing.reverse()
        side, edge = ("low", first) if newest_first else ("high", last)
        batches = list(self._batches(missing))
        for entries in batches:
            batch = self._download(folder, entries)
            reached = edge if entries is batches[-1] else entries[-1].uid
            self._commit(folder, batch, {side: reached}, imported=newest_first)
            self._check_slice()
        if not batches:
            self._save(folder, **{side: edge})
            self._check_slice()
        return len(listed)

    def _check_slice(self) -> None:
        if time.monotonic() >= self.until:
            raise _SliceOver

    def _missing(self, folder: EmailFolder, listed: Sequence[Fetched]) -> list[Fetched]:
        """Those without a message or a verdict, and wanted by the account."""
        if not listed:
            return []
        window = (listed[0].uid, listed[-1].uid)
        with database.connected():
            done = {
                uid
                for table in (EmailLocation, EmailFetchFailure)
                for (uid,) in table.select(table.uid)
                .where(
                    table.folder == folder,
                    table.uidvalidity == folder.uidvalidity,
                    table.uid.between(*window),
                )
                .tuples()
            }
        since = self.account.import_since
        return [
            entry
            for entry in listed
            if entry.uid not in done
            and not (since and entry.internal_date and entry.internal_date < since)
        ]

    def _batches(self, entries: Iterable[Fetched]) -> Iterator[list[Fetched]]:
        """Split by number and bytes; a message larger than a part goes alone."""
        batch: list[Fetched] = []
        size = 0
        for entry in entries:
            expected = entry.size or 0
            full = len(batch) >= self.batch_messages or size + expected > self.settings.batch_bytes
            if batch and (full or expected > self.settings.part_bytes):
                yield batch
                batch, size = [], 0
            batch.append(entry)
            size += expected
        if batch:
            yield batch

    def _retry_failures(self, folders: Sequence[EmailFolder]) -> None:
        """Try again what could not be fetched before and is due."""
        table = EmailFetchFailure
        with database.connected():
            due = list(
                table.select()
                .where(
                    table.folder.in_([folder.id for folder in folders]),
                    table.verdict.in_([FetchVerdict.WAITING, FetchVerdict.UNREADABLE]),
                    table.next_attempt_at <= database.now(),
                )
                .order_by(table.folder, table.uid)
            )
        rows = {folder.id: folder for folder in folders}
        for failure in due:
            folder = rows[failure.folder_id]
            if self._open(folder, None) is None or failure.uidvalidity != folder.uidvalidity:
                continue
            entries = self.session.scan(failure.uid, failure.uid)
            entry = entries[0] if entries else Fetched(uid=failure.uid)
            self._commit(folder, self._download(folder, [entry]), {}, imported=False)

    # Download

    def _download(self, folder: EmailFolder, entries: Sequence[Fetched]) -> Batch:
        """Fetch the bodies of a batch. A UID without a body gets a verdict."""
        batch = Batch()
        if len(entries) > 1 or (entries[0].size or 0) <= self.settings.part_bytes:
            try:
                self._download_small(entries, batch)
            except ImapError as error:
                if error.fault is not Fault.REFUSED or len(entries) == 1:
                    self._keep_what_came(folder, batch, entries, error)
                    raise
        got = {body.uid for body in batch.bodies}
        for entry in entries:
            if entry.uid not in got:
                self._download_single(folder, entry, batch)
        return batch

    def _download_small(self, entries: Sequence[Fetched], batch: Batch) -> None:
        dates = {entry.uid: entry.internal_date for entry in entries}
        for uid, data in self.session.bodies([entry.uid for entry in entries if entry.uid]):
            digest = hashlib.sha256(data).hexdigest()
            arrived = dates[uid] or datetime.now(UTC)
            batch.bodies.append(Body(uid, arrived, digest, len(data), data))

    def _keep_what_came(
        self, folder: EmailFolder, batch: Batch, entries: Sequence[Fetched], error: ImapError
    ) -> None:
        """Commit the whole messages of a broken batch; blame a message that broke it alone."""
        if len(entries) == 1 and error.fault in (
            Fault.CONNECTION_LOST,
            Fault.PROTOCOL,
            Fault.REFUSED,
        ):
            batch.failures.append(
                Failure(entries[0].uid or 0, entries[0].size, FetchVerdict.WAITING, str(error))
            )
        if batch.bodies or batch.failures:
            self._commit(folder, batch, {}, imported=True)

    def _download_single(self, folder: EmailFolder, entry: Fetched, batch: Batch) -> None:
        """A large message, or one that the server left out of a batch: in parts, to a file."""
        uid = entry.uid or 0
        limit = self.settings.max_message_bytes
        if (entry.size or 0) > limit:
            reason = f"{entry.size} bytes; the limit is {limit}"
            batch.failures.append(Failure(uid, entry.size, FetchVerdict.TOO_LARGE, reason))
            return
        try:
            body = self._spool(entry, limit)
        except ImapError as error:
            if error.fault is not Fault.REFUSED:
                self._keep_what_came(folder, batch, [entry], error)
                raise
            batch.failures.append(Failure(uid, entry.size, FetchVerdict.WAITING, str(error)))
            return
        if body is not None:
            batch.bodies.append(body)
        elif self.session.scan(uid, uid):
            reason = "the server lists the message but does not send it"
            batch.failures.append(Failure(uid, entry.size, FetchVerdict.WAITING, reason))
        else:
            reason = "removed at the server before it could be fetched"
            batch.failures.append(Failure(uid, entry.size, FetchVerdict.GONE, reason))

    def _spool(self, entry: Fetched, limit: int) -> Body | None:
        """Download in parts into a file; ends at a short part, whatever size was announced."""
        uid = entry.uid or 0
        digest, size = hashlib.sha256(), 0
        path = _new_file(self.settings.spool_dir)
        with path.open("r+b") as file:
            while True:
                part = self.session.part(uid, size, self.settings.part_bytes)
                if part is None and size == 0:
                    path.unlink()
                    return None
                file.write(part or b"")
                digest.update(part or b"")
                size += len(part or b"")
                if len(part or b"") < self.settings.part_bytes:
                    break
                if size > limit:
                    path.unlink()
                    raise ImapError(Fault.REFUSED, f"more than {limit} bytes")
                self._keep_lease()
        arrived = entry.internal_date or datetime.now(UTC)
        return Body(uid, arrived, digest.hexdigest(), size, path)

    def _keep_lease(self) -> None:
        """Renew the lease while a long download has nothing to commit."""
        if time.monotonic() - self._renewed > LEASE / 4:
            with database.transaction(durable=False):
                self.account.fence(LEASE)
            self._renewed = time.monotonic()

    # Store

    def _commit(
        self, folder: EmailFolder, batch: Batch, edge: dict[str, int | None], *, imported: bool
    ) -> None:
        """Blobs, then rows and cursor in one transaction, then the queue."""
        try:
            storage_type = self._put_blobs(batch.bodies)
            with database.transaction():
                self.account.fence(LEASE)
                ids, new = self._insert_messages(batch.bodies, storage_type, imported)
                self._insert_locations(folder, batch.bodies, ids)
                self._record_failures(folder, batch.failures)
                self._forget_failures(folder, batch.bodies)
                self._update(folder, edge)
        finally:
            for body in batch.bodies:
                if isinstance(body.source, Path):
                    body.source.unlink(missing_ok=True)
        self._renewed = time.monotonic()
        self.outcome.messages += len(new)
        self.outcome.bytes += sum(body.size for body in batch.bodies)
        if new:
            self.announce(new, imported)

    def _put_blobs(self, bodies: Sequence[Body]) -> str:
        known = self._known(bodies)
        fresh = {body.sha256: body for body in bodies if body.sha256 not in known}
        if not fresh:
            return str(self.storage.primary_type)
        blobs = [
            NewBlob(blob_key(self.account.uuid, digest), body.size, digest, body.source)
            for digest, body in fresh.items()
        ]
        return str(self.storage.put(blobs))

    def _known(self, bodies: Sequence[Body]) -> dict[str, int]:
        """Which of these contents the account has already: SHA-256 to message id."""
        table = EmailRawMessage
        digests = list({body.sha256 for body in bodies})
        if not digests:
            return {}
        with database.connected():
            query = table.select(table.sha256, table.id).where(
                table.account == self.account, table.sha256.in_(digests)
            )
            return dict(query.tuples())

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
        sweep_at = database.timestamp(moment + timedelta(seconds=self.settings.sweep_after))
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
        INSERT_LOCATION.run_many(
            [
                (folder.id, folder.uidvalidity, body.uid, ids[body.sha256], seen_at)
                for body in bodies
            ]
        )
        folder.messages += len(bodies)
        folder.bytes += sum(body.size for body in bodies)
        folder.save(only=[EmailFolder.messages, EmailFolder.bytes])

    def _record_failures(self, folder: EmailFolder, failures: Sequence[Failure]) -> None:
        table = EmailFetchFailure
        moment = database.now()
        for failure in failures:
            row = table.get_or_none(
                table.folder == folder,
                table.uidvalidity == folder.uidvalidity,
                table.uid == failure.uid,
            ) or table(
                folder=folder,
                uidvalidity=folder.uidvalidity,
                uid=failure.uid,
                attempts=0,
                seen_at=moment,
            )
            row.attempts += 1
            row.verdict, row.reason, row.size = failure.verdict, failure.reason, failure.size
            row.next_attempt_at = moment + timedelta(
                seconds=min(FETCH_PAUSE * 2**row.attempts, FETCH_PAUSE_MAX)
            )
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

    def _forget_failures(self, folder: EmailFolder, bodies: Sequence[Body]) -> None:
        table = EmailFetchFailure
        table.delete().where(
            table.folder == folder,
            table.uidvalidity == folder.uidvalidity,
            table.uid.in_([body.uid for body in bodies]),
        ).execute()

    def _save(self, folder: EmailFolder, **values: object) -> None:
        """Write what changed of a folder, under the fence."""
        if any(getattr(folder, name) != value for name, value in values.items()):
            with database.transaction():
                self.account.fence(LEASE)
                self._update(folder, values)

    def _update(
        self, folder: EmailFolder, values: dict[str, object] | dict[str, int | None]
    ) -> None:
        if values:
            EmailFolder.update(**values).where(EmailFolder.id == folder.id).execute()
            for name, value in values.items():
                setattr(folder, name, value)


def _has_news(folder: EmailFolder, status: Status | None) -> bool:
    """Whether the folder must be opened: the server tells other numbers than at the last look."""
    if status is None or status.uidnext is None or folder.high is None:
        return True
    return bool(status.uidnext != folder.uidnext or status.uidvalidity != folder.uidvalidity)


def _next_width(width: int, seen: int) -> int:
    """Bound the answers, not the UIDs: a folder may hold ten messages among four billion UIDs."""
    if seen < WINDOW // 4:
        return width * 4
    return max(WINDOW, width // 2) if seen > DENSE else width


def _wire(folder: EmailFolder) -> bytes:
    return str(folder.wire_name).encode("latin-1")


def _new_file(directory: Path) -> Path:
    """An empty file for one large message, readable by its owner only."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / os.urandom(16).hex()
    path.touch(mode=0o600, exist_ok=False)
    return path
