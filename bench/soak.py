"""Let everything run for long, with accounts that come and go, and faults.

``python -m bench.soak [--minutes 120] [--accounts 500] [--rate 5] [--set embedded] [--json]``.
Mail of all sizes comes in, five accounts are added and five deleted each minute, and every five
minutes something is broken, much the same in both halves, so that they can be compared. Processes
are killed once in each half, first of all in the first and last of all in the second, in the same
order: memory, files and threads of each can be followed for as long between the two.
"""

import argparse
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psycopg
import redis
import urllib3
from peewee import fn

from bench import corpus, wide
from bench.contenders.mailpoll import Api
from bench.results import DIRECTORY
from bench.samples import ROLES, Samples, brief, document, figures_of
from bench.search import Language, lines
from bench.usage import Usage
from bench.wide import SETS, Polls, Run, WideDovecot, say, user, wait_until
from mailpoll import database
from mailpoll.models import EmailAccount, EmailRawMessage
from tests.servers.dovecot import Dovecot
from tests.servers.valkey import Flavour, Valkey

#: Seconds between two samples, and between two faults.
SAMPLE, FAULT = 10, 300
#: Seconds between two polls of an account.
INTERVAL = 60
#: Accounts that are added, and deleted, each minute.
TURNOVER = 5
#: Bytes: sizes are log-normal with a mean of 75 kB, and one message in 2,000 has this size.
MEDIAN, SIGMA, LARGE = 20_000, 1.626, 25_000_000
#: Characters that a byte takes in an attachment, line ends included.
IN_BASE64 = 4 / 3 * 78 / 76

#: What breaks parsers, one message in a hundred.
HOSTILE = (
    b"Content-Type: multipart/mixed; boundary=" + b"x" * 5_000 + b"\r\n\r\n--y\r\n" * 2_000,
    b"Subject: =?utf-8?b?" + b"////" * 20_000 + b"?=\r\n\r\n\0\0\0",
    b"Content-Type: text/plain; charset=no-such\r\nContent-Transfer-Encoding: base64\r\n\r\n*&^%",
    b"From: " + b"<" * 50_000 + b"\r\n" * 3 + b"\xff\xfe" * 10_000,
)


#: Its name, and what brings it about.
Fault = tuple[str, Callable[[], None]]


@dataclass
class Servers:
    """What is broken and looked at: Redis, PostgreSQL's address or '', the data directory."""

    redis: Valkey
    database: str
    usage: Usage
    data: Path

    def kill(self, role: str) -> None:
        for pid in _pids(self.usage, role):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def freeze(self, role: str, seconds: float = 20) -> None:
        pids = _pids(self.usage, role)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            if number == signal.SIGSTOP:
                time.sleep(seconds)

    def flush(self) -> None:
        redis.Redis.from_url(self.redis.url).flushall()

    def end_sessions(self) -> None:
        with psycopg.connect(self.database) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    def faults(self, first: int, second: int) -> list[Fault]:
        """What is broken in turn: so many times in the first half, and in the second."""
        single = [(f"{role} killed", lambda role=role: self.kill(role)) for role in ROLES[:-2]]

        def kill_the_last() -> None:
            for role in ROLES[-2:]:
                self.kill(role)

        kills = [*single, (" and ".join(ROLES[-2:]) + " killed", kill_the_last)]
        around = [
            ("Redis emptied", self.flush),
            ("poller stands still", lambda: self.freeze("poller")),
            ("Redis restarted empty", lambda: self.redis.restart(empty=True)),
            ("worker stands still", lambda: self.freeze("worker")),
        ]
        if self.database:
            around.append(("sessions of PostgreSQL ended", self.end_sessions))
        before = [*kills, *islice(cycle(around), max(0, first - len(kills)))]
        after = [*islice(cycle(around), max(0, second - len(kills))), *kills]
        return before[:first] + after[max(0, len(after) - second) :]


def _pids(usage: Usage, role: str) -> list[int]:
    return [
        pid
        for pid, name in list(usage.names.items())
        if name == role and Path(f"/proc/{pid}").exists()
    ]


@dataclass
class Mail:
    """Delivers to random mailboxes, and remembers what went where.

    Parameters:
      rate: messages a second.
    """

    dovecot: Dovecot
    rate: float
    boxes: list[int]
    sent: dict[str, tuple[int, float]] = field(default_factory=dict)
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    language: Language = field(default_factory=Language)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        due = time.monotonic()
        number = 0
        while not self.stopped.wait(max(0.0, due - time.monotonic())):
            box = self.chance.choice(self.boxes)
            name = f"{number}.{box}"
            self.sent[f"{name}@bench.example.org"] = (box, time.time())
            self.dovecot.deliver(user(box), self._letter(name))
            number += 1
            due += 1 / self.rate

    def _letter(self, name: str) -> bytes:
        luck = self.chance.random()
        if luck < 0.01:
            head = f"Message-ID: <{name}@bench.example.org>\r\n".encode()
            return head + self.chance.choice(HOSTILE)
        size = min(2_000_000, int(self.chance.lognormvariate(math.log(MEDIAN), SIGMA)))
        if luck > 1 - 1 / 2_000:
            size = LARGE
        length = min(3_000, max(5, int(self.chance.lognormvariate(4.8, 0.9))))
        text = "\r\n".join(map(" ".join, lines(self.language.text(self.chance, length))))
        return corpus.attached(name, max(1, int((size - len(text)) / IN_BASE64)), text)


