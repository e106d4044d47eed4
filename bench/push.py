"""Mail that is pushed: thousands of watched mailboxes, and how soon each message is told of.

``python -m bench.push [--accounts 2000] [--rate 5] [--seconds 120] [--rtt 40] [--set embedded]
[--folders inbox] [--json]``. The watcher is killed at the end, and the time until all is watched
again is measured. ``--json`` writes ``docs/performance/push.json``, where rows stay of what was not
measured.
"""

import argparse
import os
import resource
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from email.utils import make_msgid
from pathlib import Path
from typing import Any

from bench import wide
from bench.contenders.mailpoll import Api
from bench.proxy import DelayProxy
from bench.results import DIRECTORY, Cell, Result, Table
from bench.usage import PAGE, Usage
from bench.wide import SETS, Run, percentile, say, user, wait_until
from mailpoll import database
from mailpoll.models import EmailAccount, EmailEvent, EmailRawMessage
from tests.servers.receiver import Receiver

#: A Dovecot in which thousands wait: inotify for each of them, and a process for each that is not
#: asleep. To sleep goes who idles in one folder for five seconds; NOTIFY keeps a process awake.
MANY_WAIT = """
imap_hibernate_timeout = 5s
service imap {
  process_limit = 6000
  process_min_avail = 4
  unix_listener imap-master {
    user = $default_internal_user
  }
  extra_groups = $default_internal_group
}
service imap-hibernate {
  unix_listener imap-hibernate {
    mode = 0660
    group = $default_internal_group
  }
}
mail_max_userip_connections = 100
"""
#: What is watched, by how it is told: the folders of each account.
FOLDERS = {"all": None, "inbox": ["INBOX"]}
RESULT = DIRECTORY / "push.json"
INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
#: Seconds in which nothing happens but waiting.
REST = 60


class WaitingDovecot(wide.WideDovecot):
    """Dovecot for many connections that wait."""

    def _configuration(self) -> str:
        return super()._configuration() + MANY_WAIT


@dataclass
class Mail:
    """Sends messages to random mailboxes, evenly, and remembers when each was delivered."""

    dovecot: WaitingDovecot
    accounts: int
    rate: float
    delivered: dict[str, float] = field(default_factory=dict)

    def send(self, seconds: float) -> None:
        end = due = time.monotonic()
        end += seconds
        number = 0
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            self._deliver(number * 7_919 % self.accounts)
            number += 1
            due += 1 / self.rate

    def _deliver(self, number: int) -> None:
        name = make_msgid(domain="bench.example.org")
        lines = [
            f"Message-ID: {name}",
            "From: Ann Example <ann@example.org>",
            f"Subject: pushed to {number}",
            "Date: Mon, 23 Nov 2026 10:00:00 +0000",
            "",
            "It is here.",
            "",
        ]
        # Before: a watcher may be faster than this process.
        self.delivered[name.strip("<>")] = time.time()
        self.dovecot.deliver(user(number), "\r\n".join(lines).encode())

    def processed(self) -> list[float]:
        """Seconds from each delivery until the message was processed."""
        table = EmailRawMessage
        with database.connected():
            rows = table.select(table.message_id, table.processed_at).where(
                table.processed_at.is_null(False), table.message_id.in_(list(self.delivered))
            )
            return sorted(
                moment.timestamp() - self.delivered[name] for name, moment in rows.tuples()
            )

    def told(self, receiver: Receiver, offset: float) -> list[float]:
        """Seconds until the webhook had each; ``offset``: from monotonic to time."""
        found = {}
        for got in receiver.received:
            name = (got.json["data"].get("message") or {}).get("message_id")
            if name in self.delivered:
                found.setdefault(name, got.moment + offset - self.delivered[name])
        return sorted(found.values())


