"""The poll of one account: new mail first, then the import, then the proof that all is there."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog

from .. import budgets, database, faults, policy
from ..blobs import Storage
from ..budgets import BudgetSpent
from ..imap import Fault, Fetched, ImapError, Listed, Session, Status, providers, selectable
from ..models import EmailAccount, EmailFolder, EmailLocation, FetchVerdict
from ..settings import Settings
from . import proof
from .download import Batch, Body, Broken, Copy, Downloader, Failure, batches
from .flags import ASKED, Flags
from .ledger import Announce, Ledger, wire
from .window import due_failures, newest_place, written_uids

log = structlog.get_logger()

#: UIDs looked at in one go at first; sparse folders double it, dense ones halve it.
WINDOW = 1_000
DENSE = 4_000
#: UIDs below the newest that each look goes over again: some servers show mail late, or leave
#: one out once (Gmail: mailcore2 #1256, nextcloud/mail #13590).
LOOK_BACK = 500
#: Faults after which a new connection may do better.
BROKEN = frozenset((Fault.CONNECTION_LOST, Fault.PROTOCOL, Fault.TIMED_OUT, Fault.SESSION_EXPIRED))
#: New connections in one poll.
RECONNECTS = 4
#: A window that was begun anew so often within a day is left alone for a while.
RESTARTS = 3
RESTART_PAUSE = 3_600
#: Where flags are followed, a folder with so few messages is compared as soon as one has left.
SMALL = 20_000

#: Bytes of a header that can tell one message from all others.
TELLING_HEADER = 200

#: Opens a session for a block; it is given the error that ended the one before, if one did.
Connect = Callable[[ImapError | None], AbstractContextManager[Session]]
#: Something done in one folder.
Work = Callable[[EmailFolder], None]


@dataclass(slots=True)
class Outcome:
    """What a poll did.

    Parameters:
      unfinished: its time slice ended before the mail did.
      verdicts: UIDs without a message of which the reason was written down.
      error: what ended it early, though not before it had brought something in.
    """

    messages: int = 0
    bytes: int = 0
    verdicts: int = 0
    unfinished: bool = False
    error: ImapError | None = None


class _SliceOver(Exception):
    """The poll's time slice ended; everything so far is committed."""


