"""Delete the mail whose time is over: by its age, or some days after it left the server.

An account is gone through under its lease, so that no poll runs meanwhile, page by page. One
transaction deletes a page's rows, keeps every count right, and notes which contents are doomed;
their blobs go afterwards, if no row names them. Whoever is killed leaves work that is found again.
Whoever has to let the account's polls pass notes how far it came, and goes on from there.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import structlog
from peewee import fn

from . import audit, counters, database, doomed, faults, policy, removal, threads
from .blobs import StoreUnavailable
from .imap import providers
from .models import (
    EmailAccount,
    EmailAccountDay,
    EmailDoomedBlob,
    EmailEvent,
    EmailFolder,
    EmailRawMessage,
    EventType,
    LeaseLost,
    Mark,
    MarkName,
)
from .policy import Policy, Rule
from .settings import settings
from .sync import proof, window

log = structlog.get_logger()

#: Messages deleted in one transaction.
PAGE = 200
#: Seconds that the account's lease holds without progress.
LEASE = 120
#: An account is gone through as often as this.
PERIOD = timedelta(hours=6)
#: Seconds of one run for all accounts, and of those for one, whose polls wait meanwhile.
SLICE, TURN = 50.0, 10.0
#: Seconds to wait for a poll to end.
PATIENCE = 5.0

#: Before all mail: a date and an id.
BEGINNING = (database.timestamp(datetime(1, 1, 1, tzinfo=UTC)), 0)

#: Messages of an account that arrived before a time, oldest first.
OLD = database.Statement("""
    SELECT internal_date, id FROM email_raw_messages
    WHERE account_id = ? AND internal_date < ? AND (internal_date, id) > (?, ?)
    ORDER BY internal_date, id LIMIT ?
""")
#: Places of a folder that have been empty since a time.
LEFT = database.Statement("""
    SELECT id, message_id FROM email_locations
    WHERE folder_id = ? AND expunged_at IS NOT NULL AND expunged_at < ? AND id > ?
    ORDER BY id LIMIT ?
""")
#: Places of a folder that nobody can look into any more, or whose numbers are not valid any more.
CLOSED = database.Statement("""
    SELECT message_date, message_id FROM email_locations
    WHERE folder_id = ? AND (message_date, message_id) > (?, ?)
        AND (? OR uidvalidity <> ? OR generation <> ?)
    ORDER BY message_date, message_id LIMIT ?
""")
#: All places of messages: in which folder, since when empty, whether under valid numbers.
PLACES = database.Statement("""
    SELECT l.message_id, l.folder_id, l.expunged_at,
        l.uidvalidity = f.uidvalidity AND l.generation = f.generation
    FROM email_locations l JOIN email_folders f ON f.id = l.folder_id WHERE l.message_id IN []
""")
#: Places that folders' counters count: and whether they have been emptied.
COUNTED = database.Statement("""
    SELECT l.folder_id, l.uid, m.size, l.expunged_at IS NOT NULL
    FROM email_locations l
    JOIN email_folders f ON f.id = l.folder_id AND l.uidvalidity = f.uidvalidity
        AND l.generation = f.generation
    JOIN email_raw_messages m ON m.id = l.message_id
    WHERE l.message_id IN []
""")
#: Messages that may go, of some: none that is being processed, and none with a hold on it.
FREE = database.Statement("""
    SELECT id, sha256, size, internal_date, email_id FROM email_raw_messages m
    WHERE id IN [] AND account_id = ? AND status <> 'stored'
        AND NOT EXISTS (SELECT 1 FROM email_holds h WHERE h.message_id = m.id)
    ORDER BY id FOR UPDATE
""")
THREADS = database.Statement("""
    SELECT DISTINCT thread_id FROM email_raw_messages WHERE id IN [] AND thread_id IS NOT NULL
""")
HELD = database.Statement("SELECT message_id FROM email_holds WHERE message_id IN []")
ATTACHED = database.Statement(
    "SELECT message_id, sha256, size FROM email_attachments WHERE message_id IN []"
)
BURY = database.Statement("""
    INSERT INTO email_tombstones (account_id, sha256, email_id, size, deleted_at)
    VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
""")
EMPTY_DAYS = database.Statement("""
    DELETE FROM email_account_days WHERE account_id = ? AND day IN [] AND messages = 0
        AND bytes = 0 AND attachments = 0 AND attachment_bytes = 0 AND failures = 0
""")


class PolicyChanged(Exception):
    """The account's policy is another one by now, or a hold was set: nothing was deleted."""


