"""Faults of what people and machines do around mailpoll: requests, keys, upgrades, disks, power."""

import http.client
import json
import re
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import redis

from mailpoll import database, migrate
from mailpoll.crypto import key_id
from mailpoll.models import TABLES, EmailAccount
from mailpoll.settings import new_key
from tests.campaign.case import ATTEMPT_BOUND, EMBEDDED, PRODUCTION, fault
from tests.campaign.fast import expect
from tests.campaign.slow.load import AWAY, REAL, command, counted, stream
from tests.campaign.world import EVERYTHING, KEY, PASSWORD, PROCFILE, TOKEN, World
from tests.servers.proxy import SERVER, Direction, Fault, Piece, bandwidth

WITH_WEB: dict[str, Any] = {
    "hurry": False,
    "commands": {name: PROCFILE[name] for name in ("poller", "worker", "scheduler", "web")},
}
#: A migration of the next version.
NEXT = """
def migrate(migrator, database, *, fake=False):
    for name in {names}:
        migrator.sql(f"ALTER TABLE {{name}} ADD COLUMN of_next_version TEXT")
    migrator.sql("CREATE INDEX of_next_version ON email_raw_messages (of_next_version)")
"""
#: A SHA-256 in hexadecimal digits, as blobs are named.
HASH = re.compile(r"[0-9a-f]{64}")