@dataclass
class Accounts:
    """Adds and deletes accounts."""

    api: Api
    dovecot: Dovecot
    numbers: dict[int, str] = field(default_factory=dict)
    next_number: int = 0

    def add(self) -> None:
        number = self.next_number
        self.next_number += 1  # an answer that is lost may have been a yes
        body = {
            "address": user(number),
            "password": self.dovecot.password,
            "host": "localhost",
            "port": self.dovecot.imaps_port,
            "poll_interval": INTERVAL,
            "test": False,
        }
        self.numbers[number] = self.api("POST", "/admin/email-accounts", body)["id"]

    def remove(self, number: int) -> None:
        self.api("DELETE", f"/admin/email-accounts/{self.numbers[number]}")
        del self.numbers[number]

    def remove_all(self) -> None:
        """Also those whose adding was not answered."""
        while page := self.api("GET", "/admin/email-accounts?limit=200")["items"]:
            for one in page:
                self.api("DELETE", f"/admin/email-accounts/{one['id']}")
        self.numbers.clear()


def measure(backing: str, accounts: int, rate: float, minutes: float) -> dict[str, Any]:
    run = Run(backing, accounts, INTERVAL, 0, 0, 1)
    with tempfile.TemporaryDirectory(prefix="mailpoll-soak-") as name, ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)
        dovecot = stack.enter_context(WideDovecot(directory / "dovecot"))
        flavour = Flavour.REDIS if backing == "production" else Flavour.VALKEY
        server = stack.enter_context(Valkey(directory / "own-redis", flavour))
        environ = wide.environment(run, dovecot, directory, stack) | {"REDIS_URL": server.url}
        database.open_database(environ["DATABASE_URL"])
        stack.callback(database.close_database)
        (process,) = stack.enter_context(wide.started(run, environ, directory))
        usage = Usage(process.pid)
        usage.start()
        stack.callback(usage.stop)
        api = Api(int(environ["PORT"]), environ["MAILPOLL_API_TOKEN"])
        mailboxes = Accounts(api, dovecot)
        for _ in range(accounts):
            mailboxes.add()
            time.sleep(INTERVAL / accounts)  # so that a fault does not hit the polls of all
        say(f"{accounts} accounts; first round after {wide.first_round():.0f} s")
        mail = Mail(dovecot, rate, list(mailboxes.numbers))
        sender = threading.Thread(target=mail.run, daemon=True)
        sender.start()
        url = environ["DATABASE_URL"] if backing == "production" else ""
        servers = Servers(server, url, usage, directory / "data")
        figures = observe(mailboxes, mail, servers, usage, minutes)
        mail.stopped.set()
        sender.join()
        print(json.dumps({backing: brief(figures)}, indent=1), flush=True)  # hours of work
        return figures | verdict(mailboxes, mail, environ, directory)


def observe(
    mailboxes: Accounts, mail: Mail, servers: Servers, usage: Usage, minutes: float
) -> dict[str, Any]:
    """Break, add, delete and look until the time is over; the figures."""
    samples, polls = Samples(), Polls()
    polls.look()
    start = time.monotonic()
    seconds = minutes * 60
    broken: list[tuple[int, str]] = []
    early = math.ceil(seconds / 2 / FAULT) - 1
    due = servers.faults(early, math.ceil(seconds / FAULT) - 1 - early)
    waits: list[float] = []
    halves: dict[str, list[int]] = {}
    turned = 0
    while (now := time.monotonic() - start) < seconds:
        half = "first" if now < seconds / 2 else "second"
        if now // FAULT > len(broken):
            what, do = due[len(broken)]
            broken.append((round(now), what))
            say(f"minute {now / 60:.0f}: {what}")
            do()
        if now // 60 > turned:
            turned += 1
            turn_over(mailboxes, mail)
        polls.look()
        samples.look(usage, now)
        figures, wait = seen(mailboxes.api, servers)
        waits += wait
        samples.add(now, figures)
        halves.setdefault(half, []).extend(polls.lateness)
        polls.lateness.clear()
        time.sleep(max(0.0, start + len(samples.moments) * SAMPLE - time.monotonic()))
    return figures_of(samples, halves, waits, broken, seconds)