class AccountSync:
    """The poll of one account.

    Parameters:
      account: leased by the caller.
      until: ``time.monotonic()`` value at which the time slice ends.
    """

    session: Session

    def __init__(
        self,
        account: EmailAccount,
        connect: Connect,
        storage: Storage,
        settings: Settings,
        announce: Announce,
        until: float,
    ) -> None:
        self.account = account
        self.settings = settings
        self.until = until
        self.outcome = Outcome()
        self.ledger = Ledger(account, storage, settings, announce)
        # After a failed poll messages go one at a time, so that one that breaks the connection
        # is found and cannot hold back the others for ever.
        self.batch_messages = 1 if account.failures else settings.batch_messages
        self._connect = connect
        self._reconnects = RECONNECTS
        self._opened: tuple[Session | None, int, Status] = (None, 0, Status())
        self._widths: dict[int, int] = {}
        self._due: dict[int, list[int]] = {}
        self._suspects: set[tuple[int, int]] = set()
        self._sizeless: set[int] = set()
        # When the poll began, by the database's clock: it is not asked again for what does not
        # go by seconds.
        self._begun: datetime = account.last_poll_at
        self._since = policy.wanted_since(account, self._begun)
        self._news: set[int] = set()
        self._flags = Flags(self.ledger) if account.sync_flags else None

    def run(self) -> Outcome:
        """New mail of every folder first, then the import, newest mail first.

        Raises:
          ImapError: the server cannot be polled; nothing came in.
        """
        with ExitStack() as self._connection:
            self._enter(None)
            try:
                self._run()
            except _SliceOver:
                self.outcome.unfinished = True
            except ImapError as error:
                if not self.outcome.messages and not self.outcome.verdicts:
                    raise
                self.outcome.error = error
        return self.outcome

    def _run(self) -> None:
        found = self._refresh_folders()
        folders = [folder for folder, _ in found]
        for folder, status in found:
            if _has_news(folder, status):
                self._news.add(folder.id)
                if self._flags:
                    self._flags.doubt(folder, status)
                self._each([folder], partial(self._fetch_new, status=status))
        self._each(self._failing(folders), self._retry_failures)
        if self._flags:
            for folder, status in self._flags.due(found):
                self._each([folder], partial(self._follow_flags, self._flags, status=status))
        try:
            self._import(folders)
        except BudgetSpent as spent:
            # The rest of the day is for new mail; the import goes on tomorrow.
            log.info("import pauses", account=self.account.uuid, why=str(spent))
        self._each([one for one in folders if self._to_compare(one)], self._reconcile)

    def _to_compare(self, folder: EmailFolder) -> bool:
        """Whether the server's whole list is to be compared; at once where mail just left."""
        if proof.due(folder, self._begun):
            return True
        just_left = folder.id in self._news and proof.short(folder)
        return bool(self._flags and just_left and folder.messages <= SMALL)

    def _each(self, folders: Sequence[EmailFolder], work: Work) -> None:
        """Do the work in each folder; a connection that breaks is replaced a few times."""
        for folder in folders:
            while not self._done(folder, work):
                pass

    def _done(self, folder: EmailFolder, work: Work) -> bool:
        """Whether there is nothing more to try in the folder for this poll.

        Raises:
          ImapError: one that concerns the account.
        """
        before = folder.id in self._sizeless
        try:
            work(folder)
            return True
        except ImapError as error:
            if error.ended or error.fault in BROKEN:
                if not self._reconnects:
                    raise
                self._reconnect(folder, error)
                return False
            if error.fault not in (Fault.REFUSED, Fault.UNAVAILABLE):
                raise
            if folder.id in self._sizeless and not before:
                return False
            # The other folders have done nothing wrong.
            self.ledger.save(folder, last_error=error.detail)
            return True

    def _reconnect(self, folder: EmailFolder, error: ImapError) -> None:
        log.info("connecting again", account=self.account.uuid, folder=folder.id, why=str(error))
        self._reconnects -= 1
        self.batch_messages = 1
        self._connection.close()
        self._enter(error)

    def _enter(self, after: ImapError | None) -> None:
        """Open a session; the lease is kept for as long as it brings anything, however slowly."""
        self.session = self._connection.enter_context(self._connect(after))
        faults.point("logged-in")
        self.session.while_reading(self.ledger.keep_lease)
        if self._flags:
            self.session.follow_changes()

    # Folders

    def _refresh_folders(self) -> list[tuple[EmailFolder, Status | None]]:
        chosen = self.account.folders
        skip = partial(providers.skipped, self.account.host)
        wanted = [
            folder
            for folder in selectable(*self._list_folders())
            if (folder.name in chosen if chosen else not skip(folder.special_use))
        ]
        rows = self.ledger.folders(wanted)
        untold = [folder.wire_name for folder in wanted if folder.status is None]
        changes = self._flags is not None
        statuses = self.session.statuses(untold, modseq=changes)
        if changes and untold and not statuses:
            statuses = self.session.statuses(untold)
        return [
            (rows[folder.wire_name], folder.status or statuses.get(folder.wire_name))
            for folder in wanted
        ]

    def _list_folders(self) -> tuple[list[Listed], dict[bytes, Status]]:
        """The server's list, with its count of changes where it tells that."""
        if self._flags:
            try:
                return self.session.list_folders(modseq=True)
            except ImapError as error:
                if error.fault is not Fault.REFUSED or error.ended:
                    raise
        return self.session.list_folders()

    def _open(self, folder: EmailFolder, status: Status | None = None) -> Status | None:
        """EXAMINE a folder, and begin its window, anew where needed.

        Returns:
          what the server says of it, UIDNEXT always among it; ``None`` when it cannot be opened
          now, for which the reason stands in its row.
        """
        told = status or Status()
        if told.messages == 0 and told.uidnext and told.uidvalidity:
            seen = replace(told)  # all there is to know of an empty folder, without opening it
        else:
            # Also a refusal closes the folder that was open before (RFC 9051 6.3.2).
            self._opened = (None, 0, Status())
            try:
                seen = self.session.examine(wire(folder))
            except ImapError as error:
                if error.fault is not Fault.REFUSED:
                    raise
                self.ledger.save(folder, last_error=error.detail)
                return None
            self._opened = (self.session, folder.id, seen)
        seen.uidvalidity = seen.uidvalidity or told.uidvalidity or 0
        # Mail that came since is above UIDNEXT, which is only a place to begin at.
        seen.uidnext = seen.uidnext or told.uidnext or self.session.highest() + 1
        if folder.uidvalidity != seen.uidvalidity or folder.high is None:
            if self._restless(folder):
                return None
            self._restart(folder, seen, folder.generation)
        self.ledger.save(folder, last_error=None)
        return seen

    def _restart(self, folder: EmailFolder, seen: Status, generation: int) -> None:
        assert seen.uidvalidity is not None
        assert seen.uidnext is not None
        empty = seen.messages == 0
        self.ledger.restart(folder, seen.uidvalidity, generation, seen.uidnext, empty)

    def _restless(self, folder: EmailFolder) -> bool:
        """Whether the server changes UIDVALIDITY so often that the folder is left alone for now."""
        if folder.restarts < RESTARTS or folder.restarted_at is None:
            return False
        pause = RESTART_PAUSE * 2 ** min(folder.restarts - RESTARTS, 5)
        begun: Any = folder.restarted_at
        until: datetime = begun + timedelta(seconds=pause)
        if database.now() >= until:
            return False
        reason = (
            f"the server changed UIDVALIDITY {folder.restarts} times within a day, which makes "
            f"known mail look new; the folder is read again at {until:%H:%M} UTC"
        )
        self.ledger.save(folder, last_error=reason)
        return True

    # New mail

    def _fetch_new(self, folder: EmailFolder, status: Status | None) -> None:
        """What lies above the window, and what appeared late among the newest below its edge."""
        seen = self._open(folder, status)
        if seen is None:
            return
        width, uidnext = WINDOW, seen.uidnext or 1
        while seen.messages != 0:
            # The server's UIDNEXT may be too low or lag behind: the last look has no upper end.
            final = folder.high + width >= uidnext - 1
            first = max(1, folder.low, folder.high + 1 - LOOK_BACK)
            uids = self.session.uids(first, None if final else folder.high + width)
            faults.point("uids-listed")
            with database.connected():
                place = newest_place(folder)
                unknown = self._unknown(folder, uids)
            # One question for both: each is a way to the server and back.
            check = [place.uid] if place and place.uid in uids else []
            facts = self._facts(folder, self.session.scan_set, unknown + check)
            if place and _renumbered(place, facts):
                log.warning("UIDs were given to other mail", account=self.account.uuid)
                self._restart(folder, seen, folder.generation + 1)
                continue
            edge = max(uidnext - 1, folder.high, *uids) if final else folder.high + width
            self._store_unknown(folder, unknown, facts, edge)
            width = _next_width(width, len(uids) - LOOK_BACK, seen.messages)
            if final:
                break
        self._prove(folder, seen, whole=seen.messages == 0)

    def _facts(
        self, folder: EmailFolder, ask: Callable[..., list[Fetched]], *what: Any
    ) -> list[Fetched]:
        """Sizes and dates; sizes are not asked for again where one of them broke the answer."""
        sizes = folder.id not in self._sizeless
        try:
            return ask(*what, sizes=sizes)
        except ImapError:
            self._sizeless.add(folder.id)
            raise

    def _store_uids(self, folder: EmailFolder, uids: Sequence[int], edge: int) -> None:
        """Fetch what of a listing has no verdict yet; the window's upper edge moves with it."""
        unknown = self._unknown(folder, uids)
        facts = self._facts(folder, self.session.scan_set, unknown)
        self._store_unknown(folder, unknown, facts, edge)

    def _unknown(self, folder: EmailFolder, uids: Sequence[int]) -> list[int]:
        known = written_uids(folder, uids[0], uids[-1]) if uids else set()
        return [uid for uid in uids if uid not in known]

    def _store_unknown(
        self, folder: EmailFolder, unknown: Sequence[int], facts: Sequence[Fetched], edge: int
    ) -> None:
        entries = {entry.uid: entry for entry in facts}
        # What was listed gets a verdict, though the server leaves it out when asked for more.
        self._store(folder, [entries.get(uid) or Fetched(uid=uid) for uid in unknown], "high", edge)

    # Flags

    def _follow_flags(self, flags: Flags, folder: EmailFolder, status: Status | None) -> None:
        """Look at a folder's flags, and at what is said to have left it."""
        seen = self._opened_before(folder) or self._open(folder)
        if seen is None or not seen.messages:
            return
        told = replace(seen, modseq=(status and status.modseq) or seen.modseq)
        gone = flags.look(self.session, folder, told)
        if gone:
            self._take_leave(folder, seen, gone)

    def _take_leave(self, folder: EmailFolder, seen: Status, gone: Sequence[int]) -> None:
        """Write down what has left, once the server does not list it any more."""
        withheld = folder.proof["withheld"] if folder.proof else 0
        if withheld or len(gone) > ASKED:
            self.ledger.save(folder, reconciled_at=None)
            return
        listed = self.session.listed(gone)
        absent = [uid for uid in gone if uid not in listed]
        if absent:
            self.ledger.settle(folder, absent=absent, returned=[], left_out=None)
            self._prove(folder, seen, whole=False)

    # Import

    def _import(self, folders: Sequence[EmailFolder]) -> None:
        """Extend each folder's window downward in turn, a window of UIDs at a time."""
        waiting = [folder for folder in folders if _importing(folder)]
        while waiting:
            folder = waiting.pop(0)
            self._each([folder], self._import_window)
            if _importing(folder):
                waiting.append(folder)

    def _import_window(self, folder: EmailFolder) -> None:
        seen = self._opened_before(folder) or self._open(folder)
        if seen is None:
            return
        width = self._widths.get(folder.id, WINDOW)
        first = max(1, folder.low - width)
        entries = self._facts(folder, self.session.scan, first, folder.low - 1)
        faults.point("uids-listed")
        self._widths[folder.id] = _next_width(width, len(entries), seen.messages)
        known = written_uids(folder, first, folder.low - 1) if entries else set()
        unknown = [entry for entry in entries if entry.uid not in known]
        self._store(folder, unknown, "low", first)
        if folder.imported:
            self._prove(folder, seen, whole=True)

    def _opened_before(self, folder: EmailFolder) -> Status | None:
        """What the server said of the folder, if it is the one that is open now."""
        session, folder_id, seen = self._opened
        return seen if session is self.session and folder_id == folder.id else None

    # What could not be fetched before

    def _failing(self, folders: Sequence[EmailFolder]) -> list[EmailFolder]:
        for failure in due_failures(folders, self._begun):
            self._due.setdefault(failure.folder_id, []).append(failure.uid)
        return [folder for folder in folders if folder.id in self._due]

    def _retry_failures(self, folder: EmailFolder) -> None:
        if self._open(folder) is None:
            return
        uids = self._due[folder.id]
        while uids:
            uid = uids.pop(0)
            entries = self._facts(folder, self.session.scan_set, [uid])
            self._store(folder, entries or [Fetched(uid=uid)])

    # Store

    def _store(
        self, folder: EmailFolder, entries: Sequence[Fetched], side: str = "", edge: int = 0
    ) -> None:
        """Fetch and commit messages, batch by batch.

        Parameters:
          side: the edge of the window that moves, ``high`` or ``low``, newest first for ``low``;
            '' when none does.
          edge: where it stands when all of them have a verdict.
        """
        imported = side == "low"
        wanted, left_out = self._wanted(entries)
        wanted, copies = self._named_contents(wanted)
        if imported and self.account.imported_at:
            wanted, moved = self._moved_contents(wanted)
            copies += moved
        if imported:
            wanted.reverse()
        most = min(self.batch_messages, self.settings.batch_messages)
        todo = list(batches(wanted, self.settings, most))
        if left_out or copies:
            self._commit(folder, Batch(left_out=left_out, copies=copies), {}, side)
        for number, chosen in enumerate(todo, 1):
            size = sum(entry.size or 0 for entry in chosen)
            budgets.check_room(self.account)
            budgets.spend(self.account, size, importing=imported)
            batch = self._download(folder, chosen, side)
            reached = edge if number == len(todo) else chosen[-1].uid or 0
            self._commit(folder, batch, _moved(folder, side, reached), side)
            self._check_slice()
        if not todo:
            self.ledger.save(folder, **_moved(folder, side, edge))
            # A slice ends with something done: folders without news do not hold back the others.
            if imported:
                self._check_slice()

    def _wanted(self, entries: Sequence[Fetched]) -> tuple[list[Fetched], list[int]]:
        """What the account wants, and UIDs of what arrived too early for it, or was deleted."""
        since = self._since
        uids = self.ledger.buried_uids(entries)
        if since is not None:
            uids |= {one.uid or 0 for one in entries if (one.internal_date or since) < since}
        return [one for one in entries if one.uid not in uids], sorted(uids)

    def _named_contents(self, entries: Sequence[Fetched]) -> tuple[list[Fetched], list[Copy]]:
        """What must be downloaded, and what lies in another folder too and need not be.

        Not every server keeps its word that a name means one content: the size must agree too.
        """
        names = [entry.email_id for entry in entries if entry.email_id]
        stored = self.ledger.stored_as(names) if names else {}
        known = {
            entry.uid: Copy(entry, *stored[entry.email_id])
            for entry in entries
            if entry.email_id in stored and entry.size == stored[entry.email_id][1]
        }
        return [entry for entry in entries if entry.uid not in known], list(known.values())

    def _moved_contents(self, entries: Sequence[Fetched]) -> tuple[list[Fetched], list[Copy]]:
        """The same for a mailbox that moved, whose servers tell no names: by size and header.

        The header holds what the receiving servers wrote when the message arrived. A message of
        the same size that begins with it to the byte is the one that is stored, if only one does.
        """
        sized = {entry.uid: entry for entry in entries if entry.uid and entry.size}
        stored = self.ledger.of_sizes(list({entry.size or 0 for entry in sized.values()}))
        likely = [uid for uid, entry in sized.items() if entry.size in stored]
        copies = []
        for uid, header in self.session.headers(likely).items():
            if len(header) < TELLING_HEADER:
                continue
            candidates = stored[sized[uid].size or 0]
            same = [one for one in candidates if self.ledger.begins_with(one, header)]
            if len(same) == 1:
                copies.append(Copy(sized[uid], same[0].id, same[0].size))
        found = {copy.entry.uid for copy in copies}
        return [entry for entry in entries if entry.uid not in found], copies

    def _download(self, folder: EmailFolder, chosen: Sequence[Fetched], side: str) -> Batch:
        downloader = Downloader(self.session, self.settings, self.account.uuid)
        suspected = (folder.id, chosen[0].uid) in self._suspects
        try:
            return downloader.fetch(chosen, in_parts=suspected)
        except Broken as broken:
            if len(chosen) == 1 and broken.error.fault is not Fault.THROTTLED:
                self._suspect(folder, chosen[0], broken)
            if broken.batch:
                self._commit(folder, broken.batch, {}, side)
            raise broken.error from None

    def _suspect(self, folder: EmailFolder, entry: Fetched, broken: Broken) -> None:
        """A message over which the connection breaks twice waits, and the others go first."""
        key = (folder.id, entry.uid or 0)
        if key in self._suspects:
            failure = Failure(key[1], entry.size, FetchVerdict.WAITING, str(broken.error))
            broken.batch.failures.append(failure)
        self._suspects.add(key)

    def _commit(self, folder: EmailFolder, batch: Batch, edge: dict[str, int], side: str) -> None:
        old = self._imports(folder, batch.bodies, side)
        self.outcome.messages += self.ledger.commit(folder, batch, edge, old)
        self.outcome.bytes += sum(body.size for body in batch.bodies)
        self.outcome.verdicts += len(batch.failures)

    def _imports(self, folder: EmailFolder, bodies: Sequence[Body], side: str) -> set[str]:
        """Contents that had arrived before anybody could have seen them here.

        The others are new mail: also from below the window of a folder that was made a moment ago,
        or that was numbered anew. What could not be fetched in the import may come much later.
        """
        if side == "high":
            return set()
        below = side == "low"
        since = folder.news_since if below else self.account.created_at
        return {
            body.sha256
            for body in bodies
            if since is None or (body.told_date < since if body.told_date else below)
        }

    def _check_slice(self) -> None:
        if time.monotonic() >= self.until:
            raise _SliceOver

    # Proof

    def _prove(
        self,
        folder: EmailFolder,
        seen: Status,
        *,
        whole: bool,
        withheld: int | None = None,
    ) -> None:
        """Account for every message that the server counts, from the counters.

        Parameters:
          whole: the server's whole list was gone through, so that its numbers are all there is.
          withheld: what it counts and does not list; ``None``: as many as before.
        """
        if seen.messages is None:
            return
        if withheld is None:
            withheld = folder.proof["withheld"] if folder.proof else 0
        with database.connected():
            figures = proof.account_for(folder, seen.messages, withheld, missing=0)
            with database.transaction(durable=False):
                moment = database.now()
                proved = proof.complete(figures)
                self.ledger.save(
                    folder,
                    uidnext=seen.uidnext,
                    server_messages=seen.messages,
                    checked_at=moment,
                    proof=figures,
                    complete=proved,
                    proved_at=moment if proved else folder.proved_at,
                    reconciled_at=moment if whole and proved else folder.reconciled_at,
                )

    def _reconcile(self, folder: EmailFolder) -> None:
        """Compare the server's whole list with the database, and fetch what is missing."""
        seen = self._open(folder)
        if seen is None or seen.messages is None:
            return
        short = self.session.supports("ESEARCH")
        lister = self.session.compact_uids if short else self.session.uids
        found = self._compare(folder, seen, lister)
        if found.listed != seen.messages:
            # A cut answer, mail that is leaving just now, or a server that shows a part only.
            seen = self._open(folder) or seen
            found = self._compare(folder, seen, self.session.uids)
        withheld = max(0, (seen.messages or 0) - found.listed)
        if found.missing:
            log.warning("late mail", account=self.account.uuid, messages=len(found.missing))
        for start in range(0, len(found.missing), WINDOW):
            self._store_uids(folder, found.missing[start : start + WINDOW], folder.high)
        self.ledger.settle(
            folder,
            # What a server withholds may only seem to have left.
            absent=[] if withheld else found.absent,
            returned=found.returned,
            left_out=found.left_out,
        )
        self.ledger.save(folder, reconciled_at=database.now())
        self._prove(folder, seen, whole=True, withheld=withheld)

    def _compare(self, folder: EmailFolder, seen: Status, lister: proof.Lister) -> proof.Difference:
        return proof.compare(folder, self._top(folder, seen), seen.messages or 0, lister)

    def _top(self, folder: EmailFolder, seen: Status) -> int:
        """The highest UID there can be, also where UIDNEXT is too low."""
        return max((seen.uidnext or 1) - 1, folder.high, self.session.highest())


