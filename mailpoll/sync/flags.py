"""Flags of the places in one account's folders: what changed at the server since the last poll.

Where the server counts changes (CONDSTORE, RFC 7162) a folder without any costs nothing, and
elsewhere, or where those numbers cannot be believed, a bounded part of it is compared in each poll,
newest first. Numbers of changes are only ever a hint at what to ask for: whether every message is
there is shown by the folder's proof, and whether one has left by asking for it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from .. import database
from ..imap import Fault, Fetched, ImapError, Session, Status
from ..models import EmailFolder
from .ledger import Ledger
from .proof import WIDTH, bounded
from .window import present_between, present_uids

log = structlog.get_logger()

#: ``EmailFolder.modseq`` of a folder whose server's numbers are no good.
UNTRUSTED = 0
#: Messages compared with one command.
WINDOW = 1_000
#: Messages that a poll compares in all: where that comes to an end, and where it never does.
BUDGET, ENDLESS_BUDGET = 20_000, 3_000
#: Folders that a poll compares where nothing tells which have changed.
FOLDERS = 5
#: All flags are compared as often as this, whatever the server says of changes.
WHOLE = timedelta(days=7)
#: Messages said to be gone that are asked for; of more, the whole list is compared.
ASKED = 2_000
#: When flags were looked at that never were.
NEVER = datetime(1970, 1, 1, tzinfo=UTC)


class Flags:
    """The flags of an account during one poll.

    Parameters:
      ledger: of the account, which is leased.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._left = BUDGET
        self._endless_left = ENDLESS_BUDGET

    def doubt(self, folder: EmailFolder, status: Status | None) -> None:
        """Believe no numbers of changes from a server that did not count new mail as one."""
        if status is None or not folder.modseq or status.modseq != folder.modseq:
            return
        if status.uidnext and folder.uidnext and status.uidnext > folder.uidnext:
            self._distrust(folder, "new mail did not change HIGHESTMODSEQ")

    def due(
        self, found: Sequence[tuple[EmailFolder, Status | None]]
    ) -> Iterator[tuple[EmailFolder, Status | None]]:
        """The folders to look into, in order, while this poll's share lasts.

        Of those whose server does not tell what has changed, the ones that waited longest.
        """
        moment = database.now()
        known = [(one, status) for one, status in found if one.high is not None and one.messages]
        told = [pair for pair in known if _counted(*pair) is not None]
        untold = [pair for pair in known if _counted(*pair) is None]
        for folder, status in told:
            if self._left <= 0 and not folder.modseq:
                continue
            changed = _counted(folder, status) != folder.modseq
            if changed or folder.flags_cursor is not None or _stale(folder, moment):
                yield folder, status
        untold.sort(key=lambda pair: pair[0].flags_at or NEVER)
        for folder, status in untold[:FOLDERS]:
            if self._endless_left <= 0:
                return
            yield folder, status

    def look(self, session: Session, folder: EmailFolder, seen: Status) -> list[int]:
        """Go on with a folder, the open one, and write down what has changed.

        Parameters:
          seen: with the HIGHESTMODSEQ by which the next poll will see whether anything changed.

        Returns:
          UIDs of which the server says that they have left; it may be wrong.
        """
        try:
            self._begin(folder, seen)
            if not folder.modseq:
                self._compare(session, folder)
                return []
            return self._changes(session, folder)
        except ImapError as error:
            if error.fault not in (Fault.REFUSED, Fault.UNAVAILABLE) or error.ended:
                raise
            # Its mail can be read all the same.
            log.info("flags not told", folder=folder.id, reason=str(error))
            if folder.modseq and error.fault is Fault.REFUSED:
                self._distrust(folder, "it does not answer what has changed")
            self._ledger.save(folder, flags_at=database.now())
            return []

    def _begin(self, folder: EmailFolder, seen: Status) -> None:
        """Decide what a look at the whole folder begins from, unless one is under way."""
        if folder.modseq == UNTRUSTED and _stale(folder, database.now()):
            self._ledger.save(folder, modseq=None, flags_cursor=None)  # it gets another chance
        modseq, counted = folder.modseq, _counted(folder, seen)
        if modseq and (counted is None or counted < modseq):
            log.info("HIGHESTMODSEQ went back", folder=folder.id, told=counted, known=modseq)
            self._ledger.save(folder, modseq=None, flags_cursor=None)
        elif modseq and _stale(folder, database.now()):
            self._ledger.save(folder, modseq=None, flags_cursor=None)
        if folder.flags_cursor is None:
            # Not written down before there is something done.
            folder.flags_cursor, folder.flags_target = folder.high, counted

    def _distrust(self, folder: EmailFolder, why: str) -> None:
        log.warning("the server's numbers of changes are not used", folder=folder.id, reason=why)
        columns = {"flags_cursor": None, "flags_checked_at": database.now()}
        self._ledger.save(folder, modseq=UNTRUSTED, **columns)

    def _note(self, folder: EmailFolder, cursor: int) -> None:
        """Write down how far a look has come."""
        moment = database.now()
        target = folder.flags_target
        self._ledger.save(folder, flags_at=moment, flags_cursor=cursor, flags_target=target)

    def _done(self, folder: EmailFolder, *, whole: bool) -> None:
        moment = database.now()
        untrusted = folder.modseq == UNTRUSTED
        self._ledger.save(
            folder,
            modseq=UNTRUSTED if untrusted else folder.flags_target,
            flags_cursor=None,
            flags_at=moment,
            flags_checked_at=moment if whole and not untrusted else folder.flags_checked_at,
        )

    def _compare(self, session: Session, folder: EmailFolder) -> None:
        """Compare all flags, newest first, as far as this poll's share goes."""
        ends = folder.flags_target is not None and folder.modseq != UNTRUSTED
        while (self._left if ends else self._endless_left) > 0:
            uids = present_uids(folder, folder.flags_cursor, WINDOW)
            if not uids:
                self._done(folder, whole=True)
                return
            self._left -= len(uids)
            self._endless_left -= 0 if ends else len(uids)
            self._ledger.note_flags(folder, _told(session, uids))
            folder.flags_cursor = uids[0] - 1
        self._note(folder, folder.flags_cursor)

    def _changes(self, session: Session, folder: EmailFolder) -> list[int]:
        """Take what changed since the last look, in as few questions as answers stay short."""
        gone: list[int] = []
        width = WIDTH
        while folder.flags_cursor >= folder.low:
            few = folder.messages <= WIDTH
            first = folder.low if few else max(folder.low, folder.flags_cursor - width + 1)
            last = folder.flags_cursor
            entries, ranges = session.flags_of(first, last, folder.modseq)
            self._ledger.note_flags(folder, entries)
            if any(one.flags is None for one in entries.values()):
                self._distrust(folder, "it names what has changed without its flags")
                return gone
            if ranges:
                gone += _within(present_between(folder, first, last), ranges)
            if few:
                break
            self._note(folder, first - 1)
            width = bounded(width * 4, folder.messages) if len(entries) < WIDTH // 4 else WIDTH
        self._done(folder, whole=False)
        return gone


