"""The scrub: within some days every stored blob is read back and hashed, a few of them each minute.

What is damaged is healed as ``mailpoll fsck --repair`` does it: from the other store, from the
server, an attachment from its message. What cannot be healed yet is named, kept in a table, and
looked at again every hour.

A run asks the server of an account over one session, within the limits that polls have, and only
while the account is polled and its polls succeed: providers lock accounts that go on trying.
"""

import math
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import peewee
import structlog
from peewee import fn

from . import budgets, database, runtime
from .blobs import StoreUnavailable, blob_key
from .crypto import DataKeyError
from .fsck import Difference, Kind, Outcome, Repair, repair_one
from .fsck.damage import TABLES, Named, Row, State, broken, columns_of, row_of, state_of
from .fsck.server import Mailbox
from .middleware.rate_limit import RateLimit
from .models import (
    AccountState,
    EmailAccount,
    EmailAttachment,
    EmailDamage,
    EmailFolder,
    EmailRawMessage,
    EmailScrub,
)
from .settings import settings
from .sync.download import Body

log = structlog.get_logger()

#: Seconds between two runs, and for how many of them one may work.
TICK = 60
SLICE = 10.0
#: Seconds without a note of progress after which a run counts as dead.
LEASE = 900
#: Rows between two notes of how far it is.
PAGE = 100
#: Seconds that healing waits for a poll of the account to end.
PATIENCE = 5.0
#: The pause before a blob that could not be healed is looked at again, and one that is lost.
AGAIN = timedelta(hours=1)
LOST = timedelta(days=1)

ABSENT = (Kind.BLOB_MISSING, Kind.BLOB_MISPLACED)


class Server(Mailbox):
    """The server of an account for one run: one session, as a poll might begin one, or none.

    Parameters:
      limits: of sessions and logins, over all processes.
    """

    def __init__(self, account: EmailAccount, limits: RateLimit) -> None:
        super().__init__(account)
        self._limits = limits
        self._holder = f"scrub:{uuid4()}"
        self._refusal: str | None = None

    def refusal(self) -> str:
        """Looks once, and takes the account's share of the limits where it may go on."""
        if self._refusal is None:
            self._refusal = super().refusal() or self._unpolled() or self._enter()
        return self._refusal

    def _unpolled(self) -> str:
        """What keeps the account from being polled, as it is by now."""
        with database.connected():
            row = EmailAccount.by_id(self.account.id)
        if row is None or row.state != AccountState.ACTIVE:
            return "the account is not polled"
        return f"its polls fail: {row.last_error}" if row.failures else ""

    def _enter(self) -> str:
        seconds, limits = budgets.login_terms(self.account.id)
        wait = seconds or self._limits.hold(limits, self._holder) / 1_000
        return f"it may be logged in to in {wait:.0f} s again" if wait else ""

    def fetch(self, folder: EmailFolder, uid: int, size: int | None) -> Body | None:
        """As ``Mailbox`` does, out of the day's bytes; new mail keeps its share of them."""
        budgets.spend(self.account, size or 0, importing=True)
        return super().fetch(folder, uid, size)

    def close(self) -> None:
        """End the session; there is no other one in this run."""
        self._refusal = self._refusal or "its session ended"
        super().close()
        self._limits.give_back(self._holder)


class TakenOver(Exception):
    """This run took so long that another one began."""


def run(limits: RateLimit) -> None:
    """Do what falls due now. Runs twice, late or never without harm.

    Parameters:
      limits: of sessions and logins, over all processes.
    """
    if not settings().scrub_days:
        return
    state = _take()
    if state is None:
        return
    work = Slice(state, limits)
    try:
        work.look_again()
        work.go_on()
        work.end()
    except StoreUnavailable as error:
        log.info("the scrub waits: a store is away", error=str(error))
        work.end()
    except TakenOver:
        log.warning("a run of the scrub was taken for dead")
    finally:
        work.hang_up()


