"""mailpoll in detail: CPU by process, the scheduler's own polls, memory, the API meanwhile."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import cycle

import urllib3

from bench.contenders.contender import Took, wait_until
from bench.contenders.mailpoll import RARELY, Api, Mailpoll
from bench.mailboxes import Mailboxes
from mailpoll.settings import Settings

#: Requests a second while mail is imported.
READS = 10
LARGE = 50_000_000
#: Threads of a poller, as they come.
POLLER_THREADS: int = Settings.model_fields["poller_threads"].default
#: Seconds for which the scheduler's polls are watched, and before that the same processes idle.
WATCHED, IDLE = 120, 60


@dataclass(slots=True)
class Basics:
    """The three phases: what each took, and the CPU seconds of each process in the import."""

    cold_import: Took
    idle: Took
    news: Took
    verified: int
    cpu: dict[str, float]
    servers_cpu: dict[str, float]
    #: Bytes of the largest process of each kind.
    peaks: dict[str, int]


def basics(
    mailpoll: Mailpoll, mail: Mailboxes, meanwhile: AbstractContextManager[object]
) -> Basics:
    """Import all, poll without news, poll with one new message in every box.

    Parameters:
      meanwhile: entered for as long as the import runs.
    """
    messages = len(mail.sent)
    before, servers = mailpoll.usage.cpu_by_name(), _servers_cpu(mailpoll)
    with meanwhile:
        cold_import = mailpoll.cold_import(messages)
    cpu = _since(before, mailpoll.usage.cpu_by_name())
    servers_cpu = _since(servers, _servers_cpu(mailpoll))
    os.sync()  # else the next flush would pay for what the import left to the kernel
    idle = mailpoll.poll(messages)
    with mail.news():
        news = mailpoll.poll(len(mail.sent))
        verified = mailpoll.verified(mail.sent)
    peaks = mailpoll.usage.peak_by_name()
    return Basics(cold_import, idle, news, verified, cpu, servers_cpu, peaks)


def _servers_cpu(mailpoll: Mailpoll) -> dict[str, float]:
    return {name: usage.total_cpu() for name, usage in mailpoll.servers.items()}


def _since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    return {name: seconds - before.get(name, 0) for name, seconds in now.items()}


def scheduled_polls(mailpoll: Mailpoll) -> float:
    """CPU seconds for each poll without news that the scheduler itself sends, all in.

    Accounts with an interval of a minute are watched for two minutes. What the same processes take
    in a minute without a poll, twice, is taken off.
    """
    _set_interval(mailpoll, RARELY)
    mailpoll.usage.settle()
    idle, _ = _watch(mailpoll, IDLE)
    _set_interval(mailpoll, 60)
    first = mailpoll.polls()
    accounts = len(mailpoll.server.users)
    wait_until(lambda: mailpoll.polls() >= first + accounts, 1, 150)
    mailpoll.usage.settle(patience=5)
    busy, polls = _watch(mailpoll, WATCHED)
    _set_interval(mailpoll, RARELY)
    return (busy - idle * WATCHED / IDLE) / polls


def _watch(mailpoll: Mailpoll, seconds: float) -> tuple[float, int]:
    """The CPU and the polls of so many seconds."""
    cpu, polls = mailpoll.usage.total_cpu(), mailpoll.polls()
    time.sleep(seconds)
    return mailpoll.usage.total_cpu() - cpu, mailpoll.polls() - polls


def _set_interval(mailpoll: Mailpoll, seconds: int) -> None:
    for account in mailpoll.api("GET", "/admin/email-accounts?limit=200")["items"]:
        path = f"/admin/email-accounts/{account['id']}"
        mailpoll.api("PATCH", path, {"poll_interval": seconds})


def large_message(mailpoll: Mailpoll, mail: Mailboxes) -> dict[str, int]:
    """Bytes of the largest process of each kind, once a message of 50 MB has come in."""
    with mail.large(LARGE):
        mailpoll.poll(len(mail.sent))
        if mailpoll.verified(mail.sent) < len(mail.sent):
            raise RuntimeError("the large message is not what was sent")
    return mailpoll.usage.peak_by_name()


@dataclass(slots=True)
class Reads:
    """How long requests took, in seconds by their kind, and how many failed."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)

    def percentile(self, share: float, *kinds: str) -> float:
        """Of these kinds of requests, or of all."""
        times = sorted(
            second
            for kind, those in self.seconds.items()
            for second in those
            if not kinds or kind in kinds
        )
        return times[min(len(times) - 1, int(len(times) * share))]


#: A kind of request, and how it is made.
Requests = dict[str, Callable[[], None]]


@contextmanager
def requesting(requests: Requests, reads: Reads) -> Iterator[None]:
    """Make these requests in turn at a steady rate for as long as the block runs."""
    ended = threading.Event()
    thread = threading.Thread(target=_read, args=(requests, reads, ended))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _read(requests: Requests, reads: Reads, ended: threading.Event) -> None:
    due = time.monotonic()
    for kind, read in cycle(requests.items()):
        due += 1 / READS
        if ended.wait(max(0, due - time.monotonic())):
            return
        start = time.monotonic()
        try:
            read()
        except (RuntimeError, urllib3.exceptions.HTTPError):
            reads.failed[kind] += 1
        reads.seconds.setdefault(kind, []).append(time.monotonic() - start)


def reads_of(api: Api) -> Requests:
    """One request of each kind, about whatever account and message was seen last."""
    account, message = "", 0

    def accounts() -> None:
        nonlocal account
        for item in api("GET", "/admin/email-accounts?limit=50")["items"]:
            account = item["id"]

    def one_account() -> None:
        if account:
            api("GET", f"/admin/email-accounts/{account}")

    def messages() -> None:
        nonlocal message
        if account:
            path = f"/admin/email-accounts/{account}/messages?limit=50"
            for item in api("GET", path)["items"]:
                message = item["id"]

    def one_message() -> None:
        if message:
            api("GET", f"/admin/messages/{message}")

    def stats() -> None:
        api("GET", "/admin/stats")

    return {
        "accounts": accounts,
        "account": one_account,
        "messages": messages,
        "message": one_message,
        "stats": stats,
    }
