"""Poll thousands of mailboxes of one Dovecot on this machine, each every minute.

``python -m bench.wide [--accounts 5000] [--interval 60] [--minutes 10] [--mail 500]
[--set embedded|production] [--pollers 1] [--rtt 0] [--json]``. Without ``--set`` and ``--mail``,
both sets run with and without new mail. ``--json`` adds the figures to
``docs/performance/wide.json``.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import urllib3

from bench import machine
from bench.corpus import mailbox
from bench.proxy import DelayProxy
from bench.usage import PAGE, Usage
from mailpoll import database
from mailpoll.models import EmailAccount, EmailRawMessage
from mailpoll.settings import new_key, new_token
from tests.servers.dovecot import Dovecot
from tests.servers.postgres import Postgres
from tests.servers.process import free_ports
from tests.servers.seaweed import Seaweed
from tests.servers.valkey import Flavour, Valkey

SETS = ("embedded", "production")
MAIL = 500
RESULT = Path(__file__).parent.parent / "docs" / "performance" / "wide.json"
#: Seconds between two looks at the accounts and at memory.
LOOK = 10
#: Seconds that the first round and the last mail may take.
PATIENCE = 600

#: Logins by the hundred each second: processes that stay, and nothing written for each login.
MANY_LOGINS = """
info_log_path = /dev/null
maildir_very_dirty_syncs = yes
service imap-login {
  process_min_avail = 2
  client_limit = 4000
}
service imap {
  process_min_avail = 16
  service_count = 10000
}
service auth {
  client_limit = 20000
}
"""


class WideDovecot(Dovecot):
    """Dovecot for many short sessions."""

    def _configuration(self) -> str:
        return super()._configuration() + MANY_LOGINS


@dataclass(frozen=True)
class Run:
    """What is run: so many accounts, every so many seconds, mail a minute for so many of them."""

    backing: str
    accounts: int
    interval: int
    minutes: int
    mail: int
    pollers: int
    #: Milliseconds to the server and back.
    rtt: float = 0


@dataclass
class Polls:
    """Milliseconds by which polls began late, from looks at the accounts' rows."""

    lateness: list[int] = field(default_factory=list)
    _seen: dict[int, datetime | None] = field(default_factory=dict)

    def look(self) -> None:
        table = EmailAccount
        with database.connected():
            rows = table.select(table.id, table.last_poll_at, table.last_lateness_ms).tuples()
            for row_id, last, lateness in rows:
                if row_id in self._seen and self._seen[row_id] != last:
                    self.lateness.append(lateness)
                self._seen[row_id] = last

    def end(self) -> None:
        """Count what is due and has not begun with what it is late already."""
        table = EmailAccount
        moment = database.now()
        with database.connected():
            rows = table.select(table.next_poll_at).where(
                table.next_poll_at < moment, table.lease_until.is_null()
            )
            self.lateness += [
                int((moment - due).total_seconds() * 1_000) for (due,) in rows.tuples()
            ]


@dataclass
class Delivery:
    """Delivers mail to the first accounts, spread over each minute, and knows when it did."""

    dovecot: Dovecot
    accounts: int
    moments: dict[str, float] = field(default_factory=dict)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        boxes = [mailbox(number, 1_000) for number in range(self.accounts)]
        due = time.monotonic()
        counts = [0] * self.accounts
        for number in cycle(range(self.accounts)):
            due += 60 / self.accounts
            if self._stopped.wait(max(0, due - time.monotonic())):
                return
            self.dovecot.deliver(user(number), next(boxes[number]))
            self.moments[f"{counts[number]}.{number}@bench.example.org"] = time.time()
            counts[number] += 1

    def delays(self) -> list[float]:
        """Seconds from each delivery until the message was processed."""
        table = EmailRawMessage
        with database.connected():
            rows = table.select(table.message_id, table.processed_at).where(
                table.processed_at.is_null(False)
            )
            return [
                moment.timestamp() - self.moments[message_id]
                for message_id, moment in rows.tuples()
                if message_id in self.moments
            ]