def _has_news(folder: EmailFolder, status: Status | None) -> bool:
    """Whether the folder must be opened: the server tells other numbers than at the last look.

    One that could not be read then is tried again, though its numbers are the same: until it can
    be opened, its import stands still.
    """
    if status is None or status.uidnext is None or folder.high is None or folder.last_error:
        return True
    last = (folder.uidnext, folder.uidvalidity)
    if (status.uidnext, status.uidvalidity) != last:
        return True
    return status.messages is not None and status.messages != folder.server_messages


def _renumbered(place: EmailLocation, facts: Sequence[Fetched]) -> bool:
    """Whether a known UID now names another message (UIDs that are really positions).

    Both its size and its date must differ: either alone differs at some servers for no reason.
    """
    for entry in facts:
        if entry.uid == place.uid and entry.internal_date and entry.size is not None:
            moved = entry.internal_date != place.internal_date
            return bool(moved and entry.size != place.server_size)
    return False


def _importing(folder: EmailFolder) -> bool:
    return folder.low is not None and not folder.imported and folder.last_error is None


def _moved(folder: EmailFolder, side: str, reached: int) -> dict[str, int]:
    """The edge of a window after a commit; it never goes back over what has a verdict."""
    if side == "high":
        return {"high": max(folder.high, reached)}
    return {"low": min(folder.low, reached)} if side else {}


def _next_width(width: int, listed: int, messages: int | None) -> int:
    """Bound the answers, not the UIDs: a folder may hold ten messages among four billion UIDs."""
    if listed < WINDOW // 4:
        return proof.bounded(width * 4, messages)
    return max(WINDOW, width // 2) if listed > DENSE else width