def _ask(world: World, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """An answer's status and JSON; 0 when the process died over it, or is not up yet."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", int(world.child_environment["PORT"]), timeout=10
    )
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    try:
        connection.request(method, f"/admin{path}", json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()


@fault(
    "F09",
    "a web process is killed inside a request that changes something",
    variants=("account-written", "account-added", "deletion-asked"),
    commands={**EVERYTHING, "web": PROCFILE["web"]},
)
def killed_request(world: World, point: str) -> None:
    world.announced.append("Worker|WORKER|SIGKILL|" + AWAY)
    kept = world.account()
    world.deliver(kept, 3)
    new = world.office.open("new@example.org", port=world.unused_port())
    body = {
        "address": new.address,
        "password": PASSWORD,
        "host": "127.0.0.1",
        "port": new.port,
        "security": "plain",
    }
    world.start(f"{point}:kill:1")
    statuses = _asked(world, "POST", "/email-accounts", {201, 409}, body)
    _, listed = _ask(world, "GET", "/email-accounts")
    (made,) = [one["id"] for one in listed["items"] if one["address"] == new.address]
    world.uuids[new.address] = made
    _, changed = _ask(world, "PATCH", f"/email-accounts/{made}", {"poll_interval": 60})
    assert changed["poll_interval"] == 60
    world.settle(90)
    if point == "deletion-asked":
        _asked(world, "DELETE", f"/email-accounts/{made}", {202, 404})
        world.deleted[made] = new.address
    world.healed()
    world.settle(90)
    expect(world, f"{point}.1.kill")
    # What was committed before the death is found by whoever asks again.
    assert statuses[-1] == {"account-added": 409}.get(point, 201)


def _asked(world: World, method: str, path: str, wanted: set[int], body: Any = None) -> list[int]:
    """Ask again and again, as a client does whose connection broke; the statuses that came."""
    statuses = [0]

    def answered() -> bool:
        statuses.append(_ask(world, method, path, body)[0])
        return statuses[-1] in wanted

    world.until(answered, 60, f"no answer to {method} {path}")
    return statuses


@fault(
    "F71",
    "mailboxes are paused, resumed and polled more or less often while they are polled",
    commands={**EVERYTHING, "web": PROCFILE["web"]},
)
def changed_meanwhile(world: World, _: str) -> None:
    world.announced.append("Worker|WORKER|" + AWAY)
    paused, kept = world.account(), world.account()
    for post in (paused, kept):
        world.deliver(post, 10)
    world.start()
    path = f"/email-accounts/{world.uuids[paused.address]}"
    _asked(world, "GET", path, {200})
    for seconds in (0, -1, 1):
        status, told = _ask(world, "PATCH", path, {"poll_interval": seconds})
        assert status == 422
        assert "poll_interval" in json.dumps(told)
    # Paused and resumed in the middle of its polls, again and again
    for _number in range(10):
        assert _ask(world, "POST", f"{path}/pause")[1]["state"] == "paused"
        world.deliver(paused, 3)
        assert _ask(world, "POST", f"{path}/resume")[1]["state"] == "active"
        world.run_for(world.chance.uniform(0.1, 1))
    # A pause ends what is under way at its next commit: nothing comes after that
    _ask(world, "POST", f"{path}/pause")
    world.run_for(3)
    world.deliver(paused, 5)
    before = counted()
    world.run_for(8)
    assert counted() == before
    _ask(world, "POST", f"{path}/resume")
    # The other is polled every five seconds from now on, which its next poll obeys
    other = f"/email-accounts/{world.uuids[kept.address]}"
    assert _ask(world, "PATCH", other, {"poll_interval": 5})[1]["poll_interval"] == 5
    world.deliver(kept, 5)
    world.healed()
    world.settle(90)


# The power fails


@fault("F12", "the power fails: what was not flushed is gone", sets=(EMBEDDED,))
def power_cut(world: World, _: str) -> None:
    """A row may only be written when bytes, name and directory of its blob are flushed.

    Any write that was not flushed may have reached the disk or not. So the log of system calls is
    read in order: at each write to the database, every blob that it names has to be durable.
    """
    log = world.directory / "calls"
    trace = "trace=openat,write,pwrite64,rename,renameat,renameat2,fsync,fdatasync,syncfs"
    strace = ["strace", "-f", "-y", "-qq", "--seccomp-bpf", "-s", "70000", "-o", str(log)]
    world.commands["everything"] = [*strace, "-e", trace, *world.commands["everything"]]
    post = world.account()
    world.deliver(post, 30, attachments=3)
    world.deliver(post, 2, size=700_000)
    world.start()
    world.settle(240)
    world.stop()
    named, early = _named_before_durable(log)
    assert named > 40, "the log names no blobs"
    assert not early, early[:5]


def _named_before_durable(log: Path) -> tuple[int, list[str]]:
    """How many blobs the database names, and those that it named too early."""
    flushed: set[str] = set()
    unflushed_names: dict[str, set[str]] = defaultdict(set)
    durable: set[str] = set()
    written: set[str] = set()
    named: set[str] = set()
    early: list[str] = []
    for call, words, ended in _calls(log):
        paths = re.findall(r"<(/[^>]*)>", words)
        if call in ("write", "pwrite64") and "mailpoll.db" in (paths or [""])[0]:
            found = set(HASH.findall(words)) & written
            early += [f"{name} in {words[:80]}" for name in found - durable]
            named |= found
        elif call == "write" and "/blobs/" in (paths or [""])[0]:
            flushed.discard(paths[0])
        elif call.startswith("rename") and ended:
            quoted = re.findall(r'"([^"]*)"', words)
            source = quoted[0] if quoted[0].startswith("/") else f"{paths[0]}/{quoted[0]}"
            name = HASH.search(quoted[1])
            if name:
                written.add(name[0])
                assert source in flushed or any(one in flushed for one in paths), words
                unflushed_names[paths[-1]].add(name[0])
        elif call in ("fsync", "fdatasync") and ended and paths:
            flushed.add(paths[0])
            durable |= unflushed_names.pop(paths[0], set())
        elif call == "syncfs" and ended:
            flushed |= {"everything"}
            for names in unflushed_names.values():
                durable |= names
            unflushed_names.clear()
    return len(named), early


def _calls(log: Path) -> Iterator[tuple[str, str, bool]]:
    """System calls in the order of the log: name, arguments, whether it has ended."""
    begun: dict[str, tuple[str, str]] = {}
    for line in log.read_text(errors="replace").splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.startswith("<..."):
            if pid in begun:
                yield (*begun.pop(pid), True)
            continue
        call, opened, words = rest.partition("(")
        if not opened:
            continue
        if words.endswith("<unfinished ...>"):
            begun[pid] = (call, words)
            yield call, words, False
        else:
            yield call, words, True


# Servers that are set up wrongly, or full


@fault("F21", "Redis throws keys away when it is full", **REAL)
def evicting_redis(world: World, _: str) -> None:
    world.announced.append(AWAY)
    client = redis.Redis.from_url(world.backing.redis.url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    told = command(world, "doctor", "--json")
    assert "noeviction" in told.stdout, told.stdout + told.stderr
    posts = [world.account() for _number in range(4)]
    world.start()
    world.until(lambda: client.dbsize() > 0, 60, "no load")
    deliver = stream(world, posts, 40, 400)
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 20_000)
    world.run_for(50, deliver)
    assert client.info("stats")["evicted_keys"] > 0
    client.config_set("maxmemory", 0)
    world.healed()
    world.settle(180)


@fault(
    "F29",
    "the disk of PostgreSQL is full, then there is room again",
    sets=(PRODUCTION,),
    bound=ATTEMPT_BOUND,
    **REAL,
)
def full_postgres(world: World, _: str) -> None:
    world.announced.append("DiskFull|No space|could not extend|" + AWAY)
    post = world.account()
    world.deliver(post, 10)
    with _on_small_disk(world) as disk:
        world.start()
        world.until(lambda: counted() == 10, 120, "no load")
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            file.write(bytes(max(0, shutil.disk_usage(disk).free - 200_000)))
        world.deliver(post, 1_000)
        world.run_for(40)
        assert counted() < 1_010
        ballast.unlink()
        database.close_database()
        world.healed()
        world.settle(180)
        assert counted() == 1_010
        world.stop()


@contextmanager
def _on_small_disk(world: World) -> Iterator[Path]:
    """Let the tables lie on a disk of 64 MB of their own for the block."""
    directory = Path("/var/tmp") / f"mailpoll-{world.backing.bucket}"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", directory], check=True)
    shutil.chown(directory, "postgres")
    name = world.backing.database_url.rpartition("/")[2]
    database.close_database()
    with _superuser(world) as connection:
        connection.execute(f"CREATE TABLESPACE \"{name}\" LOCATION '{directory}'".encode())
        connection.execute(f'ALTER DATABASE "{name}" SET TABLESPACE "{name}"'.encode())
    try:
        yield directory
    finally:
        database.close_database()
        with _superuser(world) as connection:
            _end_sessions(connection, name)
            connection.execute(f'ALTER DATABASE "{name}" SET TABLESPACE pg_default'.encode())
            connection.execute(f'DROP TABLESPACE "{name}"'.encode())
        subprocess.run(["umount", "-l", directory], check=True)
        directory.rmdir()


def _superuser(world: World) -> "psycopg.Connection[Any]":
    url = world.backing.database_url.rpartition("/")[0]
    return psycopg.connect(f"{url}/postgres", autocommit=True)


def _end_sessions(connection: "psycopg.Connection[Any]", name: str) -> None:
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
    )


@fault(
    "F40",
    "a process dies in the middle of a put of 60 MB",
    sets=(PRODUCTION,),
    through=("store",),
    bound=240,
    **REAL,
)
def killed_put(world: World, _: str) -> None:
    world.announced.append(AWAY)
    meter = Meter(SERVER)
    world.proxies["store"].faults = (meter, bandwidth(4_000_000, SERVER))
    post = world.account()
    world.deliver(post, 1, size=60_000_000)
    world.start()
    world.until(lambda: meter.most > 20_000_000, 180, "no put")
    world.kill("poller")
    world.proxies["store"].faults = ()
    world.healed()
    world.settle(240)
    seaweed = world.backing.seaweed
    assert seaweed
    uploads = seaweed.client()._list_multipart_uploads(world.backing.bucket)
    assert not uploads.uploads


@dataclass
class Meter(Fault):
    """No fault: ``most`` is the number of bytes that any connection has brought."""

    most: int = 0

    def treat(self, way: Direction, data: bytes) -> Iterable[Piece]:
        self.most = max(self.most, way.came)
        yield 0.0, data


# Upgrades and keys


def _names(tables: Iterable[Any]) -> list[str]:
    return [table._meta.table_name for table in tables]


@fault("F65", "a new version is rolled out under load, after a migration", **WITH_WEB)
def rolling_upgrade(world: World, _: str) -> None:
    """The new version's schema has a column and an index more; old processes run on beside it."""
    world.announced.append("SIGTERM|Worker exiting|" + AWAY)
    posts = [world.account() for _number in range(5)]
    world.start()
    deliver = stream(world, posts, 60, 400)
    statuses: list[int] = []
    world.until(lambda: _ask(world, "GET", "/stats")[0] == 200, 60, "no web")

    def each() -> None:
        deliver()
        statuses.append(_ask(world, "GET", "/stats")[0])

    world.run_for(10, each)
    migrations = world.directory / "migrations"
    shutil.copytree(migrate.directory(), migrations)
    (migrations / "999_next.py").write_text(NEXT.format(names=_names(TABLES)))
    with mock.patch.object(migrate, "directory", lambda: migrations):
        assert migrate.migrate() == ["999_next"]
    world.run_for(15, each)
    for role in list(world.commands):
        world.processes[role].terminate()  # it ends in its own time, and is started again
        world.run_for(10, each)
    world.healed()
    world.settle(150)
    assert len(statuses) > 100
    assert sum(status >= 500 for status in statuses) < len(statuses) / 1_000


@fault("F68", "key rotation is killed, and goes on; then the old key is gone")
def killed_rotation(world: World, _: str) -> None:
    world.announced.append("no key|does not open|" + AWAY)
    posts = [world.account() for _number in range(6)]
    for post in posts:
        world.deliver(post, 3)
    world.start()
    world.settle(90)
    new = new_key()
    # R1: the new key is there, and nothing is sealed with it yet
    world.stop()
    world.child_environment["MAILPOLL_SECRET_KEY"] = ""
    ring = world.data / "secret.key"
    ring.write_text(f"{new}\n{KEY}")
    ring.chmod(0o600)
    world.start()
    # R2: killed after a page
    killed = command(world, "keys", "rotate", MAILPOLL_FAULT="keys-page:kill:1")
    assert killed.returncode == -signal.SIGKILL
    world.deliver(posts[0], 2)
    world.settle(90)
    done = command(world, "keys", "rotate", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert command(world, "keys", "status").returncode == 0
    # R3: killed when the old key is gone
    gone = command(world, "keys", "remove", key_id(KEY), MAILPOLL_FAULT="key-removed:kill:1")
    assert gone.returncode == -signal.SIGKILL
    assert ring.read_text().split() == [new]
    world.stop()
    world.start()
    world.deliver(posts[1], 2)
    world.healed()
    world.settle(90)
    # A ring that has not the key of what is stored is refused, by name and at once
    refused = command(world, "poller", MAILPOLL_SECRET_KEY=new_key())
    assert refused.returncode not in (0, -signal.SIGKILL)
    assert "MAILPOLL_SECRET_KEY" in refused.stderr + refused.stdout
    with database.connected():
        assert EmailAccount.select().where(EmailAccount.last_error.is_null(False)).count() == 0
    expect(world, "keys-page.1.kill", "key-removed.1.kill")