def measure(run: Run) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="mailpoll-wide-") as name, ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)
        dovecot = WideDovecot(directory / "dovecot")
        stack.enter_context(dovecot)
        port = dovecot.imaps_port
        if run.rtt:
            port = stack.enter_context(DelayProxy(port, run.rtt / 1_000)).port
        environ = environment(run, dovecot, directory, stack) | {"MAILPOLL_IMAP_PORTS": str(port)}
        database.open_database(environ["DATABASE_URL"])
        stack.callback(database.close_database)
        processes = stack.enter_context(started(run, environ, directory))
        usages = [Usage(process.pid) for process in processes]
        for usage in usages:
            usage.start()
            stack.callback(usage.stop)
        seconds = add(run, dovecot, environ)
        say(f"added {run.accounts} accounts in {seconds:.0f} s")
        say(f"first round after {first_round():.0f} s more")
        delivery = Delivery(dovecot, run.mail)
        if run.mail:
            delivery.start()
            stack.callback(delivery.stop)
        time.sleep(run.interval)
        return observe(run, usages, delivery) | {"adding_seconds": round(seconds)}


def environment(run: Run, dovecot: Dovecot, directory: Path, stack: ExitStack) -> dict[str, str]:
    (port,) = free_ports(1)
    data = directory / "data"
    data.mkdir()
    found = {
        "DATABASE_URL": f"sqlite:///{data / 'mailpoll.db'}",
        "MAILPOLL_DATA_DIR": str(data),
        "MAILPOLL_API_TOKEN": new_token(),
        "MAILPOLL_SECRET_KEY": new_key(),
        "MAILPOLL_IMAP_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
        "MAILPOLL_IMAP_CA_FILE": str(dovecot.ca_file),
        "MAILPOLL_IMAP_PORTS": str(dovecot.imaps_port),
        # All boxes are at one host, which would allow that.
        "MAILPOLL_IMAP_HOST_CONNECTIONS": "1000",
        "MAILPOLL_IMAP_HOST_LOGINS": "1000000",
        "MAILPOLL_LOG_LEVEL": "warning",
        "PORT": str(port),
    }
    if run.backing == "production":
        postgres = Postgres(directory / "postgres", durable=True)
        stack.enter_context(postgres)
        redis = Valkey(directory / "redis", Flavour.REDIS)
        stack.enter_context(redis)
        seaweed = Seaweed(directory / "seaweed")
        stack.enter_context(seaweed)
        found |= {
            "DATABASE_URL": postgres.create_database("wide"),
            "REDIS_URL": redis.url,
            "STORAGE_URL": seaweed.url_of("wide"),
        }
    return found


@contextmanager
def started(
    run: Run, environ: dict[str, str], directory: Path
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """``mailpoll up``, and pollers beside the one that it has."""
    log = (directory / "mailpoll.log").open("ab")
    processes = []

    def start(command: str) -> None:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "mailpoll", command],
                env={**os.environ, **environ},
                stdout=log,
                stderr=log,
            )
        )

    subprocess.run(
        [sys.executable, "-m", "mailpoll", "migrate"],
        env={**os.environ, **environ},
        stdout=log,
        stderr=log,
        check=True,
    )
    start("up")
    try:
        wait_until(lambda: answers(int(environ["PORT"])))
        for _ in range(run.pollers - 1):
            start("poller")
        yield processes
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            process.wait()
        log.close()
        say("what the log complains of: " + complaints(directory / "mailpoll.log"))


def complaints(log: Path) -> str:
    """The beginnings of warnings and errors, with how many there are of each."""
    with log.open(errors="replace") as lines:
        found = Counter(
            line[27:90].strip() for line in lines if "[error" in line or "[warn" in line
        )
    return "; ".join(f"{count} x {text}" for text, count in found.most_common(10)) or "nothing"


def answers(port: int) -> bool:
    try:
        answer = urllib3.request("GET", f"http://127.0.0.1:{port}/readyz", retries=False, timeout=5)
    except urllib3.exceptions.HTTPError:
        return False
    return answer.status < 400 or answer.status == 401


def add(run: Run, dovecot: Dovecot, environ: dict[str, str]) -> float:
    """Add the accounts through the API; how many seconds that took."""
    token = environ["MAILPOLL_API_TOKEN"]
    pool = urllib3.PoolManager(maxsize=8, headers={"Authorization": f"Bearer {token}"})
    url = f"http://127.0.0.1:{environ['PORT']}/admin/email-accounts"

    def one(number: int) -> None:
        account = {
            "address": user(number),
            "password": dovecot.password,
            "host": "localhost",
            "port": int(environ["MAILPOLL_IMAP_PORTS"]),
            "poll_interval": run.interval,
            "test": False,
        }
        answer = pool.request("POST", url, json=account, retries=False, timeout=60)
        if answer.status != 201:
            raise SystemExit(f"{answer.status} {answer.data!r}")

    start = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(run.accounts)))
    return time.monotonic() - start