def measure(backing: str, folders: str, options: argparse.Namespace) -> dict[str, Any]:
    accounts, rtt = options.accounts, options.rtt
    say(f"{backing}, {folders}")
    run = Run(backing, accounts, 60, 0, 0, 1)
    with tempfile.TemporaryDirectory(prefix="mailpoll-push-") as name, ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)
        dovecot = stack.enter_context(WaitingDovecot(directory / "dovecot"))
        proxy = stack.enter_context(DelayProxy(dovecot.imaps_port, rtt / 1_000))
        receiver = stack.enter_context(Receiver())
        environ = wide.environment(run, dovecot, directory, stack) | {
            "MAILPOLL_IMAP_PORTS": str(proxy.port),
            "MAILPOLL_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        database.open_database(environ["DATABASE_URL"])
        stack.callback(database.close_database)
        (process,) = stack.enter_context(wide.started(run, environ, directory))
        usage = Usage(process.pid)
        usage.start()
        stack.callback(usage.stop)
        api = Api(int(environ["PORT"]), environ["MAILPOLL_API_TOKEN"])
        before = resident(usage, "watcher")
        began = time.monotonic()
        add(api, dovecot, accounts, {"port": proxy.port, "folders": FOLDERS[folders]})
        wait_until(lambda: watched() == accounts, 0.5)
        say(f"{accounts} watched after {time.monotonic() - began:.0f} s")
        wait_until(lambda: wide.failing() == 0 and idle(), 1)
        time.sleep(10)
        figures: dict[str, Any] = {
            "kb_per_connection": round((resident(usage, "watcher") - before) / accounts / 1e3, 1)
        }
        cpu, start = usage.cpu_by_name(), time.monotonic()
        time.sleep(REST)
        span = time.monotonic() - start
        after = usage.cpu_by_name()
        figures["cpu_at_rest_percent"] = round((after["watcher"] - cpu["watcher"]) / span * 100, 2)
        api("POST", "/admin/webhooks", {"url": receiver.url, "payload": "fields"})
        mail = Mail(dovecot, accounts, options.rate)
        mail.send(options.seconds)
        offset = time.time() - time.monotonic()
        wait_until(lambda: len(mail.told(receiver, offset)) >= len(mail.delivered), 0.5)
        figures |= times("processed", mail.processed()) | times("told", mail.told(receiver, offset))
        figures["mail"] = len(mail.delivered)
        figures |= beside_a_dead_one(api)
        figures |= killed(usage, mail, accounts)
    say(f"{figures}")
    return figures


def add(api: Api, dovecot: WaitingDovecot, accounts: int, fields: dict[str, Any]) -> None:
    def one(number: int) -> None:
        login = {"address": user(number), "password": dovecot.password, "test": False}
        place = {"host": "localhost", "push": True}
        api("POST", "/admin/email-accounts", login | place | fields)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(accounts)))


def watched() -> int:
    table = EmailAccount
    with database.connected():
        moment = database.now()
        rows = table.select().where(
            table.watch_interval.is_null(False), table.watched_until > moment
        )
        return int(rows.count())


def idle() -> bool:
    """Whether no poll is running or due."""
    table = EmailAccount
    with database.connected():
        busy = table.select().where(
            table.lease_until.is_null(False) | (table.next_poll_at <= database.now())
        )
        return not busy.exists()


def resident(usage: Usage, name: str) -> float:
    """Bytes of the processes of a name, now."""
    found = 0
    wait_until(lambda: name in usage.names.values())
    for pid, known in list(usage.names.items()):
        if known == name and Path(f"/proc/{pid}").exists():
            found += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return found


def killed(usage: Usage, mail: Mail, accounts: int) -> dict[str, Any]:
    """Kill the watcher, send mail meanwhile, and see when all is watched and all is there."""
    with database.connected():
        dead = {row.watcher for row in EmailAccount.select(EmailAccount.watcher).distinct()}
    pids = [pid for pid, name in usage.names.items() if name == "watcher"]
    for pid in pids:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    sender = threading.Thread(target=mail.send, args=(20,))
    sender.start()
    wait_until(lambda: taken_over(dead) == accounts, 0.5)
    again = time.monotonic() - start
    sender.join()
    wait_until(lambda: len(mail.processed()) >= len(mail.delivered), 0.5)
    return {
        "watched_again_s": round(again, 1),
        "missed": len(mail.delivered) - len(mail.processed()),
    }


