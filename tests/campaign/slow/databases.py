"""PostgreSQL and SQLite crash, lock, fill up, or are set back."""

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg

from mailpoll import database
from tests.campaign.case import EMBEDDED, LEASE_BOUND, PRODUCTION, fault
from tests.campaign.nemesis import crash_postgres, terminate_backends
from tests.campaign.slow.load import AWAY, REAL, counted, stream
from tests.campaign.world import MAILPOLL, PROCFILE, World


@fault("F24", "PostgreSQL crashes every 20 seconds", sets=(PRODUCTION,), bound=30, **REAL)
def crashing_postgres(world: World, _: str) -> None:
    _under_load(world, 100, lambda: crash_postgres(world), every=20)


@fault("F25", "sessions of PostgreSQL are ended at random", sets=(PRODUCTION,), bound=30, **REAL)
def ended_sessions(world: World, _: str) -> None:
    _under_load(world, 60, lambda: terminate_backends(world), every=2)


def _under_load(world: World, seconds: float, strike: Callable[[], None], every: float) -> None:
    world.announced.append(AWAY)
    posts = [world.account() for _number in range(4)]
    world.start()
    deliver = stream(world, posts, seconds * 0.9, int(seconds * 5))
    struck = time.monotonic()

    def each() -> None:
        nonlocal struck
        deliver()
        if time.monotonic() - struck > every:
            strike()
            struck = time.monotonic()

    world.run_for(seconds, each)
    world.healed()
    world.settle(150)


@fault("F27", "a table is locked for 40 seconds", sets=(PRODUCTION,), **REAL)
def locked_table(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 10)
    world.start()
    world.until(lambda: counted() > 0, 120, "no load")
    with psycopg.connect(world.backing.database_url) as connection:
        connection.execute("LOCK TABLE email_accounts IN ACCESS EXCLUSIVE MODE")
        end = time.monotonic() + 40
        while time.monotonic() < end:
            world.supervise()
            time.sleep(0.5)
    world.deliver(post, 10)
    world.healed()
    world.settle(150)


@fault("F28", "PostgreSQL has no connection left", sets=(PRODUCTION,), **REAL)
def no_connection_left(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 10)
    world.start()
    world.until(lambda: counted() > 0, 120, "no load")
    taken = []
    terminate_backends(world)
    with suppress(psycopg.Error):
        while True:
            taken.append(psycopg.connect(world.backing.database_url))
    world.deliver(post, 10)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        world.supervise()
        time.sleep(0.5)
    for connection in taken:
        connection.close()
    world.healed()
    world.settle(150)