@dataclass(frozen=True, slots=True)
class Due:
    """A message whose time is over. ``size`` is that of its raw bytes and attachments."""

    id: int
    rule: Rule
    sha256: str
    internal_date: datetime
    size: int


class Page(NamedTuple):
    """Messages whose time is over by a rule, or none; ``cursor`` is where the next page begins."""

    rule: Rule
    ids: list[int]
    cursor: list[Any]


@dataclass(slots=True)
class Tally:
    """What goes, or went, of an account by each rule, and what a hold keeps.

    Parameters:
      unproved: why the rule of expunged mail is not followed now; ``None``: it is.
      done: nothing is left to do.
    """

    messages: Counter[Rule] = field(default_factory=Counter)
    bytes: Counter[Rule] = field(default_factory=Counter)
    held: Counter[Rule] = field(default_factory=Counter)
    blobs: int = 0
    unproved: str | None = None
    done: bool = False

    def add(self, rule: Rule, sizes: Sequence[int]) -> None:
        self.messages[rule] += len(sizes)
        self.bytes[rule] += sum(sizes)


# What is due


class Survey:
    """The messages of an account whose time is over, page by page; reads only.

    Parameters:
      moment: by which times are over.
    """

    def __init__(self, account: EmailAccount, moment: datetime) -> None:
        self.account = account
        self.policy: Policy = policy.of(account)
        self.tally = Tally()
        self._moment = moment
        with database.connected():
            found = EmailFolder.of_account(account.id)
        self._folders = {folder.id: folder for folder in found}

    def pages(self, cursor: Sequence[Any] | None = None) -> Iterator[Page]:
        """What is due, with why; held messages are among it.

        Each page takes about as long as any other, whether it has something or not.

        Parameters:
          cursor: that of the page to begin behind; ``None``: at the beginning.
        """
        begin = list(cursor or [Rule.AGE, None])
        if begin[0] == Rule.AGE:
            yield from self._old(begin[1])
        self.tally.unproved = self._unproved()
        if self.tally.unproved is None:
            yield from self._expunged(begin[1:] if begin[0] == Rule.EXPUNGED else [0, None, None])

    def due(self) -> Iterator[Due]:
        """What would be deleted now, and counts it. What is held is only counted."""
        whole = policy.held(self.account.id)
        for rule, ids, _ in self.pages():
            rows = [] if whole else _free(self.account.id, ids)
            with database.connected():
                kept = len(ids) if whole else len(HELD.run(ids).fetchall())
                attached = Counter[int]()
                for message_id, _, size in ATTACHED.run([row[0] for row in rows]).fetchall():
                    attached[message_id] += size
            self.tally.held[rule] += kept
            self.tally.add(rule, [row[2] + attached[row[0]] for row in rows])
            for message_id, sha256, size, date, _ in rows:
                moment = database.moment(date)
                yield Due(message_id, rule, sha256, moment, size + attached[message_id])

    def still_due(self, rule: Rule, ids: Sequence[int]) -> list[int]:
        """Those of a page that an import has not given a place again: it needs no lease."""
        cutoff = self.policy.cutoff(rule, self._moment)
        if rule is Rule.AGE or cutoff is None:
            return list(ids)
        return self._gone(ids, cutoff)

    def _old(self, place: Sequence[Any] | None) -> Iterator[Page]:
        """What arrived before the policy's time, from behind a place on: (date, id)."""
        cutoff = self.policy.cutoff(Rule.AGE, self._moment)
        if cutoff is None:
            return
        end = database.timestamp(cutoff)
        while True:
            with database.connected():
                found = OLD.run(self.account.id, end, *(place or BEGINNING), PAGE).fetchall()
            if not found:
                return
            place = _place(found[-1])
            yield Page(Rule.AGE, [row[1] for row in found], [Rule.AGE, place])

    def _unproved(self) -> str | None:
        """Which folder is not known to be complete: what left others may have come up there.

        Nor is one that was not looked into since the last of what is due has left.
        """
        cutoff = self.policy.cutoff(Rule.EXPUNGED, self._moment)
        if cutoff is None:
            return None
        for folder in self._folders.values():
            if folder.gone_at is not None or folder.archived or self._unwanted(folder):
                continue
            if not folder.complete:
                return f"not every message of the folder {folder.name!r} is accounted for"
            proved = folder.last_proved(self.account.last_success_at)
            if proved is None or proved < cutoff:
                return f"the folder {folder.name!r} was not looked into for days"
        return None

    def _unwanted(self, folder: EmailFolder) -> bool:
        """Whether the account does not poll it: what is in there may be there still."""
        chosen = self.account.folders
        if chosen is not None:
            return folder.name not in chosen
        return providers.skipped(self.account.host, folder.special_use)

    def _expunged(self, begin: Sequence[Any]) -> Iterator[Page]:
        """What has left all folders, folder by folder.

        Parameters:
          begin: a folder's id, and the places there to begin behind: see
            ``_candidates``.
        """
        cutoff = self.policy.cutoff(Rule.EXPUNGED, self._moment)
        old = self.policy.cutoff(Rule.AGE, self._moment)
        if cutoff is None:
            return
        first, left, closed = begin
        seen: set[int] = set()
        for folder_id, folder in sorted(self._folders.items()):
            if folder_id < first:
                continue
            if folder_id > first:
                left = closed = None
            for candidates, *places in self._candidates(folder, cutoff, left, closed):
                gone = self._gone(sorted(set(candidates) - seen), cutoff)
                seen.update(gone)
                if old is not None:
                    gone = _younger(gone, old)
                yield Page(Rule.EXPUNGED, gone, [Rule.EXPUNGED, folder_id, *places])

    def _candidates(
        self, folder: EmailFolder, cutoff: datetime, left: int | None, closed: Sequence[Any] | None
    ) -> Iterator[tuple[list[int], int | None, Sequence[Any] | None]]:
        """Messages that have left a folder, and may lie in others, with the places they end at.

        Parameters:
          left: the id of a place; those that were emptied are gone through by it.
          closed: a place by (date, message id), of those that nobody can look into any more; these
            are gone through at last.
        """
        end = database.timestamp(cutoff)
        while closed is None:
            with database.connected():
                page = LEFT.run(folder.id, end, left or 0, PAGE).fetchall()
            if not page:
                break
            left = page[-1][0]
            yield [message_id for _, message_id in page], left, None
        over = folder.gone_at or folder.restarted_at
        if over is None or over >= cutoff:
            return
        numbers = (folder.gone_at is not None, folder.uidvalidity or 0, folder.generation)
        while True:
            with database.connected():
                page = CLOSED.run(folder.id, *(closed or BEGINNING), *numbers, PAGE).fetchall()
            if not page:
                return
            closed = _place(page[-1])
            yield [message_id for _, message_id in page], left, closed

    def _gone(self, ids: Sequence[int], cutoff: datetime) -> list[int]:
        """Those that have been in no folder of the server since before a time."""
        since: dict[int, datetime | None] = {}
        with database.connected():
            rows = PLACES.run(list(ids)).fetchall()
        for message_id, folder_id, expunged_at, valid in rows:
            left = self._left(self._folders.get(folder_id), expunged_at, bool(valid))
            before = since.get(message_id, left)
            since[message_id] = max(before, left) if before and left else None
        return sorted(one for one, left in since.items() if left and left < cutoff)

    def _left(self, folder: EmailFolder | None, expunged_at: Any, valid: bool) -> datetime | None:
        """When a place became empty; ``None``: it is not, or nobody knows."""
        if expunged_at is not None:
            return database.moment(expunged_at)
        if folder is None or self._unwanted(folder):
            return None
        if folder.gone_at is not None:
            return folder.gone_at  # type: ignore[no-any-return]
        return None if valid else folder.restarted_at