def _counted(folder: EmailFolder, status: Status | None) -> int | None:
    """HIGHESTMODSEQ, if it can mean anything: some servers say 1 of every folder for ever."""
    if status is None or folder.modseq == UNTRUSTED or (status.modseq or 0) <= 1:
        return None
    return status.modseq


def _stale(folder: EmailFolder, moment: datetime) -> bool:
    """Whether all flags are to be compared, whatever the server says of changes."""
    checked = folder.flags_checked_at
    return checked is None or bool(moment - checked >= WHOLE)


def _told(session: Session, uids: Sequence[int]) -> dict[int, Fetched]:
    """The flags of these messages, ascending; of a range where there is little else in it."""
    pieces = [uids] if uids[-1] - uids[0] < 4 * WINDOW else _pieces(uids)
    found: dict[int, Fetched] = {}
    for piece in pieces:
        found |= session.flags_of(piece[0], piece[-1])[0]
    return found


def _pieces(uids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Parts of a sparse list, each without a large gap."""
    start = 0
    for place in range(1, len(uids) + 1):
        if place == len(uids) or uids[place] - uids[place - 1] > WINDOW:
            yield uids[start:place]
            start = place


def _within(uids: Sequence[int], ranges: Sequence[tuple[int, int]]) -> list[int]:
    """Those that are in one of the ranges."""
    highest: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        highest.append((low, max(high, highest[-1][1]) if highest else high))
    starts = [low for low, _ in highest]
    found = []
    for uid in uids:
        place = bisect_right(starts, uid)
        if place and highest[place - 1][1] >= uid:
            found.append(uid)
    return found
