"""Let everything run for long, with accounts that come and go, and faults.

``python -m bench.soak [--minutes 100] [--accounts 500] [--rate 5] [--set embedded] [--json]``.
Mail of all sizes comes in, five accounts are added and five deleted each minute, and every five
minutes something is broken, the same in both halves, so that they can be compared. Each process is
killed early in the first half and late in the second: memory, files and threads of the same
processes can be followed for as long as possible between the two.
"""

import argparse
import json
import math
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psycopg
import redis
import urllib3
from peewee import fn

from bench import corpus, wide
from bench.contenders.mailpoll import Api
from bench.results import DIRECTORY, Cell, Plot, Result, Table
from bench.search import Language, lines
from bench.usage import PAGE, Usage
from bench.wide import SETS, Polls, Run, WideDovecot, percentile, say, user, wait_until
from mailpoll import database
from mailpoll.models import EmailAccount, EmailRawMessage
from tests.servers.dovecot import Dovecot
from tests.servers.valkey import Flavour, Valkey

#: Seconds between two samples, and between two faults.
SAMPLE, FAULT = 10, 300
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
ROLES = ("poller", "worker", "scheduler", "web", "notifier", "watcher")
#: What is seen of each process.
SEEN = ("MB", "files", "threads", "sockets")
#: Seconds of a process that are left out, as it fills what it keeps, and that must remain.
SETTLED, LEAST = 1_800, 1_200
#: What may grow in an hour at most, by what is seen; of the rest less than one.
MAY_GROW = {"MB": 1.0}


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

    def faults(self) -> dict[str, list[tuple[str, Callable[[], None]]]]:
        """By half: what is broken in turn."""
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
        return {"first": kills + around, "second": around + kills[::-1]}


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
class Samples:
    """What was seen every ten seconds: by pid for processes, by name for the rest."""

    moments: list[float] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)
    processes: dict[tuple[str, int], list[tuple[float, dict[str, float]]]] = field(
        default_factory=dict
    )

    def add(self, moment: float, figures: dict[str, float]) -> None:
        self.moments.append(moment)
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    def look(self, usage: Usage, moment: float) -> None:
        for pid, role in list(usage.names.items()):
            with suppress(OSError, ValueError, IndexError):
                files = list(_open_files(pid))
                seen = {
                    "MB": int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6,
                    "files": float(len(files)),
                    "threads": float(sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())),
                    "sockets": float(sum(name.startswith("socket:") for name in files)),
                }
                self.processes.setdefault((role, pid), []).append((moment, seen))

    def slopes(self) -> dict[str, dict[str, float]]:
        """Per role: the steepest growth per hour of any process, once it has settled."""
        found: dict[str, dict[str, float]] = {}
        for (role, _pid), series in self.processes.items():
            begun = series[0][0]
            kept = [one for one in series if one[0] >= begun + SETTLED]
            if role not in ROLES or not kept or kept[-1][0] - kept[0][0] < LEAST:
                continue
            for name in SEEN:
                slope = theil_sen([(at / 3600, seen[name]) for at, seen in kept])
                known = found.setdefault(role, {}).setdefault(name, slope)
                found[role][name] = max(known, slope)
        return found