def _place(row: Sequence[Any]) -> list[Any]:
    """The date and the id of a row, as a cursor holds them."""
    return [database.timestamp(database.moment(row[0])), row[1]]


def _younger(ids: Sequence[int], moment: datetime) -> list[int]:
    """Those whose age is not yet a reason of its own."""
    table = EmailRawMessage
    with database.connected():
        rows = table.select(table.id).where(table.id.in_(list(ids)), table.internal_date >= moment)
        return sorted(message_id for (message_id,) in rows.tuples())


def _free(account_id: int, ids: Sequence[int]) -> list[Any]:
    with database.connected():
        return list(FREE.run(list(ids), account_id).fetchall())


def _any_held(ids: Sequence[int]) -> bool:
    with database.connected():
        return HELD.run(list(ids)).fetchone() is not None


# Deletion


class Run:
    """The deletion of what is due in one account.

    Parameters:
      account: held under its lease by the caller.
      until: ``time.monotonic()`` value at which others get their turn.
    """

    def __init__(self, account: EmailAccount, until: float) -> None:
        self._account = account
        self._until = until
        self._survey = Survey(account, database.now())
        self._kept = time.monotonic()
        self.tally = self._survey.tally
        self._cursor = self._begun()

    def go(self) -> None:
        """Delete, and note whether nothing is left to do.

        Raises:
          LeaseLost: somebody else has the account.
          StoreUnavailable: blobs are left, and are found again later.
        """
        try:
            done = self._remove_rows()
        except PolicyChanged:
            done, self._cursor = False, None
        self.tally.done = self._remove_blobs() and done

    def _remove_rows(self) -> bool:
        if policy.held(self._account.id):
            counters.add("hold_refusals", label="retention")
            return True
        held = False
        for rule, ids, cursor in self._survey.pages(self._cursor):
            faults.point("page-found")
            if ids:
                self._remove_page(rule, ids)
                held = held or _any_held(ids)
            self._keep_lease()
            self._cursor = cursor
            if time.monotonic() >= self._until:
                return False
        if held:
            counters.add("hold_refusals", label="retention")
        return True

    def outcome(self) -> dict[str, Any]:
        """Columns of the account: that it was gone through, or how far by which policy."""
        if self.tally.done:
            return {"retained_at": database.now(), "retention_cursor": None}
        kept = {"policy": astuple(self._survey.policy), "place": self._cursor}
        return {"retention_cursor": kept}

    def _begun(self) -> list[Any] | None:
        """Where a run before, by the same policy, had to let others pass."""
        cursor = self._account.retention_cursor
        if cursor and cursor["policy"] == list(astuple(self._survey.policy)):
            return cursor["place"]  # type: ignore[no-any-return]
        return None

    def _keep_lease(self) -> None:
        """Renew the lease while pages have nothing that is to be deleted."""
        if time.monotonic() - self._kept > LEASE / 4:
            with database.transaction(durable=False):
                self._account.keep(LEASE)
            self._kept = time.monotonic()

    def _remove_page(self, rule: Rule, ids: Sequence[int]) -> None:
        with database.transaction():
            self._account.keep(LEASE)
            self._check()
            rows = FREE.run(self._survey.still_due(rule, ids), self._account.id).fetchall()
            if not rows:
                return
            ids = [row[0] for row in rows]
            attached = ATTACHED.run(ids).fetchall()
            self._note_contents(rule, rows, attached)
            places = COUNTED.run(ids).fetchall()
            conversations = [one for (one,) in THREADS.run(ids).fetchall()]
            removal.remove_messages(ids)
            Mark.set(MarkName.WORDS_LEFT, 1)
            self._count_days(rows, attached)
            self._count_folders(places)
            data = {"rule": str(rule)}
            EmailEvent.add_many(
                [(EventType.MESSAGE_DELETED, self._account.id, one, data) for one in ids]
            )
            audit.record_many("message.delete", "message", map(str, ids))
            faults.point("before-retention")
        faults.point("retention-committed")
        threads.forget_empty(self._account.id, conversations)
        sizes = Counter({row[0]: row[2] for row in rows})
        for message_id, _, size in attached:
            sizes[message_id] += size
        self.tally.add(rule, list(sizes.values()))
        counters.add("retention_deleted", len(sizes), rule)

    def _check(self) -> None:
        """After the account's row was locked: nobody has changed what this run goes by.

        Raises:
          PolicyChanged: somebody has.
        """
        account = EmailAccount.by_id(self._account.id)
        if account is None or policy.of(account) != self._survey.policy:
            raise PolicyChanged
        if account.folders != self._account.folders or policy.held(account.id):
            raise PolicyChanged

    def _note_contents(self, rule: Rule, rows: Sequence[Any], attached: Sequence[Any]) -> None:
        account, moment = self._account.id, database.timestamp(database.now())
        doomed.doom(account, [row[1] for row in (*rows, *attached)])
        if rule is Rule.AGE:
            BURY.run_many(
                [(account, sha256, name, size, moment) for _, sha256, size, _, name in rows]
            )

    def _count_days(self, rows: Sequence[Any], attached: Sequence[Any]) -> None:
        days: dict[str, Counter[str]] = {}
        day_of = {}
        for message_id, _, size, date, _ in rows:
            day_of[message_id] = day = database.moment(date).date().isoformat()
            days.setdefault(day, Counter()).update(messages=-1, bytes=-size)
        for message_id, _, size in attached:
            days[day_of[message_id]].update(attachments=-1, attachment_bytes=-size)
        for day, amounts in sorted(days.items()):
            EmailAccountDay.add(self._account.id, day, **amounts)
        EMPTY_DAYS.run(self._account.id, sorted(days))

    def _count_folders(self, places: Sequence[Any]) -> None:
        """Take the places out of the folders' counts; those still full are left out from now on."""
        folders: dict[int, Any] = {one.id: one for one in EmailFolder.of_account(self._account.id)}
        by_folder: dict[int, list[Any]] = {}
        for folder_id, *place in places:
            by_folder.setdefault(folder_id, []).append(place)
        for folder_id, found in sorted(by_folder.items()):
            folder = folders[folder_id]
            window.leave_out(folder, [uid for uid, _, left in found if not left])
            folder.messages -= len(found)
            folder.bytes -= sum(size for _, size, _ in found)
            folder.expunged -= sum(1 for *_, left in found if left)
            columns = {name: getattr(folder, name) for name in window.NOTHING}
            if folder.proof:
                columns["proof"] = proof.account_for(
                    folder,
                    folder.proof["server"],
                    folder.proof["withheld"],
                    folder.proof["missing"],
                )
            database.update(EmailFolder, columns, "id = ?", folder.id)

    def _remove_blobs(self) -> bool:
        """Delete the blobs of doomed contents that no row names; whether none is left."""
        while (deleted := doomed.delete_page(self._account)) is not None:
            self.tally.blobs += deleted
            if time.monotonic() >= self._until:
                break
        return not doomed.left(self._account.id)