def _take() -> EmailScrub | None:
    """How far it is, under a lease, in a new round if one is due; ``None`` while another runs."""
    moment, table = database.now(), EmailScrub
    with database.transaction(durable=False):
        state = table.get_or_none()
        if state is None:
            table.insert(id=1, started_at=moment, **_last_ids()).on_conflict_ignore().execute()
            state = table.get()
        if state.lease_until and state.lease_until > moment:
            return None
        columns = {"token": state.token + 1, "lease_until": moment + timedelta(seconds=LEASE)}
        if state.position >= state.end and moment >= state.started_at + _period():
            columns |= {"started_at": moment, "position": 0, **_last_ids()}
        mine = database.update(table, columns, "id = 1 AND token = ?", state.token)
        return table.get() if mine else None


def _period() -> timedelta:
    return max(timedelta(days=settings().scrub_days), timedelta.resolution)


def _last_ids() -> dict[str, int]:
    tables = {"last_message_id": EmailRawMessage, "last_attachment_id": EmailAttachment}
    return {name: table.select(fn.MAX(table.id)).scalar() or 0 for name, table in tables.items()}


@dataclass(slots=True)
class Counts:
    """What was found since the last note."""

    blobs: int = 0
    bytes: int = 0
    corrupt: int = 0
    missing: int = 0
    healed: int = 0


class Slice:
    """The work of one run.

    Parameters:
      state: how far the scrub is, under a lease.
      limits: of sessions and logins.
    """

    def __init__(self, state: EmailScrub, limits: RateLimit) -> None:
        self._state = state
        self._limits = limits
        self._servers: dict[int, Server] = {}
        self._counts = Counts()
        self._until = time.monotonic() + SLICE
        self._bytes_left = settings().scrub_rate * TICK

    def look_again(self) -> None:
        """Look at what was damaged: somebody may have mended it, or it can be healed now."""
        table = EmailDamage
        with database.connected():
            query = table.select(table, EmailAccount).join(EmailAccount)
            due = query.where(table.next_attempt_at <= database.now())
            # In any order: one of them may end its account's session each time.
            damages = list(due.order_by(fn.RANDOM()).limit(PAGE))
        for damage in damages:
            if not self._may_go_on:
                return
            row = _row_of(damage)
            if row is None or self._whole(damage.account, row):
                self._counts.healed += row is not None
                with database.transaction(durable=False):
                    table.delete().where(table.id == damage.id).execute()

    def go_on(self) -> None:
        """Check the rows that fall due, in the order of their ids: messages, then attachments."""
        spent = database.now() - self._state.started_at + timedelta(seconds=TICK)
        due = math.ceil(self._state.end * min(1.0, spent / _period()))
        while self._may_go_on and self._state.position < due:
            found, position = self._page(due)
            reached = self._state.position
            try:
                for account, row, place in found:
                    self._whole(account, row)
                    reached = place
                    if not self._may_go_on:
                        break
                else:
                    reached = position
            finally:
                self._note(position=reached)
        if self._state.position >= self._state.end and not self._finished:
            self._note(finished_at=database.now())
            log.info("scrub finished", blobs=self._state.blobs, started_at=self._state.started_at)

    def end(self) -> None:
        """Give the lease back."""
        self._note(lease_until=None)

    def hang_up(self) -> None:
        """End the sessions with servers."""
        for server in self._servers.values():
            server.close()

    def _server(self, account: EmailAccount) -> Server:
        if account.id not in self._servers:
            self._servers[account.id] = Server(account, self._limits)
        return self._servers[account.id]

    @property
    def _may_go_on(self) -> bool:
        return time.monotonic() < self._until and self._bytes_left > 0

    @property
    def _finished(self) -> bool:
        finished = self._state.finished_at
        return finished is not None and finished >= self._state.started_at

    def _page(self, due: int) -> tuple[list[tuple[EmailAccount, Row, int]], int]:
        """The next rows, each with its position, and the position behind all of them."""
        state = self._state
        messages = state.position < state.last_message_id
        table: Any = EmailRawMessage if messages else EmailAttachment
        offset = 0 if messages else state.last_message_id
        end = min(due, state.last_message_id) if messages else due
        with database.connected():
            rows = list(
                table.select(*columns_of(table), EmailAccount)
                .join(EmailAccount)
                .where(
                    table.id > state.position - offset,
                    table.id <= end - offset,
                    EmailAccount.state != AccountState.DELETING,
                )
                .order_by(table.id)
                .limit(PAGE)
            )
        found = [(row.account, _keyed(row.account, row), row.id + offset) for row in rows]
        return found, found[-1][2] if len(rows) == PAGE else end

    def _whole(self, account: EmailAccount, row: Row) -> bool:
        """Whether a blob is whole, by now."""
        if row.storage_type not in runtime.storage().stores:
            reason = f"no store of type {row.storage_type} is configured here"
            return self._unreadable(account, row, reason)
        try:
            whole = state_of(row) is State.WHOLE
            self._counts.blobs += 1
            self._counts.bytes += row.size
            self._bytes_left -= row.size
            return whole or all(
                self._heal(account, row, one)
                for one, _ in broken(account, row, self._server(account))
            )
        except DataKeyError as error:
            return self._unreadable(account, row, str(error))

    def _unreadable(self, account: EmailAccount, row: Row, reason: str) -> bool:
        """Name what no repair can mend, and go on: it is looked at again as all that is damaged."""
        log.error("a stored blob cannot be read", key=row.storage_key, error=reason)
        self._counts.blobs += 1
        self._counts.corrupt += not _known(account, row)
        _remember(account, row, Kind.BLOB_UNREADABLE, Repair(Outcome.LEFT, reason))
        return False

    def _heal(self, account: EmailAccount, row: Row, difference: Difference) -> bool:
        done = repair_one(difference, PATIENCE)
        known = _known(account, row)
        if not known:
            self._counts.missing += difference.kind in ABSENT
            self._counts.corrupt += difference.kind not in ABSENT
        log.error(
            "a stored blob is damaged",
            account=account.uuid,
            address=account.address,
            message=row.message_id,
            key=row.storage_key,
            kind=str(difference.kind),
            outcome=str(done.outcome),
            reason=done.reason,
        )
        if done.outcome is Outcome.REPAIRED:
            self._counts.healed += not known
            return True
        _remember(account, row, difference.kind, done)
        return False

    def _note(self, **columns: Any) -> None:
        """Write down how far it is and what was found, and go on having the lease."""
        state, counts = self._state, asdict(self._counts)
        columns = {"lease_until": database.now() + timedelta(seconds=LEASE)} | columns
        columns |= {name: getattr(state, name) + more for name, more in counts.items()}
        with database.transaction(durable=False):
            if not database.update(EmailScrub, columns, "id = 1 AND token = ?", state.token):
                raise TakenOver
        for name, value in columns.items():
            setattr(state, name, value)
        self._counts = Counts()