def beside_a_dead_one(api: Api) -> dict[str, Any]:
    """Send all events again to a receiver that answers, beside one that never does."""
    with database.connected():
        events = int(EmailEvent.select().count())
    with Receiver() as well, Receiver(delay=120) as dead:
        for receiver in (dead, well):
            hook = api("POST", "/admin/webhooks", {"url": receiver.url, "rate": 1_000})
            api("POST", f"/admin/webhooks/{hook['id']}/replay", {"after": 0})
        wait_until(lambda: len(well.received) > 0, 0.05)
        start, before = time.monotonic(), len(well.received)
        wait_until(lambda: len(set(well.ids)) >= events, 0.05)
        seconds = time.monotonic() - start
    return {"deliveries": events, "deliveries_per_s": round((events - before) / seconds)}


def taken_over(dead: set[str]) -> int:
    """Accounts that are watched, and by another than the killed watcher, whose claims last on."""
    table = EmailAccount
    with database.connected():
        rows = table.select().where(
            table.watch_interval.is_null(False),
            table.watched_until > database.now(),
            table.watcher.not_in(list(dead)),
        )
        return int(rows.count())


def times(name: str, seconds: list[float]) -> dict[str, float]:
    return {
        f"{name}_p50_s": round(percentile(seconds, 50), 2),
        f"{name}_p99_s": round(percentile(seconds, 99), 2),
        f"{name}_max_s": round(seconds[-1], 2),
    }


def allow_inotify(accounts: int) -> bool:
    """Let Dovecot's processes hear of changes: without it they look every 30 s."""
    try:
        if int(INSTANCES.read_text()) < accounts + 200:
            INSTANCES.write_text(str(accounts + 200))
    except OSError:
        say(f"cannot raise {INSTANCES}: Dovecot will tell of news late")
        return False
    return True


COLUMNS = {
    "mail": "messages",
    "processed_p50_s": "arrival to processed p50, s",
    "processed_p99_s": "p99",
    "told_p50_s": "arrival to webhook p50, s",
    "told_p99_s": "p99 ",
    "kb_per_connection": "watcher, KB per connection",
    "cpu_at_rest_percent": "watcher at rest, % of a core",
    "deliveries_per_s": "webhooks a second beside a dead one",
    "watched_again_s": "all watched again after kill -9, s",
    "missed": "missed",
}


def with_rows_before(table: Table) -> Table:
    """The table, with the rows of what was not measured now from the result that is kept."""
    before = Result.load(RESULT).tables[0] if RESULT.exists() else table
    if before.columns != table.columns:
        return table
    rows = {tuple(row[:2]): row for row in (*before.rows, *table.rows)}
    return Table(table.title, table.columns, [rows[key] for key in sorted(rows)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.push", description=__doc__)
    parser.add_argument("--accounts", type=int, default=2_000)
    parser.add_argument("--rate", type=float, default=5, help="messages a second")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--rtt", type=float, default=40, help="milliseconds")
    parser.add_argument("--set", choices=SETS, action="append", dest="sets")
    parser.add_argument("--folders", choices=FOLDERS, action="append")
    parser.add_argument("--json", action="store_true", help="keep the result for the report")
    options = parser.parse_args()
    allow_inotify(options.accounts)
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    found = {
        (backing, folders): measure(backing, folders, options)
        for folders in options.folders or FOLDERS
        for backing in options.sets or SETS
    }
    rows: list[list[Cell]] = [
        [*names, *(figures[key] for key in COLUMNS)] for names, figures in found.items()
    ]
    text = [
        f"{options.accounts:,} mailboxes of one Dovecot on this machine, {options.rtt:g} ms away, "
        f"are watched; {options.rate:g} messages a second come in. Of all folders NOTIFY tells, "
        "which Dovecot delays by half a second, whatever is asked of it (NOTIFY_DELAY_MSECS in its "
        "mailbox-watch.c). Where INBOX is the only folder of an account, IDLE tells, and Dovecot "
        "puts the connection to sleep (imap_hibernate_timeout), from which news wake it at once. "
        "The rest is mailpoll's, with six to nine ways to the server and back. "
        "Made by `make bench-push`."
    ]
    table = Table("Push", ["set", "folders", *COLUMNS.values()], rows)
    if options.json:
        Result("Push", text, [with_rows_before(table)], []).save(RESULT)
    print(table.markdown())


if __name__ == "__main__":
    main()
