"""Found messages into an account, by the same steps as polled ones.

Blobs durable, then one transaction of rows, then the queue. A message is its bytes: what is stored
already is not stored again, so that an import can be repeated, or ended and begun anew, any time.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from .. import accounts, audit, budgets, database, doomed, faults, runtime
from ..actors.poll import announce
from ..imap import ImapError
from ..models import (
    ARCHIVED,
    EmailAccount,
    EmailEvent,
    EmailFolder,
    EmailLocation,
    EmailRawMessage,
    EventType,
)
from ..parsing.headers import parse_date, read_section
from ..settings import settings
from ..sync import flag_rows
from ..sync.download import Body
from ..sync.ledger import Ledger
from . import contents
from .manifest import YEARS, Manifest
from .reading import Found, Limits, Unreadable, read

log = structlog.get_logger()

#: The folders that have messages, or had them.
FOLDERS_OF = database.Statement("""
    SELECT l.message_id, f.name FROM email_locations l JOIN email_folders f ON f.id = l.folder_id
    WHERE l.message_id IN []
""")
#: Where messages lie of which nothing says where they lay.
FOLDER = "Imported"
#: Bytes at a message's begin among which its date is looked for.
HEAD = 64_000
#: Seconds to wait for the end of a deletion of blobs that are to be stored again.
PATIENCE = 60.0
#: Rows of places and flags after which a batch ends: nobody else writes to the account meanwhile.
ROWS = 20_000
#: Reasons that are remembered.
REASONS = 100
#: Of the places in a folder of an import.
UIDVALIDITY = 1


class AccountFull(Exception):
    """The account has all that an account may have."""


@dataclass(slots=True)
class Tally:
    """What was found, and what became of it.

    Parameters:
      new, known: messages that were stored now, and that were there before (with repetitions).
      places: folders in which a message was noted.
      left_out: what was no message, or too large for one.
      reasons: the first of those: (where, why).
    """

    new: int = 0
    known: int = 0
    places: int = 0
    bytes: int = 0
    left_out: int = 0
    reasons: list[tuple[str, str]] = field(default_factory=list)

    def leave_out(self, source: str, reason: str) -> None:
        self.left_out += 1
        if len(self.reasons) < REASONS:
            self.reasons.append((source[:1_000], reason))

    def as_dict(self) -> dict[str, Any]:
        reasons = [{"source": source, "reason": reason} for source, reason in self.reasons]
        names = ("new", "known", "places", "bytes", "left_out")
        return {name: getattr(self, name) for name in names} | {"reasons": reasons}


Progress = Callable[[Tally], None]


def run(
    account: EmailAccount,
    paths: Iterable[Path],
    *,
    folder: str | None = None,
    quoted_once: bool = False,
    dry_run: bool = False,
    name: str | None = None,
    progress: Progress = lambda _: None,
) -> Tally:
    """Import files and directories.

    Parameters:
      folder: where all messages go, whatever the archive says.
      quoted_once: mbox files are of the dialect "mboxo".
      dry_run: read everything, and store nothing.
      name: what the file is called.

    Raises:
      Unreadable: a file is nothing that can be read; what came before stands.
      AccountFull, AccountGone, StoreUnavailable: it cannot go on; what came before stands.
      OSError: a file cannot be read.
    """
    if not dry_run:
        audit.record("account.import", "account", account.uuid)
    intake = Intake(account, folder=folder, dry_run=dry_run, progress=progress)
    limits = Limits(account.uuid, settings().max_message_bytes, quoted_once)
    for path in paths:
        with closing(Manifest()) as manifest:
            intake.take(read(path, limits, manifest, name), manifest)
    return intake.tally


class Intake:
    """Takes messages and stores them, batch by batch."""

    def __init__(
        self,
        account: EmailAccount,
        *,
        folder: str | None,
        dry_run: bool,
        progress: Progress = lambda _: None,
    ) -> None:
        self.tally = Tally()
        self._account = account
        self._folder = folder
        self._dry_run = dry_run
        self._progress = progress
        self._ledger = Ledger(account, runtime.storage(), settings(), announce)
        self._seen: set[str] = set()  # of a dry run, which stores nothing

    def take(self, source: Iterable[Found], manifest: Manifest) -> None:
        """Store all messages of a source; what was taken before an error is stored too."""
        batch: list[Found] = []
        size = rows = 0
        try:
            for found in source:
                if found.content is None:
                    self.tally.leave_out(found.source, found.reason)
                    continue
                batch.append(found)
                size += found.size
                rows += self._rows(found, manifest)
                full = len(batch) >= settings().batch_messages or size >= settings().batch_bytes
                if full or rows >= ROWS:
                    batch, size, rows = self._flush(batch, manifest), 0, 0
        except Unreadable:
            self._flush(batch, manifest)
            raise
        except BaseException:
            _discard(batch)
            raise
        self._flush(batch, manifest)

    def _flush(self, batch: list[Found], manifest: Manifest) -> list[Found]:
        """Store a batch; the next one, which is empty."""
        try:
            if batch:
                self._store([(_body(one, manifest), self._folders(one, manifest)) for one in batch])
        finally:
            _discard(batch)
        self._progress(self.tally)
        return []

    def _rows(self, found: Found, manifest: Manifest) -> int:
        """Rows that a message's places and their flags take; a manifest may name very many."""
        flags, labels = _marks(found, manifest)
        return len(self._folders(found, manifest)) * (2 + len(flags or ()) + len(labels or ()))

    def _folders(self, found: Found, manifest: Manifest) -> list[str]:
        if self._folder is not None:
            return [self._folder]
        return manifest.folders(found.sha256) or [found.folder or FOLDER]

    def _store(self, batch: Sequence[tuple[Body, list[str]]]) -> None:
        bodies = [body for body, _ in batch]
        if self._dry_run:
            self._count_only(bodies)
            return
        try:
            budgets.check_room(self._account)
        except ImapError as error:
            raise AccountFull(str(error)) from None
        ids, new, places = self._commit_undisturbed(batch)
        faults.point("committed")
        fresh = set(new)
        self.tally.new += len(new)
        self.tally.known += len(bodies) - len(new)
        self.tally.places += places
        stored = {body.sha256: body.size for body in bodies if ids[body.sha256] in fresh}
        self.tally.bytes += sum(stored.values())
        if new:
            announce(new, True)

    def _commit_undisturbed(
        self, batch: Sequence[tuple[Body, list[str]]]
    ) -> tuple[dict[str, int], list[int], int]:
        """Commit a batch; again, where retention deletes blobs of the same contents just now.

        Raises:
          StoreUnavailable: it has not come to an end in its time, or the store is away.
        """
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return self._commit(batch)
            except doomed.BeingDeleted:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.5)

    def _commit(
        self, batch: Sequence[tuple[Body, list[str]]]
    ) -> tuple[dict[str, int], list[int], int]:
        """Blobs durable, then rows: the ids of all, of the new ones, and how many places."""
        bodies = [body for body, _ in batch]
        try:
            put = self._ledger.put_blobs(bodies)
            faults.point("blobs-durable")
            with database.transaction():
                if not EmailAccount.lock(self._account.id):
                    raise accounts.AccountGone(self._account.uuid)
                digests = {body.sha256 for body in bodies}
                ids, new = self._ledger.insert_messages(bodies, put, digests)
                places = self._place(batch, ids, new)
                faults.point("before-commit")
        except Exception:
            # Whatever it was, some of the blobs may be stored.
            if accounts.empty_if_deleted(self._account.id, self._account.uuid):
                raise accounts.AccountGone(self._account.uuid) from None
            raise
        return ids, new, places

    def _count_only(self, bodies: Sequence[Body]) -> None:
        known = self._ledger.known(bodies)
        for body in bodies:
            if body.sha256 in known or body.sha256 in self._seen:
                self.tally.known += 1
            else:
                self._seen.add(body.sha256)
                self.tally.new += 1
                self.tally.bytes += body.size

    # Places

    def _place(
        self, batch: Sequence[tuple[Body, list[str]]], ids: dict[str, int], new: Sequence[int]
    ) -> int:
        """Note where each message lay, unless it lies in a folder of that name already."""
        known: dict[int, set[str]] = {}
        for message_id, name in FOLDERS_OF.run(sorted(set(ids.values()))).fetchall():
            known.setdefault(message_id, set()).add(name)
        wanted: dict[str, list[Body]] = {}
        for body, folders in batch:
            names = known.setdefault(ids[body.sha256], set())
            for name in folders:
                if name not in names:
                    names.add(name)
                    wanted.setdefault(name, []).append(body)
        for name, bodies in sorted(wanted.items()):
            self._place_in(name, bodies, ids, set(new))
        return sum(map(len, wanted.values()))

    def _place_in(
        self, name: str, bodies: Sequence[Body], ids: dict[str, int], new: set[int]
    ) -> None:
        folder = self._folder_row(name)
        moment = database.now()
        table = EmailLocation
        numbered = dict(enumerate(bodies, folder.high + 1))
        rows = [
            {
                "folder": folder.id,
                "uidvalidity": UIDVALIDITY,
                "generation": folder.generation,
                "uid": uid,
                "message": ids[body.sha256],
                "message_date": body.internal_date,
                "seen_at": moment,
                "flags": body.flags,
                "labels": body.labels,
            }
            for uid, body in numbered.items()
        ]
        dates = _dates([row["message"] for row in rows if row["message"] not in new])
        for row in rows:
            row["message_date"] = dates.get(row["message"], row["message_date"])
        table.insert_many(rows).execute()
        marks = {uid: (body.flags, body.labels) for uid, body in numbered.items()}
        flag_rows.index(self._account.id, folder, marks)
        EmailFolder.update(
            high=folder.high + len(rows),
            messages=EmailFolder.messages + len(rows),
            bytes=EmailFolder.bytes + sum(body.size for body in bodies),
        ).where(EmailFolder.id == folder.id).execute()
        located = [row["message"] for row in rows if row["message"] not in new]
        data = {"folder": name}
        kind = EventType.MESSAGE_LOCATED
        EmailEvent.add_many([(kind, self._account.id, one, data) for one in located])

    def _folder_row(self, name: str) -> EmailFolder:
        """The folder of imports of this name. No server can list it: see ``ARCHIVED``."""
        table = EmailFolder
        wire_name = ARCHIVED + name.encode().decode("latin-1")
        mine = (table.account == self._account.id) & (table.wire_name == wire_name)
        row = table.get_or_none(mine)
        if row is None:
            moment = database.now()
            table.insert(
                account=self._account.id,
                wire_name=wire_name,
                name=name,
                uidvalidity=UIDVALIDITY,
                low=1,
                high=0,
                complete=True,
                proved_at=moment,
                checked_at=moment,
            ).execute()
            row = table.get(mine)
        return row  # type: ignore[no-any-return]


