"""Push: connections that wait for servers to tell of news, and the polls that follow at once.

One thread waits for all sockets; a few others log in. An account belongs to one watcher by a claim
in the database that lapses when it is not kept, so that another takes over what a dead one had.
While an account is watched, its polls come at a longer interval: the net under what a server
forgets to tell. Everything a watch can miss, before it begins or after it ends, a poll brings.
"""

import heapq
import itertools
import queue
import random
import selectors
import signal
import socket
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import redis
import structlog

from . import budgets, database, logins
from .actors import poll_account
from .broker import redis_client
from .crypto import DecryptionError
from .imap import Fault, ImapError, Watch, connect
from .imap.errors import TREATMENT
from .middleware.rate_limit import Limit, RateLimit
from .models import EmailAccount, EmailFolder
from .settings import settings

log = structlog.get_logger()

#: Seconds that a claim holds, between two times of keeping it, and between two looks for what
#: nobody has: what a dead watcher had is to be watched again within a minute, of which logins take
#: a part. To keep claims writes a row for each, to look writes none.
CLAIM, KEEP, LOOK = 30, 10, 2
#: Accounts claimed at once.
PAGE = 200
#: Seconds in which a server must answer to the end of an IDLE.
ANSWER = 30.0
#: Seconds between two polls of an account for news: a burst of mail is one piece of news.
QUIET = 0.3
#: Seconds after which an IDLE is begun anew at the least, and the share of what a server allows.
SHORTEST, SHARE = 60.0, 0.8
#: Seconds of the first and of the longest pause after a failure.
BACKOFF, BACKOFF_MAX = 15.0, 1_800.0
#: Seconds until a server without IDLE is asked again.
WITHOUT = 86_400.0
#: Seconds that a login may take in all.
LOGIN = 60.0


@dataclass(slots=True)
class Watched:
    """An account of this watcher: its connection, if there is one, and when it needs attention."""

    account_id: int
    uuid: str
    watch: Watch | None = None
    failures: int = 0
    #: When a poll for news was sent last.
    told_at: float = 0.0
    #: When the IDLE was begun, and seconds after which it is begun anew where the server ends it
    #: sooner than usual.
    idle_since: float = 0.0
    renew: float | None = None
    #: A login is under way.
    busy: bool = False
    #: The server was asked for something and should have answered at the next appointment.
    asked: bool = False
    gone: bool = False


@dataclass(slots=True)
class Opened:
    """How a login went."""

    watched: Watched
    watch: Watch | None = None
    error: ImapError | None = None
    #: Seconds to wait before the login, for its provider's sake.
    wait: float = 0.0
    #: The folder is not as it was left: something came before the watch began.
    behind: bool = True
    #: Seconds between polls beside the watch; 0: as without it, as it says nothing of some folders.
    interval: int = 0


@dataclass(order=True, slots=True)
class Appointment:
    """Something to be done with an account, unless it is ``watch``-less or has another by then."""

    moment: float
    number: int
    watched: Watched = field(compare=False)
    watch: Watch | None = field(compare=False)