def first_round() -> float:
    """Seconds until every account was polled once."""
    start = time.monotonic()
    table = EmailAccount

    def done() -> bool:
        with database.connected():
            return table.select().where(table.last_success_at.is_null()).count() == 0

    wait_until(done, 1)
    return time.monotonic() - start


def observe(run: Run, usages: Sequence[Usage], delivery: Delivery) -> dict[str, Any]:
    """The figures of the window: lateness, CPU and memory by the minute, delays of mail."""
    polls = Polls()
    polls.look()
    cores = os.cpu_count() or 1
    begun = time.time()
    cpu: list[float] = []
    machine_cpu: list[float] = []
    memory: list[dict[str, float]] = []
    for minute in range(run.minutes):
        before, idle = total_cpu(usages), idle_seconds()
        start = time.monotonic()
        for tick in range(1, 60 // LOOK + 1):
            time.sleep(max(0, start + tick * LOOK - time.monotonic()))
            polls.look()
        span = (time.monotonic() - start) * cores
        cpu.append(round((total_cpu(usages) - before) / span * 100, 1))
        machine_cpu.append(round(100 - (idle_seconds() - idle) / span * 100, 1))
        memory.append(memory_by_name(usages))
        say(f"minute {minute + 1}: CPU {cpu[-1]} % (machine {machine_cpu[-1]} %), {memory[-1]}")
    polls.end()
    lateness = sorted(polls.lateness)
    figures: dict[str, Any] = {
        "polls_per_second": round(len(lateness) / run.minutes / 60, 1),
        "late_p50_s": percentile(lateness, 50) / 1_000,
        "late_p95_s": percentile(lateness, 95) / 1_000,
        "late_p99_s": percentile(lateness, 99) / 1_000,
        "late_max_s": lateness[-1] / 1_000,
        "cpu_percent": round(sum(cpu) / len(cpu), 1),
        "machine_percent": round(sum(machine_cpu) / len(machine_cpu), 1),
        "cpu_by_minute": cpu,
        "memory_by_minute": memory,
        "cpu_ms_per_poll": round(sum(cpu) * 0.6 * cores / max(1, len(lateness)) * 1_000, 2),
        "failing_accounts": failing(),
    }
    if run.mail:
        figures |= delays(delivery, begun)
    return figures


def delays(delivery: Delivery, begun: float) -> dict[str, float]:
    """Seconds from delivery until processed, for the mail of the window."""
    delivery.stop()
    wait_until(lambda: len(delivery.delays()) >= len(delivery.moments))
    whole = sorted(delivery.delays())
    return {
        "mail": sum(1 for moment in delivery.moments.values() if moment >= begun),
        "mail_p50_s": round(percentile(whole, 50), 2),
        "mail_p95_s": round(percentile(whole, 95), 2),
        "mail_p99_s": round(percentile(whole, 99), 2),
    }


def total_cpu(usages: Sequence[Usage]) -> float:
    return sum(usage.total_cpu() for usage in usages)


def idle_seconds() -> float:
    """Seconds that the machine's cores had nothing to do, all together."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def memory_by_name(usages: Sequence[Usage]) -> dict[str, float]:
    """Resident megabytes of the largest process of each name, now."""
    found: dict[str, float] = {}
    for usage in usages:
        for pid, name in list(usage.names.items()):
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:
                continue
            found[name] = max(found.get(name, 0), round(pages * PAGE / 1e6, 1))
    return found


def failing() -> int:
    table = EmailAccount
    with database.connected():
        return int(table.select().where(table.last_error.is_null(False)).count())


def percentile(values: Sequence[Any], percent: int) -> Any:
    """The nearest-rank percentile of sorted values."""
    return values[max(0, -(-len(values) * percent // 100) - 1)]


def user(number: int) -> str:
    return f"user{number:05}@example.org"


def wait_until(done: Callable[[], bool], pause: float = 0.2) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > end:
            raise SystemExit("gave up waiting")
        time.sleep(pause)


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


COLUMNS = {
    "polls_per_second": "polls/s",
    "late_p50_s": "late p50, s",
    "late_p95_s": "p95",
    "late_p99_s": "p99",
    "late_max_s": "max",
    "cpu_percent": "CPU of mailpoll, % of all cores",
    "cpu_ms_per_poll": "CPU per poll, ms",
    "machine_percent": "CPU of the machine, %",
    "mail_p50_s": "delivery to processed p50, s",
    "mail_p95_s": "p95 ",
    "failing_accounts": "failing accounts",
}


def label(run: Run) -> str:
    mail = f", {run.mail} mails a minute" if run.mail else ""
    far = f", {run.rtt:g} ms away" if run.rtt else ""
    return f"{run.backing}, {run.accounts:,} every {run.interval} s{mail}{far}"


def document(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What ``docs/performance.md`` is made from; the runs themselves stay in it for the next."""
    minutes = max(len(found["cpu_by_minute"]) for found in runs.values())
    names = sorted({n for found in runs.values() for by in found["memory_by_minute"] for n in by})
    return {
        "title": "Many mailboxes",
        "machine": machine.describe(),
        "date": date.today().isoformat(),
        "text": [TEXT],
        "tables": [
            {
                "title": "Lateness of polls, CPU, and delay of mail",
                "columns": ["run", *COLUMNS.values()],
                "rows": [
                    [name, *(found.get(column) for column in COLUMNS)]
                    for name, found in runs.items()
                ],
            },
            {
                "title": "Memory, MB: after the second minute / after the last",
                "columns": ["run", *names],
                "rows": [
                    [name, *(grown(found["memory_by_minute"], process) for process in names)]
                    for name, found in runs.items()
                ],
            },
        ],
        "plots": [
            {
                "name": "wide-cpu",
                "title": "CPU of mailpoll",
                "kind": "lines",
                "x": list(range(1, minutes + 1)),
                "x_label": "minute",
                "y_label": "% of all cores",
                "log": False,
                "series": {name: padded(f["cpu_by_minute"], minutes) for name, f in runs.items()},
            },
            *(
                {
                    "name": f"wide-memory-{number}",
                    "title": f"Memory, {name}",
                    "kind": "lines",
                    "x": list(range(1, minutes + 1)),
                    "x_label": "minute",
                    "y_label": "MB",
                    "log": False,
                    "series": {
                        process: padded([by.get(process) for by in f["memory_by_minute"]], minutes)
                        for process in names
                    },
                }
                for number, (name, f) in enumerate(runs.items(), 1)
            ),
        ],
        "runs": runs,
    }


TEXT = (
    "One Dovecot on the same machine, with TLS, and every mailbox polled at its interval. The "
    "window begins an interval after every mailbox was polled once. A poll is late by the time "
    "from when it was due until it began; those that were due and had not begun at the end count."
)


def grown(memory: list[dict[str, float]], process: str) -> str | None:
    before, after = memory[min(1, len(memory) - 1)].get(process), memory[-1].get(process)
    return None if after is None else f"{before} / {after}"


def padded(values: list[Any], length: int) -> list[Any]:
    return values + [None] * (length - len(values))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.wide", description=__doc__)
    parser.add_argument("--accounts", type=int, default=5_000)
    parser.add_argument("--interval", type=int, default=60, help="seconds")
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--mail", type=int, help=f"accounts with a mail a minute; 0 and {MAIL}")
    parser.add_argument("--set", choices=SETS, help="default: both")
    parser.add_argument("--pollers", type=int, default=1, help="poller processes")
    parser.add_argument("--rtt", type=float, default=0, help="milliseconds to the server and back")
    parser.add_argument("--json", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    runs = json.loads(RESULT.read_text())["runs"] if RESULT.exists() else {}
    for backing in [options.set] if options.set else SETS:
        for mail in (0, MAIL) if options.mail is None else (options.mail,):
            run = Run(
                backing,
                options.accounts,
                options.interval,
                options.minutes,
                mail,
                options.pollers,
                options.rtt,
            )
            say(label(run))
            runs[label(run)] = figures = measure(run)
            print(json.dumps(figures, indent=1), flush=True)
            if options.json:
                RESULT.write_text(json.dumps(document(runs), indent=1) + "\n")


if __name__ == "__main__":
    main()
