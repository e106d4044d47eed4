"""A whole mailpoll for one fault: servers, real processes that are started again, and the checker.

Time is real where ``hurry`` is off. With it, ticks come every second, and leases and pauses of what
a killed process held are ended at once, so that a run takes seconds instead of minutes.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import peewee
import redis
from dramatiq.common import dq_name

from mailpoll import accounts, actors, database, queues
from mailpoll.broker import QUEUES
from mailpoll.models import (
    AccountState,
    EmailAccount,
    EmailAttachment,
    EmailFetchFailure,
    EmailJob,
    EmailRawMessage,
    FetchVerdict,
    JobState,
)
from mailpoll.settings import new_key, new_token
from tests.campaign.checker import SETS, usage
from tests.campaign.mail import Post, PostOffice, letter
from tests.campaign.store import StoreLayer
from tests.integration.system import configured
from tests.servers.process import free_ports
from tests.servers.proxy import Proxy
from tests.servers.scripted_imap import Rule
from tests.servers.seaweed import Seaweed
from tests.servers.valkey import Valkey

ROOT = Path(__file__).parents[2]
TOKEN, KEY = new_token(), new_key()
PASSWORD = "canary-Zz9-password"
HEARTBEATS = "mailpoll:__heartbeats__"
#: In a million commands of Dramatiq.
ALWAYS = 1_000_000
#: Seconds that is waited in real time: what recovers after its bound is to have a figure.
LONGEST = 420
#: Seconds after its first connection until a process has begun to work: it may load for long.
WORKING = 5
#: Seconds between two looks at what goes on.
LOOK = 0.2
#: What must be empty too when every account is deleted, blobs and temporary files of any age.
OF_NOTHING = ("leaked", "missing", "unexpected", "corrupt", "orphan", "stuck")
DRAMATIQ = [sys.executable, "-m", "dramatiq", "mailpoll.actors", "--skip-logging"]
#: One process for all queues starts in half the time of two.
EVERYTHING = {"everything": [*DRAMATIQ, "--processes", "1", "--threads", "4"]}
#: What the scheduler does every minute, and the clearing that it does every hour.
HOURLY = (actors.clear_fallback, actors.empty_deleted)
TICKED = (actors.schedule_polls, actors.sweep, actors.drain_fallback, *HOURLY)
#: Seconds, in real time, between two of what the scheduler does every hour.
HOURLY_PAUSE = 30
MAILPOLL = [sys.executable, "-m", "mailpoll"]
PROCFILE = {name: [*MAILPOLL, name] for name in ("poller", "worker", "scheduler", "web")}


class NotQuiet(AssertionError):
    """Something was not done in its time."""


@dataclass
class Backing:
    """Where a mailpoll keeps what it has.

    Parameters:
      name: embedded or production.
      database_url: as this process reaches it; '' is SQLite in the data directory.
      redis: a server of this world's own.
      seaweed: the object store; ``None`` keeps blobs in files.
      bucket: of this world's own.
    """

    name: str
    redis: Valkey
    database_url: str = ""
    seaweed: Seaweed | None = None
    bucket: str = ""
    postgres: Any = None


@dataclass
class World:
    """One mailpoll with its mail servers.

    Parameters:
      directory: for everything that is written.
      through: what processes reach through a proxy: database, redis, store.
      layer: put the layer that breaks requests before the object store.
      commands: the processes, by role.
      tmpfs: the size of a file system of its own for the data directory, as in "12m".
      variables: more of the environment.
    """

    directory: Path
    backing: Backing
    seed: int = 1
    hurry: bool = True
    through: Sequence[str] = ()
    layer: bool = False
    commands: dict[str, list[str]] = field(default_factory=lambda: dict(EVERYTHING))
    variables: dict[str, str] = field(default_factory=dict)
    tmpfs: str = ""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.proxies: dict[str, Proxy] = {}
        self.store_layer: StoreLayer | None = None
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.faults = ""
        self.deleted: dict[str, str] = {}
        self.uuids: dict[str, str] = {}
        self.recovery = 0.0
        self.fault_end = 0.0
        #: Dramatiq says it of a worker that was killed.
        self.announced: list[str] = ["exited unexpectedly"]
        self.deaths = 0
        self.checker_options: list[str] = []
        #: What processes had when they had begun to work, by their number.
        self.before: dict[int, dict[str, int]] = {}
        self.supervised = True
        #: For mail servers and the proxies before them.
        self._ports = free_ports(150)
        self._unused = list(self._ports)
        self._number = 0
        self._last_tick = self._last_death = 0.0
        self._since = 0.0
        self._began: dict[int, float] = {}

    # Life

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.data = self.directory / "data"
        self.fault_directory = self.directory / "faults"
        self.fault_directory.mkdir()
        self._stack = ExitStack()
        self.office = self._stack.enter_context(PostOffice(self.directory / "manifest.jsonl"))
        if self.tmpfs:
            self.data.mkdir(mode=0o700)
            self.mount(self.tmpfs)
            self._stack.callback(subprocess.run, ["umount", "-l", str(self.data)], check=False)
        environ = self._environment()
        self._stack.enter_context(configured(environ))
        self._stack.callback(self.stop)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def mount(self, size: str, *options: str) -> None:
        """Give the data directory a file system of its own, or (``remount``) another size."""
        words = ",".join([*options, f"size={size}"])
        command = ["mount", "-t", "tmpfs", "-o", words, "tmpfs", str(self.data)]
        subprocess.run(command, check=True)

    def _environment(self) -> dict[str, str]:
        backing, through = self.backing, self.through
        direct = {
            "MAILPOLL_DATA_DIR": str(self.data),
            "MAILPOLL_SECRET_KEY": KEY,
            "MAILPOLL_API_TOKEN": TOKEN,
            "MAILPOLL_IMAP_ALLOWED_NETWORKS": "127.0.0.0/8",
            "MAILPOLL_IMAP_PORTS": ",".join(map(str, self._ports)),
            "MAILPOLL_IMAP_ALLOW_PLAIN": "yes",
            "MAILPOLL_IMAP_READ_TIMEOUT": "5",
            "MAILPOLL_BATCH_MESSAGES": "5",
            "MAILPOLL_PART_BYTES": "200000",
            "MAILPOLL_POLLER_THREADS": "8",
            "MAILPOLL_WORKER_PROCESSES": "1",
            "MAILPOLL_SWEEP_AFTER": "2" if self.hurry else "20",
            "MAILPOLL_LOG_FORMAT": "json",
            "DATABASE_URL": backing.database_url,
            "REDIS_URL": backing.redis.url,
            "STORAGE_URL": backing.seaweed.url_of(backing.bucket) if backing.seaweed else "",
            "PORT": str(free_ports(1)[0]),
        }
        direct |= {name: value for name, value in self.variables.items() if value}
        self.child_environment = direct | {
            "MAILPOLL_TEST": "1",
            "MAILPOLL_FAULT_DIR": str(self.fault_directory),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "dramatiq_queue_prefetch": "16",
        }
        child = self.child_environment
        if "redis" in through:
            child["REDIS_URL"] = self._proxied("redis", backing.redis.port, direct["REDIS_URL"])
        if "database" in through and backing.postgres:
            url, port = direct["DATABASE_URL"], backing.postgres.port
            child["DATABASE_URL"] = self._proxied("database", port, url)
        if backing.seaweed and self.layer:
            self.store_layer = StoreLayer(backing.seaweed, self.chance)
            self._stack.enter_context(self.store_layer)
            child["STORAGE_URL"] = self.store_layer.url_of(backing.bucket)
        elif backing.seaweed and "store" in through:
            url = direct["STORAGE_URL"]
            child["STORAGE_URL"] = self._proxied("store", backing.seaweed.s3_port, url)
        return direct

    def _proxied(self, name: str, port: int, url: str) -> str:
        proxy = self._stack.enter_context(Proxy(port))
        self.proxies[name] = proxy
        assert f":{port}" in url
        return url.replace(f":{port}", f":{proxy.port}", 1)

    # Mail

    def unused_port(self) -> int:
        """A port that mail servers may have."""
        return self._unused.pop()

    def account(
        self,
        rules: Sequence[Rule] = (),
        *,
        proxy: bool = False,
        round_trip: float = 0.0,
        interval: int = 5,
        **options: Any,
    ) -> Post:
        """A new mailbox at a server of its own.

        Parameters:
          interval: seconds between its polls.
          round_trip: seconds through the proxy to the server and back.
        """
        self._number += 1
        address = f"box{self._number}@example.org"
        port = self.unused_port()
        if proxy:
            post = self.office.open(address, rules, **options)
            made = Proxy(post.port, round_trip, port)
            self.proxies[address] = self._stack.enter_context(made)
        else:
            post = self.office.open(address, rules, port=port, **options)
        row = accounts.create(
            address=address,
            password=PASSWORD,
            host="127.0.0.1",
            port=port,
            security="plain",
            poll_interval=interval,
            test=False,
        )
        self.uuids[address] = row.uuid
        queues.offer(actors.poll_account, row.id)  # as the API does
        return post

    def deliver(self, post: Post, messages: int, attachments: int = 1, size: int = 300) -> None:
        """Put new messages into a mailbox; every third has attachments."""
        for _ in range(messages):
            self._number += 1
            parts = attachments if self._number % 3 == 0 else 0
            post.deliver(*letter(self.chance, self._number, parts, size))
        self._since = time.time()

    def delete(self, post: Post) -> None:
        """Ask for an account's deletion, as the API does."""
        uuid = self.uuids[post.address]
        accounts.delete(uuid)
        self.deleted[uuid] = post.address

    # Processes

    def start(self, faults: str = "", *roles: str) -> None:
        """Start the processes, those of ``roles`` only if any are named."""
        self.faults = faults
        for role in roles or self.commands:
            self._launch(role)

    def _launch(self, role: str) -> None:
        log = self.directory / f"{role}.log"
        environ = {**os.environ, **self.child_environment, "MAILPOLL_FAULT": self.faults}
        with log.open("ab") as output:
            self.processes[role] = subprocess.Popen(
                self.commands[role],
                cwd=self.directory,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End all processes at once."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.processes.clear()

    def end(self) -> None:
        """End all processes in good order: they put back what they have in hand."""
        for role in self.processes:
            self.signal(role, signal.SIGTERM)
        for process in self.processes.values():
            process.wait(30)
        self.stop()

    def miss_workers(self) -> None:
        """Let all that workers had in hand come back, work it off, and end: nobody has any then.

        An answer of Redis that was lost, or a death, leaves messages in hand. Dramatiq puts them
        back when the process has been gone for a minute, which passes at once here.
        """
        self.end()
        client = redis.Redis.from_url(self.backing.redis.url)
        for worker in client.zrange(HEARTBEATS, 0, -1):
            client.zadd(HEARTBEATS, {worker: 1})
        broker = actors.poll_account.broker
        chance, broker.maintenance_chance = broker.maintenance_chance, ALWAYS
        for queue in QUEUES:
            broker.do_qsize(queue)
            broker.do_qsize(dq_name(queue))
        broker.maintenance_chance = chance
        self.start()
        self._since = time.time()
        self.until(lambda: not self.restless(), LONGEST, "not worked off")
        self.end()
        self.checker_options.append("--settled")

    def kill(self, role: str) -> None:
        """SIGKILL a process with its children; it is started again."""
        self.signal(role, signal.SIGKILL)

    def signal(self, role: str, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.processes[role].pid, number)

    def tasks(self, role: str) -> list[int]:
        """The processes of a role, its own and those that it has started."""
        own = self.processes[role].pid
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.getpgid(int(entry.name)) == own:
                    found.append(int(entry.name))
        return sorted(found)

    def supervise(self) -> None:
        """Start again what has ended."""
        for role, process in list(self.processes.items()):
            if process.poll() is not None and self.supervised:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                self.deaths += 1
                self._last_death = time.monotonic()
                if self.hurry:
                    self.pass_time()
                self._launch(role)

    def fired(self) -> list[str]:
        """The faults that have happened, as ``point.hit.action``."""
        return sorted(path.name for path in self.fault_directory.glob("*.*.*"))

    # Time

    def tick(self) -> None:
        """What the scheduler does every minute; in real time, what it would do in an hour."""
        with suppress(redis.RedisError):
            for actor in TICKED if self.hurry else HOURLY:
                actor.send()
        self._last_tick = time.monotonic()

    def pass_time(self) -> None:
        """Let everything that waits for a time be due, and every lease end."""
        with suppress(peewee.PeeweeException), database.transaction():
            now = database.now()
            table = EmailAccount
            table.update(lease_until=None).where(table.lease_until.is_null(False)).execute()
            table.update(queued_until=None, next_poll_at=now, not_before=None).execute()
            message, job, failure = EmailRawMessage, EmailJob, EmailFetchFailure
            message.update(next_attempt_at=now).where(message.status == "stored").execute()
            job.update(lease_until=None).where(job.state == JobState.RUNNING).execute()
            failure.update(next_attempt_at=now).where(
                failure.verdict.in_((FetchVerdict.WAITING, FetchVerdict.UNREADABLE))
            ).execute()

    def run_for(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        """Let time pass under supervision; ``each`` is called at each look."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            each()

    def look(self) -> None:
        """One step of supervision."""
        self.supervise()
        pause = 1 if self.hurry else HOURLY_PAUSE
        if (self.hurry or self.fault_end) and time.monotonic() - self._last_tick > pause:
            self.tick()
        self._measure()
        time.sleep(LOOK)

    def _measure(self) -> None:
        """Note what each process has that has been connected for some seconds, once."""
        now = time.monotonic()
        for role in self.processes:
            for pid in self.tasks(role):
                if pid in self.before or not (used := usage(pid)) or not used["connections"]:
                    continue
                if now - self._began.setdefault(pid, now) > WORKING:
                    self.before[pid] = used

    def until(self, done: Callable[[], Any], seconds: float, what: str) -> float:
        """Wait under supervision; the seconds that it took."""
        start = time.monotonic()
        passed = start
        while not done():
            self.look()
            now = time.monotonic()
            if self.hurry and now - max(passed, self._last_death) > 8:
                self.pass_time()
                passed = now
            if now - start > seconds:
                raise NotQuiet(f"{what}: not within {seconds:.0f} s; {self._state()}")
        return time.monotonic() - start

    def healed(self) -> None:
        """Note that the faults have ended: from now on the clock runs."""
        self.fault_end = time.time()
        self._since = max(self._since, self.fault_end)

    def settle(self, seconds: float = 60) -> None:
        """Wait until all is polled, processed and put away."""
        if not self.fault_end:
            self.healed()
        patience = seconds if self.hurry else max(seconds, LONGEST)
        if self.hurry:
            with suppress(peewee.PeeweeException), database.transaction():
                EmailAccount.update(next_poll_at=database.now(), queued_until=None).execute()
        took = self.until(lambda: not self.restless(), patience, "not settled")
        self.recovery = max(self.recovery, took)

    def restless(self) -> list[str]:
        """What is still to be done; empty when all is quiet."""
        try:
            return list(self._unfinished())
        except (peewee.PeeweeException, OSError) as error:
            return [f"database: {type(error).__name__}"]

    def _unfinished(self) -> Iterable[str]:
        with database.connected():
            for row in EmailAccount.select():
                success = row.last_success_at.timestamp() if row.last_success_at else 0.0
                # One that lies ahead was told by a clock that has been set right since.
                ended = self._since <= success < time.time() + 5
                if row.state == AccountState.DELETING:
                    yield f"{row.uuid} is being deleted"
                elif not ended or row.imported_at is None:
                    yield (
                        f"{row.address} {row.state}: success {row.last_success_at}, "
                        f"lease {row.lease_until}, queued {row.queued_until}, "
                        f"due {row.next_poll_at}, {row.last_error_kind} {row.last_error}"
                    )
            message = EmailRawMessage
            stored = message.select().where(message.status == "stored").count()
            if stored:
                yield f"{stored} messages stored"
            local = sum(
                table.select().where(table.storage_type == "local").count()
                for table in (message, EmailAttachment)
            )
            if local and self.backing.seaweed:
                yield f"{local} blobs in local files"
            copies = message.select().where(
                message.storage_type == "oss", message.storage_key.in_(self.fallen_back())
            )
            if copies.exists():
                yield "copies in local files"
            jobs = EmailJob.select().where(EmailJob.state == JobState.RUNNING).count()
            if jobs:
                yield f"{jobs} jobs run"
            failure = EmailFetchFailure
            waiting = failure.select().where(failure.verdict == FetchVerdict.WAITING).count()
            if waiting:
                yield f"{waiting} messages not fetched"

    def fallen_back(self) -> list[str]:
        """The keys of blobs in local files, while blobs belong in an object store."""
        if not self.backing.seaweed:
            return []
        root = self.data / "blobs"
        return [str(one.relative_to(root)) for one in root.glob("*-*/*/*")]

    def _state(self) -> str:
        logs = [
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted(self.directory.glob("*.log"))
        ]
        return "\n".join([*self.restless()[:5], *logs])

    # The verdict

    def check(self, *options: str) -> dict[str, Any]:
        """The checker's report; it is a process of its own."""
        backing = self.backing
        database_url = backing.database_url or f"sqlite:///{self.data / 'mailpoll.db'}"
        command = [sys.executable, "-m", "tests.campaign.checker"]
        command += ["--manifest", str(self.office.manifest.path), "--database", database_url]
        command += ["--store", f"file://{self.data / 'blobs'}", "--redis", backing.redis.url]
        if backing.seaweed:
            command += ["--store", backing.seaweed.url_of(backing.bucket)]
        for uuid, address in self.deleted.items():
            command += ["--deleted", f"{uuid}:{address}"]
        for path in sorted(self.directory.glob("*.log")):
            command += ["--log", str(path)]
        for words in self.announced:
            command += ["--announced", words]
        for role in self.processes:
            for pid in self.tasks(role):
                command += ["--pid", str(pid)]
        for pid, used in self.before.items():
            command += ["--before", ":".join(map(str, (pid, *used.values())))]
        command += ["--canary", PASSWORD, "--search", str(self.directory)]
        command += ["--fault-end", str(self.fault_end), *self.checker_options, *options]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if run.returncode not in (0, 1) or not run.stdout:
            raise AssertionError(f"the checker failed: {run.stderr[-2000:]}")
        return json.loads(run.stdout)  # type: ignore[no-any-return]

    def finish(self) -> dict[str, Any]:
        """Check what is left, then delete all and check that nothing is left; the first report."""
        report = self.check()
        assert_clean(report)
        self.stop()
        with database.connected():
            rows = list(EmailAccount.select(EmailAccount.uuid, EmailAccount.address).tuples())
        for uuid, address in rows:
            job = accounts.delete(uuid)
            assert job is not None
            actors.delete_account.fn(job.id)
            self.deleted[uuid] = address
        assert_clean(self.check("--gc", "0"), only=OF_NOTHING)
        return report


def assert_clean(report: dict[str, Any], only: Iterable[str] = SETS) -> None:
    """All of the checker's sets are empty."""
    wrong = {name: report[name][:5] for name in only if report[name]}
    assert not wrong, json.dumps(wrong, indent=1)