@fault(
    "F30",
    "four processes write to SQLite beside a long reader",
    sets=(EMBEDDED,),
    hurry=False,
    commands={f"{name}{n}": PROCFILE[name] for name in ("poller", "worker") for n in (1, 2)}
    | {"scheduler": PROCFILE["scheduler"]},
)
def crowded_sqlite(world: World, _: str) -> None:
    posts = [world.account() for _number in range(8)]
    world.start()
    deliver = stream(world, posts, 50, 800)
    url = f"file:{world.data / 'mailpoll.db'}?mode=ro"
    reader = sqlite3.connect(url, uri=True, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM email_raw_messages").fetchone()
    world.run_for(60, deliver)
    reader.close()
    world.healed()
    world.settle(150)
    logs = "".join(path.read_text() for path in world.directory.glob("*.log"))
    assert "database is locked" not in logs


@fault("F31", "the disk is full, then there is room again", sets=(EMBEDDED,), tmpfs="12m")
def full_disk(world: World, _: str) -> None:
    world.announced.append("disk|No space|full|I/O|" + AWAY)
    world.checker_options += ["--dead", "--unreadable"]
    post = world.account()
    world.deliver(post, 40, size=300_000)
    world.start()
    world.run_for(20)
    assert shutil.disk_usage(world.data).free < 2_000_000
    world.mount("300m", "remount")
    world.healed()
    world.settle(120)
    with sqlite3.connect(world.data / "mailpoll.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@fault("F32", "the database is restored from an earlier copy")
def restored_database(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 10)
    world.start()
    world.settle()
    world.stop()
    database.close_database()
    _copy_database(world, restore=False)
    world.deliver(post, 10)
    world.start()
    world.settle()
    world.stop()
    database.close_database()
    _copy_database(world, restore=True)
    world.deliver(post, 3)
    world.start()
    world.healed()
    world.settle(120)


def _copy_database(world: World, *, restore: bool) -> None:
    """Copy the database beside itself, or put the copy in its place."""
    if world.backing.name == EMBEDDED:
        names = [world.data / "mailpoll.db", world.directory / "copy.db"]
        source, target = reversed(names) if restore else names
        for tail in ("", "-wal", "-shm"):
            Path(f"{target}{tail}").unlink(missing_ok=True)
        with sqlite3.connect(source) as one, sqlite3.connect(target) as other:
            one.backup(other)
        return
    name = world.backing.database_url.rpartition("/")[2]
    names = [name, f"{name}-copy"]
    source, target = reversed(names) if restore else names
    admin = world.backing.database_url.replace(name, "postgres")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{target}" WITH (FORCE)'.encode())
        connection.execute(f'CREATE DATABASE "{target}" TEMPLATE "{source}"'.encode())
        if restore:
            connection.execute(f'DROP DATABASE "{source}"'.encode())


@fault("F33", "the database becomes read-only", sets=(PRODUCTION,), bound=LEASE_BOUND, **REAL)
def read_only_database(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 10)
    world.start()
    world.until(lambda: counted() > 0, 120, "no load")

    def set_to(value: str) -> None:
        with psycopg.connect(world.backing.database_url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            name = world.backing.database_url.rpartition("/")[2]
            connection.execute(
                f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}'.encode()
            )
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                "datname = current_database() AND pid <> pg_backend_pid()"
            )

    set_to("on")
    world.deliver(post, 10)
    before = _lines(world)
    world.run_for(30)
    # Waiting is quiet: a line a second, and few of what begins in that time.
    logged = {log: count - before[log] for log, count in _lines(world).items()}
    set_to("off")
    assert max(logged.values()) <= 35, logged
    database.close_database()
    world.healed()
    world.settle(150)


def _lines(world: World) -> dict[str, int]:
    """How much each process has logged."""
    return {path.name: path.read_text().count("\n") for path in world.directory.glob("*.log")}


@fault("F66", "a migration is killed at any write, and runs twice at once")
def killed_migration(world: World, _: str) -> None:
    calls = "pwrite64,fdatasync" if world.backing.name == EMBEDDED else "sendto"
    for number in range(12):
        url = _new_database(world, number)
        environ = {**os.environ, **world.child_environment, "DATABASE_URL": url}
        nth = world.chance.randint(1, 60 if world.backing.name == EMBEDDED else 40)
        inject = ["-e", f"inject={calls}:signal=SIGKILL:when={nth}"]
        strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", f"trace={calls}"]
        migrate = [*MAILPOLL, "migrate"]
        subprocess.run([*strace, *inject, *migrate], env=environ, capture_output=True, check=False)
        both = [
            subprocess.Popen(migrate, env=environ, stdout=subprocess.DEVNULL) for _n in range(2)
        ]
        assert [one.wait() for one in both] == [0, 0]
        from tests.campaign.checker import Database

        opened = Database(url)
        assert opened.rows("SELECT COUNT(*) AS n FROM migratehistory")[0]["n"] == 1
        assert opened.rows("SELECT COUNT(*) AS n FROM email_jobs")[0]["n"] == 0
        opened.close()
        if world.backing.postgres:
            world.backing.postgres.drop_database(url.rpartition("/")[2])


def _new_database(world: World, number: int) -> str:
    if world.backing.postgres:
        name = world.backing.database_url.rpartition("/")[2]
        return str(world.backing.postgres.create_database(f"{name}-{number}"))
    return f"sqlite:///{world.directory / f'other{number}.db'}"