def _open_files(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed by now
            yield str(path.readlink())


def theil_sen(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes between any two points, which outliers do not move."""
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(points) for b in points[i + 1 :]]
    return statistics.median(slopes) if slopes else 0.0


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
            "poll_interval": 60,
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
    run = Run(backing, accounts, 60, 0, 0, 1)
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
    due = {half: cycle(those) for half, those in servers.faults().items()}
    waits: list[float] = []
    halves: dict[str, list[int]] = {}
    turned = 0
    while (now := time.monotonic() - start) < seconds:
        half = "first" if now < seconds / 2 else "second"
        if now // FAULT > len(broken):
            what, do = next(due[half])
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


def figures_of(
    samples: Samples,
    halves: dict[str, list[int]],
    waits: list[float],
    broken: list[tuple[int, str]],
    seconds: float,
) -> dict[str, Any]:
    late = {half: percentile(sorted(values), 95) / 1_000 for half, values in halves.items()}
    since = [place for place, moment in enumerate(samples.moments) if moment >= seconds / 2]
    return {
        "late_p95_first_s": late.get("first"),
        "late_p95_second_s": late.get("second"),
        "api_p99_ms": round(percentile(sorted(waits), 99) * 1_000),
        "growth_per_hour": samples.slopes(),
        "around_per_hour": {
            name: theil_sen([(samples.moments[at] / 3600, values[at]) for at in since])
            for name, values in samples.figures.items()
        },
        "waiting_p95": percentile(sorted(samples.figures["waiting"]), 95),
        "age_p95_s": percentile(sorted(samples.figures["age of the oldest, s"]), 95),
        "without_empty_s": longest_without_empty(samples),
        "faults": broken,
        "moments": [round(moment) for moment in samples.moments],
        "figures": samples.figures,
        "memory": memory(samples),
    }


def longest_without_empty(samples: Samples) -> float:
    """Seconds between two moments in which nothing waited to be processed, at most."""
    pairs = zip(samples.moments, samples.figures["waiting"], strict=True)
    empty = [0.0, *(moment for moment, waiting in pairs if not waiting), samples.moments[-1]]
    return round(max(after - before for before, after in pairwise(empty)))


def promises(figures: dict[str, Any]) -> dict[str, bool]:
    """What is promised, and whether it held."""
    grown = [
        f"{role}: {name}"
        for role, by in figures["growth_per_hour"].items()
        for name, slope in by.items()
        if slope >= MAY_GROW.get(name, 1.0)
    ]
    return {
        "nothing lost or doubled": not figures["lost"] and not figures["doubled"],
        "fsck finds nothing": figures["fsck"] == 0,
        "no growth" + (f" (not: {', '.join(grown)})" if grown else ""): not grown
        and set(figures["growth_per_hour"]) == set(ROLES),
        "polls in the second half not later": figures["late_p95_second_s"]
        <= max(1.0, 1.1 * figures["late_p95_first_s"]),
        "nothing left of deleted accounts": not figures["rows_left"] and not figures["files_left"],
    }


def brief(figures: dict[str, Any]) -> dict[str, Any]:
    """Without the samples that pictures are made of."""
    samples = ("figures", "memory", "moments")
    return {key: value for key, value in figures.items() if key not in samples}


def memory(samples: Samples) -> dict[str, list[float | None]]:
    """Megabytes of the largest process of each role at each moment."""
    found: dict[str, dict[float, float]] = {}
    for (role, _pid), series in samples.processes.items():
        if role in ROLES:
            for moment, seen_then in series:
                by = found.setdefault(role, {})
                by[moment] = max(by.get(moment, 0.0), seen_then["MB"])
    return {
        role: [round(by[moment], 1) if moment in by else None for moment in samples.moments]
        for role, by in found.items()
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


def document(found: dict[str, dict[str, Any]], minutes: float) -> Result:
    plots: list[Plot] = []
    rows: list[list[Cell]] = []
    growth: list[list[Cell]] = []
    others: list[list[Cell]] = []
    held: list[list[Cell]] = []
    for backing, figures in found.items():
        plots.append(
            Plot(
                f"soak-{backing}",
                f"Memory of the largest process of each kind, {backing} set, with a fault every "
                "five minutes",
                "lines",
                [round(moment / 60, 1) for moment in figures["moments"][::6]],
                "minutes",
                "MB",
                False,
                {role: values[::6] for role, values in figures["memory"].items()},
            )
        )
        rows.append([backing, *(figures[key] for key in COLUMNS)])
        plots += [around(backing, figures, name) for name in DRAWN if name in figures["figures"]]
        growth += [
            [f"{backing}, {role}", *(by[name] for name in SEEN)]
            for role, by in sorted(figures["growth_per_hour"].items())
        ]
        others += [
            [f"{backing}, {name}", max(figures["figures"][name]), slope]
            for name, slope in figures["around_per_hour"].items()
        ]
        held += [
            [f"{backing}: {what}", "yes" if kept else "**no**"]
            for what, kept in promises(figures).items()
        ]
    text = [
        f"{minutes:g} minutes with mail of all sizes, accounts that come and go, and every five "
        "minutes a fault: "
        + "; ".join(
            f"{backing}: " + ", ".join(f"{what} ({at // 60} min)" for at, what in figures["faults"])
            for backing, figures in found.items()
        )
        + ". With time for all of them, both halves break the same in another order. Growth "
        "is the median of the slopes between any two samples (Theil-Sen) of a process, without its "
        "first half hour. Made by `make soak`."
    ]
    tables = [
        Table("Soak", ["set", *COLUMNS.values()], rows),
        Table("Held", ["what", "held"], held),
        Table("Growth per hour", ["process", *SEEN], growth),
        Table("Around them", ["what", "most", "growth per hour"], others),
    ]
    return Result("Soak", text, tables, plots)


#: Of what is seen around the processes, what is worth a picture.
DRAWN = ("Redis keys", "age of the oldest, s", "database connections")


def around(backing: str, figures: dict[str, Any], name: str) -> Plot:
    places = [round(moment / 60, 1) for moment in figures["moments"][::6]]
    file = f"soak-{backing}-{name.partition(',')[0].replace(' ', '-').lower()}"
    values = {name: figures["figures"][name][::6]}
    return Plot(
        file, f"{name}, {backing} set", "lines", list(places), "minutes", name, False, values
    )


COLUMNS = {
    "messages": "messages",
    "lost": "lost",
    "doubled": "doubled",
    "fsck": "fsck's exit code",
    "late_p95_first_s": "polls late p95, first half, s",
    "late_p95_second_s": "second half, s",
    "api_p99_ms": "a page of accounts p99, ms",
    "age_p95_s": "oldest that waits p95, s",
    "without_empty_s": "longest without an empty queue, s",
    "rows_left": "rows left after deletion of all",
    "files_left": "files left",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=100)
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