def _dates(ids: Sequence[int]) -> dict[int, datetime]:
    """When stored messages arrived, by their rows."""
    table = EmailRawMessage
    query = table.select(table.id, table.internal_date).where(table.id.in_(list(ids)))
    return dict(query.tuples())


def _body(found: Found, manifest: Manifest) -> Body:
    content = found.content
    assert content is not None
    told = manifest.date(found.sha256) or _plausible(found.date) or _sent(content)
    arrived = told or datetime.now(UTC)
    return Body(
        0,
        arrived,
        found.sha256,
        found.size,
        content,
        None,
        None,
        None,
        *_marks(found, manifest),
    )


def _marks(
    found: Found, manifest: Manifest
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Flags and labels of a message; where labels are known, flags are."""
    flags, labels = manifest.flags(found.sha256), manifest.labels(found.sha256)
    flags = found.flags if flags is None else flags
    return () if flags is None and labels is not None else flags, labels


def _sent(content: contents.Content) -> datetime | None:
    """The date in a message's header."""
    with contents.opened(content) as file:
        return _plausible(parse_date(read_section(file.read(HEAD)).get("date")))


def _plausible(moment: datetime | None) -> datetime | None:
    return moment if moment and moment.year in YEARS else None


def _discard(batch: Sequence[Found]) -> None:
    for found in batch:
        contents.remove(found.content)