class Watcher:
    """Watches accounts until it is stopped. ``run`` is the process's main loop."""

    def __init__(self) -> None:
        self.name = str(uuid.uuid4())
        self._settings = settings()
        self._selector = selectors.DefaultSelector()
        self._accounts: dict[int, Watched] = {}
        self._appointments: list[Appointment] = []
        self._numbers = itertools.count()
        self._opened: queue.SimpleQueue[Opened] = queue.SimpleQueue()
        self._news: set[int] = set()
        self._awake, self._waker = socket.socketpair()
        for end in (self._awake, self._waker):
            end.setblocking(False)
        self._selector.register(self._awake, selectors.EVENT_READ, None)
        self._limits = RateLimit(redis_client(self._settings))
        self._logins = ThreadPoolExecutor(self._settings.watcher_logins, "login")
        self._stopping = False
        self._kept_at = self._looked_at = 0.0

    @property
    def watching(self) -> int:
        """Connections that are open."""
        return sum(one.watch is not None for one in self._accounts.values())

    def stop(self, number: int = 0, frame: FrameType | None = None) -> None:  # noqa: ARG002
        """Let ``run`` return; from a signal or another thread."""
        self._stopping = True
        self._wake()

    def run(self) -> None:
        """Watch until ``stop``; then give everything back, so that others take it at once."""
        try:
            while not self._stopping:
                self._turn()
        finally:
            self._logins.shutdown(wait=False, cancel_futures=True)
            for one in self._accounts.values():
                self._close(one)
            with suppress(Exception):
                EmailAccount.give_up_watches(self.name)

    def _turn(self) -> None:
        now = time.monotonic()
        if now - self._kept_at >= KEEP:
            self._kept_at = now
            self._with_database(self._keep)
        if now - self._looked_at >= LOOK:
            self._looked_at = now
            self._with_database(self._claim)
        next_at = self._appointments[0].moment if self._appointments else now + LOOK
        wait = max(0.0, min(next_at, self._kept_at + KEEP, self._looked_at + LOOK) - now)
        if self._news:
            wait = min(wait, QUIET)
        for key, _ in self._selector.select(wait):
            if key.data is None:
                with suppress(BlockingIOError):
                    self._awake.recv(4_096)
            else:
                self._read(key.data)
        self._take_opened()
        self._keep_appointments()
        self._poll_for_news()

    # Claims

    def _with_database(self, work: Callable[[], None]) -> None:
        """While the database is away nothing is let go.

        The claims have lapsed for others only when their own time is over, and a poll too many does
        no harm.
        """
        try:
            work()
        except Exception as error:
            log.warning("watcher cannot keep its claims", error=type(error).__name__)

    def _keep(self) -> None:
        """Keep what is ours, and let go of what is not."""
        mine = EmailAccount.keep_watches(self.name, CLAIM)
        for account_id in self._accounts.keys() - mine:
            self._drop(self._accounts.pop(account_id))

    def _claim(self) -> None:
        """Take more while there is room."""
        room = self._settings.watcher_connections - len(self._accounts)
        while room > 0:
            claimed = EmailAccount.claim_watches(self.name, CLAIM, min(room, PAGE))
            for account in claimed:
                self._begin(account)
            room -= len(claimed)
            if len(claimed) < PAGE:
                return

    def _begin(self, account: EmailAccount) -> None:
        watched = Watched(account.id, account.uuid)
        before = self._accounts.pop(account.id, None)
        if before is not None:  # let go and claimed again since it was looked at
            self._drop(before)
        self._accounts[account.id] = watched
        self._login(watched)

    def _drop(self, watched: Watched) -> None:
        watched.gone = True
        self._close(watched)

    # Logins

    def _login(self, watched: Watched) -> None:
        watched.busy = True
        self._logins.submit(self._open, watched)

    def _open(self, watched: Watched) -> None:
        """In a thread: log in and begin the IDLE, or say why not."""
        opened = Opened(watched)
        try:
            opened = self._opening(watched)
        except ImapError as error:
            opened.error = error
        except DecryptionError as error:
            opened.error = ImapError(Fault.AUTH_FAILED, str(error))
        except Exception as error:
            log.warning("watch failed", account=watched.uuid, exc_info=error)
            opened.error = ImapError(Fault.CONNECTION_LOST, type(error).__name__)
        self._opened.put(opened)
        self._wake()

    def _opening(self, watched: Watched) -> Opened:
        with database.connected():
            account = EmailAccount.by_id(watched.account_id)
            folders = EmailFolder.of_account(watched.account_id)
        if account is None or watched.gone:
            return Opened(watched)
        wait = self._wait_for(account)
        if wait:
            return Opened(watched, wait=wait)
        folder = _folder_to_watch(account, folders)
        wire_name = folder.wire_name.encode("latin-1") if folder else b"INBOX"
        alone = account.folders is not None and len(account.folders) == 1
        opening = connect(logins.login_of(account), self._settings, LOGIN)
        watch = Watch(opening, wire_name, alone=alone).begin()
        same = folder is not None and (watch.uidnext, watch.messages) == (
            folder.uidnext,
            folder.server_messages,
        )
        interval = self._settings.push_poll_interval if watch.whole else 0
        return Opened(watched, watch, behind=not same, interval=interval)

    def _wait_for(self, account: EmailAccount) -> float:
        """Seconds until the provider may be logged in to; takes the login when it is now."""
        found = budgets.wait(account.id)
        if found is None:
            return BACKOFF
        host, wait = found
        pace = budgets.pace_of(host)
        logins = Limit(pace.provider, "rate", pace.logins_per_minute, budgets.MINUTE)
        return wait or self._limits.take([logins], f"{self.name}:{uuid.uuid4()}") / 1_000

    def _take_opened(self) -> None:
        while True:
            try:
                opened = self._opened.get_nowait()
            except queue.Empty:
                return
            opened.watched.busy = False
            self._settle(opened)

    def _settle(self, opened: Opened) -> None:
        watched = opened.watched
        if watched.gone:
            if opened.watch:
                opened.watch.close()
        elif opened.watch:
            watched.watch, watched.idle_since = opened.watch, time.monotonic()
            self._selector.register(opened.watch.sock, selectors.EVENT_READ, watched)
            self._note(watched, opened.interval)
            watched.asked = True
            self._later(watched, ANSWER)
            if opened.behind:
                self._news.add(watched.account_id)
            self._read(watched)
        elif opened.error:
            self._failed(watched, opened.error)
        else:
            self._later(watched, max(opened.wait, 1.0) * random.uniform(1.0, 1.3))  # noqa: S311

    def _failed(self, watched: Watched, error: ImapError) -> None:
        """Try again later. What is wrong with the login is for the polls to write down."""
        self._close(watched)
        watched.failures += 1
        longest = min(BACKOFF_MAX, BACKOFF * 2 ** min(watched.failures - 1, 10))
        pause = error.retry_after or TREATMENT[error.fault].pause or longest
        if error.fault is Fault.REFUSED and "no IDLE" in str(error):
            pause = WITHOUT
        log.info("watch ended", account=watched.uuid, reason=str(error), again=round(pause))
        self._note(watched, None, str(error))
        self._later(watched, pause * random.uniform(0.8, 1.2))  # noqa: S311

    def _note(self, watched: Watched, interval: int | None, error: str | None = None) -> None:
        try:
            EmailAccount.note_watch(watched.account_id, self.name, interval, error)
        except Exception as problem:
            log.warning("watcher cannot write", error=type(problem).__name__)

    # Connections

    def _read(self, watched: Watched) -> None:
        if watched.watch is None:
            return
        try:
            if watched.watch.read():
                self._news.add(watched.account_id)
        except ImapError as error:
            # Something may have come between the last word and the end.
            self._news.add(watched.account_id)
            self._learn(watched)
            self._failed(watched, error)

    def _learn(self, watched: Watched) -> None:
        """Begin the next IDLE anew before the server would end it as it did this one.

        Some end it after five minutes. Others lose connections now and then: to begin a few more
        costs little.
        """
        lasted = time.monotonic() - watched.idle_since
        if not watched.asked and lasted >= SHORTEST:
            usual = watched.renew or self._settings.push_renew
            watched.renew = max(SHORTEST, min(usual, lasted * SHARE))

    def _close(self, watched: Watched) -> None:
        if watched.watch is not None:
            with suppress(KeyError, ValueError):
                self._selector.unregister(watched.watch.sock)
            watched.watch.close()
            watched.watch = None

    def _later(self, watched: Watched, seconds: float) -> None:
        moment = time.monotonic() + seconds
        appointment = Appointment(moment, next(self._numbers), watched, watched.watch)
        heapq.heappush(self._appointments, appointment)

    def _keep_appointments(self) -> None:
        now = time.monotonic()
        while self._appointments and self._appointments[0].moment <= now:
            due = heapq.heappop(self._appointments)
            watched = due.watched
            if watched.gone or watched.busy or watched.watch is not due.watch:
                continue
            if watched.watch is None:
                self._login(watched)
            else:
                self._look_after(watched, watched.watch)

    def _look_after(self, watched: Watched, watch: Watch) -> None:
        """Begin the IDLE anew from time to time, and see that the server answers.

        Servers log out who says nothing for half an hour (RFC 2177), and say nothing themselves
        when the connection is half open.
        """
        try:
            if not watched.asked:
                watch.renew()
                watched.idle_since = time.monotonic()
            elif not watch.answered:
                raise ImapError(Fault.TIMED_OUT, "the server does not answer to IDLE")
        except ImapError as error:
            self._news.add(watched.account_id)
            self._failed(watched, error)
            return
        # Only now: a server may answer to logins and end each IDLE.
        watched.failures = 0
        watched.asked = not watched.asked
        # Spread, so that not all are renewed in the same second.
        usual = watched.renew or self._settings.push_renew
        renew = usual * random.uniform(0.8, 1.0)  # noqa: S311
        self._later(watched, ANSWER if watched.asked else renew)

    # Polls

    def _poll_for_news(self) -> None:
        """Send the polls of accounts with news; without a queue they are due all the same."""
        now = time.monotonic()
        ready = [one for one in self._news if now - self._told_at(one) >= QUIET]
        if not ready:
            return
        for account_id in ready:
            self._news.discard(account_id)
            if watched := self._accounts.get(account_id):
                watched.told_at = now
        try:
            EmailAccount.expect_polls(ready)
            messages: list[Any] = [(poll_account.message(account_id), None) for account_id in ready]
            poll_account.broker.enqueue_all(messages)
        except redis.RedisError as error:
            log.warning("polls not enqueued; the next tick will", error=type(error).__name__)
            with suppress(*database.AWAY):  # then they count as queued for two minutes
                EmailAccount.mark_unqueued(ready)
        except Exception as error:
            log.warning("news kept for later", error=type(error).__name__)
            self._news.update(ready)

    def _told_at(self, account_id: int) -> float:
        watched = self._accounts.get(account_id)
        return watched.told_at if watched else 0.0

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):
            self._waker.send(b"!")


def _folder_to_watch(account: EmailAccount, folders: list[EmailFolder]) -> EmailFolder | None:
    """INBOX, or the first of the folders that the account is about."""
    present = [folder for folder in folders if folder.gone_at is None]
    wanted = account.folders
    if wanted is not None:
        present = [folder for folder in present if folder.name in wanted]
    inbox = [folder for folder in present if folder.name.upper() == "INBOX"]
    return next(iter(inbox or present), None)


def run() -> None:
    """The ``watcher`` process: watch until SIGTERM or SIGINT."""
    watcher = Watcher()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, watcher.stop)
    watcher.run()