def _keyed(account: EmailAccount, found: Named) -> Row:
    """A row with the key that its content has, whatever the row says."""
    row = row_of(found)
    return replace(row, storage_key=blob_key(account.uuid, row.sha256))


def _row_of(damage: EmailDamage) -> Row | None:
    """A row that names the damaged blob, if there is one still."""
    sha256 = damage.storage_key.rpartition("/")[2]
    with database.connected():
        for table in TABLES:
            found = table.get_or_none(table.account == damage.account, table.sha256 == sha256)
            if found is not None:
                return _keyed(damage.account, found)
    return None


def _known(account: EmailAccount, row: Row) -> bool:
    table = EmailDamage
    same = (table.account == account.id) & (table.storage_key == row.storage_key)
    with database.connected():
        return bool(table.select().where(same).exists())


def _remember(account: EmailAccount, row: Row, kind: Kind, done: Repair) -> None:
    """Keep the name of what is damaged until it is whole again."""
    table, moment = EmailDamage, database.now()
    columns = {
        "kind": str(kind),
        "reason": done.reason or str(done.outcome),
        "next_attempt_at": moment + (LOST if done.outcome is Outcome.LOST else AGAIN),
    }
    try:
        with database.transaction(durable=False):
            table.insert(
                account=account.id,
                message_id=row.message_id,
                storage_key=row.storage_key,
                found_at=moment,
                **columns,
            ).on_conflict(
                conflict_target=(table.account, table.storage_key), update=columns
            ).execute()
    except peewee.IntegrityError:
        log.info("the account of a damaged blob was deleted", account=account.uuid)