def _kept_for_a_time() -> Any:
    """The condition that some rule ends the time of an account's mail."""
    table, config = EmailAccount, settings()
    return (fn.COALESCE(table.retention_days, config.retention_days) > 0) | (
        fn.COALESCE(table.retention_expunged_days, config.retention_expunged_days) > 0
    )


def waiting() -> float:
    """Seconds since the account that was longest not gone through was, or was added; 0: none is."""
    table = EmailAccount
    since = fn.MIN(fn.COALESCE(table.retained_at, table.created_at))
    with database.connected():
        found = table.visible().select(since).where(_kept_for_a_time()).scalar()
    return max(0.0, (database.now() - database.moment(found)).total_seconds()) if found else 0.0


def due_accounts() -> list[EmailAccount]:
    """The accounts to go through now, those that were longest not first."""
    table, blob = EmailAccount, EmailDoomedBlob
    late = table.retained_at.is_null() | (table.retained_at <= database.now() - PERIOD)
    left = fn.EXISTS(blob.select().where(blob.account == table.id, blob.gone_at.is_null()))
    with database.connected():
        return list(
            table.visible()
            .where((_kept_for_a_time() & late) | left)
            .order_by(table.retained_at.is_null(False), table.retained_at, table.id)
        )


def run(seconds: float = SLICE) -> None:
    """Go through the accounts that are due, for so many seconds. Runs twice without harm.

    Those that are being polled are waited for when all others have had their turn.
    """
    doomed.forget()
    until = time.monotonic() + seconds
    busy: list[int] = []
    for account in due_accounts():
        if time.monotonic() >= until:
            return
        if go_through(account.id, min(until, time.monotonic() + TURN), patience=0) is None:
            busy.append(account.id)
    for account_id in busy:
        if time.monotonic() >= until:
            return
        go_through(account_id, min(until, time.monotonic() + TURN))


def go_through(account_id: int, until: float, patience: float = PATIENCE) -> Tally | None:
    """Delete what is due in one account; ``None`` when it is not to be had now.

    Parameters:
      until: ``time.monotonic()`` value at which to stop, to be gone on with later.
      patience: seconds to wait for a poll to end.
    """
    account = _hold(account_id, patience)
    if account is None:
        return None
    work = Run(account, until)
    try:
        work.go()
    except LeaseLost:
        log.info("retention ended: the account was taken or deleted", account=account.uuid)
    except StoreUnavailable as error:
        log.info("blobs are deleted later", account=account.uuid, reason=str(error))
    finally:
        account.release(queued_until=None, **work.outcome())
    if work.tally.messages:
        amounts = {str(rule): count for rule, count in work.tally.messages.items()}
        log.info("mail deleted", account=account.uuid, blobs=work.tally.blobs, **amounts)
    return work.tally


def _hold(account_id: int, patience: float) -> EmailAccount | None:
    end = time.monotonic() + patience
    while True:
        held = EmailAccount.hold(account_id, LEASE)
        if held is not None or time.monotonic() >= end:
            return held
        time.sleep(0.2)
