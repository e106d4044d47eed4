"""Poll one account: lease it, open one connection, bring in its mail, write down how it went."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime, timedelta
from typing import Any

import dramatiq
import redis
import structlog
from dramatiq.threading import Interrupt

from .. import accounts, budgets, counters, database, logins, rhythm, runtime, turns
from ..blobs import StoreUnavailable
from ..broker import BACKFILL, POLL, Queued
from ..crypto import DataKeyError, DecryptionError
from ..imap import Fault, ImapError, Login, Session, connect, providers
from ..imap.errors import TREATMENT, Treatment
from ..middleware.rate_limit import Limit
from ..models import AccountState, EmailAccount, EmailFolder, LeaseLost
from ..settings import settings
from ..sync import BROKEN, LEASE, AccountSync, Outcome
from .process import import_messages, process_message

log = structlog.get_logger()

#: Longest pause, in seconds, after a failed poll.
BACKOFF_MAX = 3_600
#: Seconds until the next try when no key opens the credential: only an operator can help.
UNREADABLE_PAUSE = 900
#: Bounds of the histogram of lateness, in seconds.
LATENESS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 3_600)
#: Failures of polls that no server is to blame for.
OWN_FAILURES = (
    "storage_unavailable",
    "credential_unreadable",
    "data_key_unreadable",
    "internal_error",
)
#: Seconds between the scheduler's ticks, which come with whole minutes; and how long after these
#: the polls that a tick finds due may begin, when the queue is busy.
TICK, TICK_LATE = 60, 3


class ImapLimits:
    """Connections and logins per account and per provider, over all processes."""

    def terms(self, account_id: int, *_: Any) -> tuple[float, Sequence[Limit]]:
        return budgets.login_terms(account_id)

    def postponed(self, seconds: float, account_id: int, *_: Any) -> None:
        with database.transaction(durable=False):
            start = database.now() + timedelta(seconds=seconds)
            EmailAccount.mark_queued([account_id], start)


limits = ImapLimits()


@dramatiq.actor(queue_name=POLL, priority=0, limits=limits, notify_shutdown=True)
def poll_account(account_id: int, due: int | None = None) -> None:
    """Poll an account if it is due; ``due`` is the time (ms) that this message was sent for."""
    poll(account_id, due)


@dramatiq.actor(queue_name=POLL, priority=-10)
def begin_polls(polls: dict[str, int]) -> None:
    """Send the polls, account to due time, of accounts that fall due in the same second.

    One delayed message for all of them: each of its own would pass through the queue twice.
    """
    poll_account.broker.enqueue_all(
        [(poll_account.message(int(account_id), due), None) for account_id, due in polls.items()]
    )


@dramatiq.actor(queue_name=BACKFILL, priority=50, limits=limits, notify_shutdown=True)
def continue_import(account_id: int, after: int | None = None) -> None:
    """Go on with an account whose mail did not fit into one time slice.

    Only behind the poll that sent this: one that came in between has sent its own continuation.

    Parameters:
      after: the token of that poll's lease.
    """
    poll(account_id, None, after)


def poll(account_id: int, due: int | None, after: int | None = None) -> None:
    """One poll from lease to release. Runs twice, late or never without harm."""
    account = EmailAccount.lease(account_id, due, LEASE, after)
    if account is None:
        counters.add("duplicate_delivery", 1, "poll")
        return
    _count_lateness(account.last_lateness_ms)
    started = time.monotonic()
    columns: dict[str, Any] = {}
    outcome = Outcome()
    try:
        with turns.working():
            outcome = _synchronise(account)
        # The database's clock told when the poll began; it is not asked again for when it ended.
        begun: datetime = account.last_poll_at
        ended = begun + timedelta(seconds=time.monotonic() - started)
        columns = _failure(account, outcome.error) if outcome.error else _success(account, ended)
        columns |= _rhythm(account, outcome, ended)
        if outcome.error and outcome.error.fault in BROKEN:
            # What came in was new: the next poll goes on behind it, without a longer pause.
            columns["failures"] = 1
            del columns["next_poll_at"]
    except LeaseLost:
        log.info("poll ended: the account was taken, paused or deleted", account=account.uuid)
        return
    except (ImapError, StoreUnavailable) as error:
        columns = _failure(account, error)
        log.warning("poll failed", account=account.uuid, reason=str(error))
    except DataKeyError as error:
        words = f"{error}: put the key back there"
        columns = _failed(account, "data_key_unreadable", words, UNREADABLE_PAUSE)
        log.error("poll failed", account=account.uuid, reason=words)
    except DecryptionError as error:
        words = f"{error}: put the key back there, or give the password again"
        columns = _failed(account, "credential_unreadable", words, UNREADABLE_PAUSE)
        log.error("poll failed", account=account.uuid, reason=words)
    except Exception as error:
        # A deletion takes an account's temporary files from under whatever still works on it.
        if accounts.empty_if_deleted(account.id, account.uuid):
            return
        words = f"an unexpected {type(error).__name__} here; the log has the details"
        columns = _failed(account, "internal_error", words)
        raise
    finally:
        columns["last_poll_ms"] = int((time.monotonic() - started) * 1_000)
        released = _release(account, columns)
    if released:
        _follow_up(account, outcome)


def _release(account: EmailAccount, columns: dict[str, Any]) -> bool:
    """End the poll's lease, also when this process is told to end just now.

    Returns:
      false when the account is not ours any more: who has it now decides what comes next.
    """
    try:
        released = account.release(**columns)
    except Interrupt:
        account.release(**columns)
        raise
    if not released:
        accounts.empty_if_deleted(account.id, account.uuid)
    return released


def _count_lateness(milliseconds: int) -> None:
    """Only of polls that were due: another slice of an import comes before its time."""
    if milliseconds:
        bound = next((one for one in LATENESS if milliseconds <= one * 1_000), "")
        counters.add("poll_lateness", 1, str(bound))
        counters.add("poll_lateness_ms", milliseconds)


def _synchronise(account: EmailAccount) -> Outcome:
    config = settings()
    # Never longer than the interval: new mail is looked for at the start of each slice.
    until = time.monotonic() + min(config.poll_slice, account.poll_interval)
    sessions = Sessions(account)

    def run() -> Outcome:
        storage = runtime.storage()
        return AccountSync(account, sessions.open, storage, config, announce, until).run()

    try:
        outcome = run()
        if outcome.error is None or not sessions.expired(outcome.error):
            return outcome
    except ImapError as error:
        if not sessions.expired(error):
            raise
    return run()


class Sessions:
    """Opens the sessions of one poll; an access token that is refused is renewed once for each."""

    def __init__(self, account: EmailAccount) -> None:
        self._account = account
        self._deadline = time.monotonic() + settings().poll_deadline
        self._login: Login | None = None

    @contextmanager
    def open(self, after: ImapError | None = None) -> Iterator[Session]:
        """A session for the block.

        Parameters:
          after: what ended the session before; an access token that ended it is renewed first.

        Raises:
          ImapError: of every kind.
          DecryptionError: no key of the ring opens the credential.
        """
        if after is not None:
            self.expired(after)
        with ExitStack() as stack:
            login = logins.login_of(self._account)
            try:
                session = stack.enter_context(self._connect(login))
            except ImapError as error:
                if not self._renew(error):
                    raise
                session = stack.enter_context(self._connect(logins.login_of(self._account)))
            yield session

    def expired(self, error: ImapError) -> bool:
        """Whether the server ended a session because of its token, and there is another now."""
        return error.fault is Fault.SESSION_EXPIRED and self._renew(error)

    def _connect(self, login: Login) -> AbstractContextManager[Session]:
        self._login = login
        return connect(login, settings(), self._deadline - time.monotonic())

    def _renew(self, error: ImapError) -> bool:
        return self._login is not None and logins.renew(self._account, self._login, error.fault)


def announce(message_ids: Sequence[int], imported: bool) -> None:
    """Enqueue the processing of committed messages. If that fails, the sweeper does it."""
    if imported:
        messages: list[Queued] = [(import_messages.message(list(message_ids)), None)]
    else:
        messages = [(process_message.message(message_id), None) for message_id in message_ids]
    try:
        with turns.waiting():
            process_message.broker.enqueue_all(messages)
    except redis.RedisError as error:
        log.warning("not enqueued; the sweeper will", messages=len(message_ids), error=str(error))


def _success(account: EmailAccount, moment: datetime) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "last_success_at": moment,
        "failures": 0,
        "auth_failures": 0,
        "not_before": None,
        "last_error": None,
        "last_error_kind": None,
    }
    if account.imported_at is None and _imported(account):
        columns["imported_at"] = columns["last_success_at"]
    return columns


def _rhythm(account: EmailAccount, outcome: Outcome, moment: datetime) -> dict[str, Any]:
    """What the poll says of how often mail comes, for accounts that are polled accordingly."""
    if account.poll_interval_max is None or account.imported_at is None or outcome.error:
        return {}
    found = rhythm.updated(account.rhythm, moment, outcome.messages)
    limits = account.poll_interval, account.poll_interval_max
    seconds = rhythm.interval(found, moment, *limits)
    return {"rhythm": found, "adapted_interval": seconds}


def _imported(account: EmailAccount) -> bool:
    table = EmailFolder
    with database.connected():
        open_windows = table.select().where(
            table.account == account,
            table.gone_at.is_null(),
            table.last_error.is_null(),
            table.low.is_null() | (table.low > 1),
        )
        wanted = account.folders
        return not any(wanted is None or folder.name in wanted for folder in open_windows)


def _failure(account: EmailAccount, error: ImapError | StoreUnavailable) -> dict[str, Any]:
    """The columns of a failed poll: what happened, and when to try again."""
    if isinstance(error, StoreUnavailable):
        return _failed(account, "storage_unavailable", str(error))
    treatment = TREATMENT[error.fault]
    columns = _refused(account, error, treatment)
    if treatment.limit:
        columns["not_before"] = columns["next_poll_at"]
        if error.greeting:
            pause = error.retry_after or treatment.pause or BACKOFF_MAX
            budgets.leave_alone(account.host, pause, str(error))
    return columns


def _refused(account: EmailAccount, error: ImapError, treatment: Treatment) -> dict[str, Any]:
    words = providers.explained(error, account.host)
    if error.retry_after is not None:
        # The server said when. That is no failure, and coming earlier would be one.
        pause = timedelta(seconds=error.retry_after)
        return _outcome(error.fault, words, account.failures, database.now() + pause)
    if treatment.rest_of_day:
        # Some minutes into the day, so that not everybody comes at midnight.
        late = timedelta(seconds=random.uniform(60, 300))  # noqa: S311
        again = budgets.next_day(database.now()) + late
        return _outcome(error.fault, words, account.failures, again)
    columns = _failed(account, error.fault, words, treatment.pause)
    if treatment.refusals:
        columns["auth_failures"] = account.auth_failures + 1
        if columns["auth_failures"] >= treatment.refusals:
            columns["state"] = AccountState.AUTH_FAILED
    return columns


def _failed(
    account: EmailAccount, kind: str, words: str, pause: float | None = None
) -> dict[str, Any]:
    """A failure that counts: each further one doubles the pause, up to an hour."""
    first = account.poll_interval if pause is None else pause
    seconds = min(BACKOFF_MAX, first * 2 ** min(account.failures, 12))
    # Spread, so that the accounts of one failed host do not come back together.
    seconds = max(5, seconds * random.uniform(0.8, 1.2))  # noqa: S311
    again = database.now() + timedelta(seconds=seconds)
    return _outcome(kind, words, account.failures + 1, again)


def _outcome(kind: str, words: str, failures: int, again: datetime) -> dict[str, Any]:
    counters.add("poll_failures", 1, kind)
    return {
        "failures": failures,
        "last_error": words,
        "last_error_kind": kind,
        "last_error_at": database.now(),
        "next_poll_at": again,
    }


def _follow_up(account: EmailAccount, outcome: Outcome) -> None:
    """Enqueue what follows at once: the rest of the import, or a next poll before the next tick.

    And a poll that was asked for while this one ran, which may have looked too early for it.
    """
    messages: list[Queued] = []
    _bring_forward(account)
    if account.asked_for():
        messages.append((poll_account.message(account.id), None))
    if outcome.unfinished:
        messages.append((continue_import.message(account.id, account.lease_token), None))
    if _before_tick(account) and (next_poll := _next_poll(account.id)):
        messages.append(next_poll)
    if not messages:
        return
    try:
        poll_account.broker.enqueue_all(messages)
    except redis.RedisError as error:
        log.warning("not enqueued; the next tick will", error=str(error))
        EmailAccount.mark_unqueued([account.id])


def _bring_forward(account: EmailAccount) -> None:
    """What was found shows in the poll after the next; mail that came just now makes it sooner."""
    if account.poll_interval_max is not None and account.last_error_kind is None:
        account.bring_forward()


def _before_tick(account: EmailAccount) -> bool:
    """Whether no tick would send the next poll in time, so that this one has to.

    That is so with each short interval, and when a poll on the way to its place in a longer one is
    due about when the next tick comes, which is the first that can find it: this poll was under
    way until now.
    """
    if account.poll_interval < TICK:
        return True
    ended = account.last_poll_at.timestamp() + account.last_poll_ms / 1_000
    return bool(account.next_poll_at.timestamp() < (ended // TICK + 1) * TICK + TICK_LATE)


def _next_poll(account_id: int) -> Queued | None:
    """The next poll of an account that is due soon, unless it is queued already."""
    with database.connected():
        account = EmailAccount.by_id(account_id)
    if account is None or account.state != AccountState.ACTIVE or account.queued_until is not None:
        return None
    ahead = account.next_poll_at - database.now()
    if ahead >= timedelta(seconds=TICK):
        return None
    with database.transaction(durable=False):
        EmailAccount.mark_queued([account.id], account.next_poll_at)
    delay = max(1, int(ahead.total_seconds() * 1_000))
    return poll_account.message(account.id, account.due), delay