def turn_over(mailboxes: Accounts, mail: Mail) -> None:
    """A few accounts go, and as many come."""
    with suppress(RuntimeError, urllib3.exceptions.HTTPError):  # Redis or web may just be away
        for number in mail.chance.sample(sorted(mailboxes.numbers), TURNOVER):
            with suppress(ValueError):  # it was to go a minute ago, and web was away
                mail.boxes.remove(number)
            mailboxes.remove(number)
        for _ in range(TURNOVER):
            mailboxes.add()
            mail.boxes.append(max(mailboxes.numbers))


def seen(api: Api, servers: Servers) -> tuple[dict[str, float], list[float]]:
    """Queue, Redis, database and spool now; the seconds that a page of the API took."""
    begun = time.monotonic()
    wait = []
    with suppress(RuntimeError, urllib3.exceptions.HTTPError):
        api("GET", "/admin/email-accounts?limit=50")
        wait.append(time.monotonic() - begun)
    found = {"Redis MB": 0.0, "Redis keys": 0.0}
    with suppress(redis.RedisError):
        client = redis.Redis.from_url(servers.redis.url, socket_timeout=2)
        found["Redis MB"] = int(client.info("memory")["used_memory"]) / 1e6
        found["Redis keys"] = float(client.dbsize())
    found |= seen_in_database(servers)
    spooled = (servers.data / "spool").rglob("*")
    return found | {"files of the spool": float(sum(path.is_file() for path in spooled))}, wait


def seen_in_database(servers: Servers) -> dict[str, float]:
    """What waits, and what the database holds beside its rows."""
    table = EmailRawMessage
    with database.connected():
        run = database.proxy.execute_sql
        waiting = table.select(fn.COUNT(table.id), fn.MIN(table.stored_at)).where(
            table.status == "stored"
        )
        amount, oldest = waiting.tuples().get()
        age = max(0.0, (database.now() - oldest).total_seconds()) if oldest else 0.0
        found = {"waiting": float(amount), "age of the oldest, s": age}
        if not servers.database:
            log = servers.data / "mailpoll.db-wal"
            return found | {"WAL MB": log.stat().st_size / 1e6 if log.exists() else 0.0}
        sessions = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database()"
        dead = "SELECT SUM(n_dead_tup) FROM pg_stat_user_tables"
        wal = "SELECT SUM(size) FROM pg_ls_waldir()"
        return found | {
            "database connections": float(run(sessions).fetchone()[0]),
            "dead rows": float(run(dead).fetchone()[0] or 0),
            "WAL MB": float(run(wal).fetchone()[0]) / 1e6,
        }


def verdict(
    mailboxes: Accounts, mail: Mail, environ: dict[str, str], directory: Path
) -> dict[str, Any]:
    """What is lost or doubled; what fsck says; what is left when all accounts are deleted."""
    there = set(mailboxes.numbers)
    wanted = {name for name, (box, _) in mail.sent.items() if box in there}
    table = EmailRawMessage

    def rows() -> list[str]:
        with database.connected():
            query = table.select(table.message_id).where(table.status != "stored")
            return [name for (name,) in query.tuples() if name in wanted]

    with suppress(SystemExit):
        wait_until(lambda: len(set(rows())) >= len(wanted), 1)
    found = rows()
    fsck = subprocess.run(
        [sys.executable, "-m", "mailpoll", "fsck", "--offline"],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    mailboxes.remove_all()
    accounts = EmailAccount

    def gone() -> bool:
        with database.connected():
            return not accounts.select().exists()

    start = time.monotonic()
    with suppress(SystemExit):  # what is left is told
        wait_until(gone, 1)
    seconds = time.monotonic() - start
    with database.connected():
        left = int(table.select().count())
    files = sum(1 for path in (directory / "data" / "blobs").rglob("*") if path.is_file())
    return {
        "messages": len(mail.sent),
        "of_those_there": len(wanted),
        "lost": len(wanted - set(found)),
        "doubled": len(found) - len(set(found)),
        "fsck": fsck.returncode,
        "fsck_says": fsck.stdout[-2_000:] if fsck.returncode else "",
        "deletion_of_all_s": round(seconds),
        "rows_left": left,
        "files_left": files,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--accounts", type=int, default=500)
    parser.add_argument("--rate", type=float, default=5, help="messages a second")
    parser.add_argument("--set", choices=SETS, action="append", dest="sets")
    parser.add_argument("--json", action="store_true", help="keep the result for the report")
    options = parser.parse_args()
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    sets = options.sets or SETS
    given = (options.accounts, options.rate, options.minutes)
    with ProcessPoolExecutor(len(sets), get_context("spawn")) as both:
        runs = {name: both.submit(measure, name, *given) for name in sets}
        found = {name: run.result() for name, run in runs.items()}
    result = document(found, options.minutes)
    for table in result.tables:
        print(table.markdown())
    print(json.dumps({name: brief(figures) for name, figures in found.items()}, indent=1))
    if options.json:
        result.save(DIRECTORY / "soak.json")


if __name__ == "__main__":
    main()
