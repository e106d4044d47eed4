"""The faults that take time. Processes as in the Procfile, in real time unless said otherwise."""

import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dramatiq
import psycopg
import redis

from mailpoll import actors, database
from mailpoll.models import EmailAccount, EmailRawMessage
from tests.campaign.case import ATTEMPT_BOUND, EMBEDDED, LEASE_BOUND, PRODUCTION, fault
from tests.campaign.fast import expect
from tests.campaign.mail import Post, letter
from tests.campaign.nemesis import (
    NEMESES,
    crash_postgres,
    drop_clients,
    kill_one,
    plan,
    terminate_backends,
)
from tests.campaign.store import StoreFault
from tests.campaign.world import MAILPOLL, PROCFILE, World
from tests.servers.proxy import BlackHole, Slicer, bandwidth

#: The processes of the Procfile that move mail.
REAL: dict[str, Any] = {
    "hurry": False,
    "commands": {name: PROCFILE[name] for name in ("poller", "worker", "scheduler")},
}
#: What any process says when something that it needs is away.
AWAY = (
    "redis|Redis|Connection|connection error|OperationalError|InterfaceError|DatabaseError|"
    "StoreUnavailable|Timeout|periodiq|exited unexpectedly|process ended|AdminShutdown|"
    "CannotConnect|MaxConnectionsExceeded|ReadOnly"
)


def stream(world: World, posts: list[Post], seconds: float, total: int) -> Callable[[], None]:
    """Delivers ``total`` messages spread over time, when it is called again and again."""
    start, sent = time.monotonic(), 0

    def deliver() -> None:
        nonlocal sent
        due = min(total, int(total * (time.monotonic() - start) / seconds) + 1)
        while sent < due:
            amount = min(due - sent, world.chance.randint(1, 5))
            size = world.chance.choice((300, 300, 3_000, 30_000))
            world.deliver(world.chance.choice(posts), amount, size=size)
            sent += amount

    return deliver


def command(world: World, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """A command of an operator, with variables of its own."""
    return subprocess.run(
        [*MAILPOLL, *words],
        env={**os.environ, **world.child_environment, **more},
        capture_output=True,
        text=True,
        check=False,
    )


def counted() -> int:
    with database.connected():
        return int(EmailRawMessage.select().count())


@fault(
    "F04",
    "a poller dies with blobs in the fall-back, and the store is back before the next poll",
    variants=("left-behind",),
    sets=(PRODUCTION,),
    through=("store",),
)
def left_behind(world: World, _: str) -> None:
    post = world.account()
    world.deliver(post, 5)
    world.proxies["store"].down()
    world.start("fell-back:kill:1")
    world.until(world.fired, 40, "not killed")
    # What the dead poll leaves is a second copy when the mail has come again.
    assert world.fallen_back()
    world.proxies["store"].up()
    world.healed()
    world.settle(90)
    assert not world.fallen_back()


@fault("F06", "processes are killed at random, again and again", bound=240, **REAL)
def random_kills(world: World, _: str) -> None:
    seconds = 60 * float(os.environ.get("MAILPOLL_CAMPAIGN_MINUTES", "3"))
    posts = [world.account() for _number in range(20)]
    world.announced.append(AWAY)
    world.start()
    deliver = stream(world, posts, seconds * 0.8, int(seconds * 8))
    next_kill = time.monotonic() + 3

    def each() -> None:
        nonlocal next_kill
        deliver()
        if time.monotonic() > next_kill:
            kill_one(world)
            next_kill = time.monotonic() + world.chance.uniform(0.2, 2.2)

    world.run_for(seconds, each)
    world.healed()
    world.settle(240)


@fault("F07", "the scheduler is away for two minutes, then back", **REAL)
def no_scheduler(world: World, _: str) -> None:
    posts = [world.account() for _number in range(5)]
    for post in posts:
        world.deliver(post, 5)
    world.start("", "poller", "worker")
    world.run_for(120)
    world.start("", "scheduler")
    world.healed()
    world.settle(150)


@fault(
    "F08",
    "two schedulers",
    hurry=False,
    commands={**REAL["commands"], "second": PROCFILE["scheduler"]},
)
def two_schedulers(world: World, _: str) -> None:
    posts = [world.account() for _number in range(5)]
    with database.transaction():
        EmailAccount.update(poll_interval=60).execute()
    for post in posts:
        world.deliver(post, 5)
    world.start()
    world.settle(150)
    before = [_sessions(post) for post in posts]
    world.run_for(180)
    polls = [_sessions(post) - one for post, one in zip(posts, before, strict=True)]
    assert all(2 <= count <= 4 for count in polls), polls
    world.healed()
    world.settle(150)


def _sessions(post: Post) -> int:
    return sum(command.upper().startswith("LOGIN") for command in post.commands)


@fault(
    "F10",
    "a process stands still beyond its lease, and comes back",
    variants=("blobs-durable",),
)
# Stopped inside a transaction of SQLite, it would stop every writer: that is no lease's matter.
@fault(
    "F10",
    "a process stands still beyond its lease, and comes back",
    variants=("before-commit", "before-finish"),
    sets=(PRODUCTION,),
)
def zombie(world: World, point: str) -> None:
    world.announced.append("LeaseLost|Timeout|OperationalError")
    post = world.account()
    world.deliver(post, 12)
    world.start(f"{point}:stop:1")
    world.until(world.fired, 30, "not stopped")
    world.commands["second"] = world.commands["everything"]
    world.faults = ""
    world._launch("second")
    world.pass_time()
    world.run_for(10)
    for pid in world.tasks("everything"):
        os.kill(pid, signal.SIGCONT)
    world.healed()
    world.settle(90)
    expect(world, f"{point}.1.stop")


@fault("F11", "SIGTERM during a large download", bound=180, **REAL)
def terminated(world: World, _: str) -> None:
    post = world.account(proxy=True)
    world.proxies[post.address].faults = (bandwidth(1_000_000),)
    world.deliver(post, 1, size=40_000_000)
    world.start()
    world.until(lambda: any("BODY.PEEK" in one for one in post.commands), 120, "no download")
    time.sleep(2)
    process = world.processes.pop("poller")
    start = time.monotonic()
    process.terminate()
    process.wait(30)
    assert time.monotonic() - start < 25
    world.start("", "poller")
    world.healed()
    world.settle(240)


#: Let the parser do something fatal with one message. A process loads it when it starts.
POISONED = """
import os, signal
from mailpoll import parsing

parse = parsing.parse

def poisoned(raw):
    content = raw if isinstance(raw, bytes) else raw.read_bytes()
    if b"Subject: poison" in content:
        {act}
    return parse(raw)

parsing.parse = poisoned
"""
POISONS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "crashed": "os.kill(os.getpid(), signal.SIGSEGV)",
    "endless": "while True: pass",
    "eight-gigabytes": "bytearray(8 << 30)",
}


# What is parsed for ever is interrupted after 30 s, and what waits for its turn comes then.
@fault(
    "F13",
    "a message kills its parser, keeps it for ever or takes 8 GB",
    variants=tuple(POISONS),
    bound=240,
)
def poison(world: World, how: str) -> None:
    world.announced.append("MemoryError|TurnTooLong|given up|exited unexpectedly")
    # Given up: the message has failed, and its queue entry is kept for people to see.
    world.checker_options += ["--failed", "--dead"]
    customized = world.directory / "poison" / "sitecustomize.py"
    customized.parent.mkdir()
    customized.write_text(POISONED.format(act=POISONS[how]))
    world.commands["everything"] = [
        *("env", f"PYTHONPATH={customized.parent}:{world.child_environment['PYTHONPATH']}"),
        *("prlimit", "--data=2000000000"),
        *world.commands["everything"],
    ]
    post, other = world.account(), world.account()
    world.deliver(post, 4)
    raw, contents = letter(world.chance, 0)
    post.deliver(raw.replace(b"Subject: message", b"Subject: poison"), contents)
    world.deliver(post, 5)
    world.deliver(other, 10)
    world.start()
    world.settle(300)
    with database.connected():
        failed = list(EmailRawMessage.select().where(EmailRawMessage.status == "failed"))
        assert [row.size for row in failed] == [len(raw) - 1], [row.error for row in failed]
        assert "given up after" in failed[0].error
        done = EmailRawMessage.select().where(EmailRawMessage.status == "processed").count()
    assert done == 19


@fault("F15", "Redis is killed, and comes back", variants=("empty", "old"), **REAL)
def killed_redis(world: World, how: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 20)
    world.start()
    server = world.backing.redis
    snapshot, kept = server.directory / "dump.rdb", server.directory / "kept.rdb"
    world.until(lambda: counted() > 0, 120, "no load")
    redis.Redis.from_url(server.url).save()
    shutil.copy(snapshot, kept)
    world.run_for(10)
    world.deliver(post, 20)
    world.run_for(3)
    server.stop()
    world.run_for(5)
    snapshot.unlink(missing_ok=True)
    if how == "old":
        shutil.copy(kept, snapshot)
    server.start()
    snapshot.unlink(missing_ok=True)
    world.healed()
    world.settle(150)


@fault("F19", "Redis ends every connection every two seconds", **REAL)
def no_redis_connection_lasts(world: World, _: str) -> None:
    world.announced.append(AWAY)
    posts = [world.account() for _number in range(4)]
    world.start()
    deliver = stream(world, posts, 50, 400)
    ended = time.monotonic()

    def each() -> None:
        nonlocal ended
        deliver()
        if time.monotonic() - ended > 2:
            drop_clients(world)
            ended = time.monotonic()

    world.run_for(60, each)
    world.healed()
    world.settle(150)
    world.miss_workers()


@fault("F22", "Redis forgets its scripts, and becomes read-only", **REAL)
def read_only_redis(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 20)
    world.start()
    world.until(lambda: counted() > 0, 120, "no load")
    client = redis.Redis.from_url(world.backing.redis.url)
    client.script_flush()
    world.deliver(post, 10)
    world.run_for(10)
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    world.run_for(20)
    client.execute_command("REPLICAOF", "NO", "ONE")
    world.healed()
    world.settle(150)


@fault("F23", "Redis is frozen for longer than a heartbeat", **REAL)
def frozen_redis(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 30)
    world.start()
    world.until(lambda: counted() > 0, 120, "no load")
    pid = world.backing.redis.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    world.deliver(post, 10)
    world.run_for(90)
    os.kill(pid, signal.SIGCONT)
    world.healed()
    world.settle(150)
    world.miss_workers()


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


@fault("F60", "a message is as large as a process's memory may be")
def little_memory(world: World, _: str) -> None:
    world.announced.append("Memory|Traceback|unexpected error|can't start new thread")
    # Memory that it may write to: the address space is mostly reserved for threads, and not used.
    limit = ["prlimit", "--data=400000000"]
    world.commands["everything"] = [*limit, *world.commands["everything"]]
    post = world.account()
    world.deliver(post, 1, size=150_000_000)
    world.deliver(post, 3)
    world.start()
    world.settle(180)


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


@fault("F35", "the object store is a black hole", sets=(PRODUCTION,), through=("store",), **REAL)
def black_hole_store(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 3)
    world.start()
    world.until(lambda: counted() == 3, 120, "no load")
    world.proxies["store"].faults = (BlackHole(), BlackHole("server"))
    world.deliver(post, 50)
    start = time.monotonic()
    world.until(lambda: counted() == 53, 120, "mail waits for the store")
    assert time.monotonic() - start < 100
    world.proxies["store"].faults = ()
    world.proxies["store"].cut()
    world.healed()
    world.settle(240)


@fault(
    "F36",
    "the object store is overloaded",
    variants=("a-third", "flapping"),
    sets=(PRODUCTION,),
    layer=True,
    **REAL,
)
def overloaded_store(world: World, how: str) -> None:
    layer = world.store_layer
    assert layer
    world.announced.append(AWAY)
    posts = [world.account() for _number in range(2)]
    world.start()
    deliver = stream(world, posts, 50, 200)
    start = time.monotonic()

    def each() -> None:
        deliver()
        share = 0.3 if how == "a-third" else float((time.monotonic() - start) % 10 < 5)
        layer.faults = (StoreFault("refuse", share),)

    world.run_for(60, each)
    layer.faults = ()
    world.healed()
    world.settle(240)


@fault(
    "F38",
    "the object store says yes, and the bytes are wrong",
    variants=("cut-put", "flip-put", "flip-get", "cut-get"),
    sets=(PRODUCTION,),
    layer=True,
)
def wrong_bytes(world: World, kind: str) -> None:
    assert world.store_layer
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 3)
    world.start()
    world.settle()
    # What is read wrong twice in a row is wrong.
    times = 1 if kind.endswith("get") else 4
    world.store_layer.faults = (StoreFault(kind, times=times),)
    world.deliver(post, 12)
    world.until(lambda: world.store_layer and world.store_layer.done[kind] == times, 60, "no fault")
    world.healed()
    world.settle(120)


@fault(
    "F39",
    "the object store refuses the keys, or has no bucket",
    variants=("forbid", "no-bucket"),
    sets=(PRODUCTION,),
    layer=True,
    **REAL,
)
def refused_keys(world: World, kind: str) -> None:
    assert world.store_layer
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 3)
    world.start()
    world.until(lambda: counted() == 3, 120, "no load")
    world.store_layer.faults = (StoreFault(kind),)
    world.deliver(post, 20)
    world.until(lambda: counted() == 23, 120, "mail waits for the store")
    world.run_for(30)
    requests = world.store_layer.done[kind]
    assert requests < 200, f"{requests} requests: a storm"
    world.store_layer.faults = ()
    world.healed()
    world.settle(240)


@fault(
    "F41",
    "the object store is away, and there is no fall-back",
    sets=(PRODUCTION,),
    through=("store",),
    variables={"MAILPOLL_STORAGE_FALLBACK": "no"},
)
def no_fallback(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 3)
    world.start()
    world.settle()
    world.proxies["store"].down()
    world.deliver(post, 20)
    world.run_for(15)
    assert counted() == 3
    world.proxies["store"].up()
    world.healed()
    world.settle(120)


@fault("F42", "blobs rot and vanish, and fsck brings them back", variants=("flip", "cut", "gone"))
def rotten_blobs(world: World, how: str) -> None:
    post = world.account()
    world.deliver(post, 6)
    world.start()
    world.settle()
    with database.connected():
        row = EmailRawMessage.select().order_by(EmailRawMessage.id).first()
    _damage(world, row.storage_key, how)
    assert world.check()["missing" if how == "gone" else "corrupt"]
    run = command(world, "fsck", "--repair")
    world.healed()
    world.settle()
    report = world.check()
    assert not report["missing"] + report["corrupt"], run.stdout + run.stderr


def _damage(world: World, key: str, how: str) -> None:
    import io

    seaweed = world.backing.seaweed
    path = world.data / "blobs" / key
    if seaweed is None:
        content = path.read_bytes()
    else:
        content = seaweed.client().get_object(world.backing.bucket, key).read()
    wrong = content[:-1] + b"#" if how == "flip" else content[: len(content) // 2]
    if seaweed is None:
        path.unlink() if how == "gone" else path.write_bytes(wrong)
    elif how == "gone":
        seaweed.client().remove_object(world.backing.bucket, key)
    else:
        seaweed.client().put_object(world.backing.bucket, key, io.BytesIO(wrong), len(wrong))


@fault(
    "F43",
    "the object store takes 64 KB a second",
    sets=(PRODUCTION,),
    through=("store",),
    bound=240,
    **REAL,
)
def slow_store(world: World, _: str) -> None:
    world.announced.append(AWAY)
    posts = [world.account() for _number in range(3)]
    world.proxies["store"].faults = (bandwidth(64_000, "server"),)
    world.deliver(posts[0], 3, size=500_000)
    for post in posts[1:]:
        world.deliver(post, 5)
    world.start()
    world.healed()
    world.settle(240)


def _beside(world: World, faults: tuple[Any, ...], seconds: float) -> None:
    """One mailbox is hard to reach; the others are polled in time all the while."""
    ill, *well = [world.account(proxy=True) for _number in range(4)]
    for post in (ill, *well):
        world.deliver(post, 5)
    world.proxies[ill.address].faults = faults
    world.start()
    world.until(lambda: _sessions(well[0]) > 1, 120, "no polls")
    before = [_sessions(post) for post in well]
    world.run_for(seconds)
    for post, count in zip(well, before, strict=True):
        assert _sessions(post) - count >= seconds / 10 - 1, "others were held up"
    world.proxies[ill.address].faults = ()
    world.proxies[ill.address].cut()
    world.healed()
    world.settle(150)


@fault("F45", "a mail server sends one byte every two seconds", **REAL)
def dripping(world: World, _: str) -> None:
    _beside(world, (Slicer(size=1, pause=2),), 90)


@fault(
    "F46",
    "a mail server falls silent",
    variants=("connected", "greeted", "logged-in", "in-a-message"),
    **REAL,
)
def silent(world: World, where: str) -> None:
    after = {"connected": 0, "greeted": 12, "logged-in": 150, "in-a-message": 900}[where]
    _beside(world, (BlackHole(after=after),), 60)


@fault("F47", "a far and narrow way to a mail server", **REAL)
def far_and_narrow(world: World, _: str) -> None:
    # A round trip is no `Latency` beside a bandwidth: that would hold up each slice by itself, and
    # leave 9 KB of the 100 KB a second.
    post, other = world.account(proxy=True, round_trip=1.0), world.account()
    world.proxies[post.address].faults = (bandwidth(100_000),)
    world.deliver(post, 1, size=3_000_000)
    world.deliver(other, 5)
    world.start()
    world.healed()
    world.settle(300)


@fault("F61", "a process may open 64 files")
def few_files(world: World, _: str) -> None:
    world.announced.append("Too many open files|" + AWAY)
    world.commands["everything"] = ["prlimit", "--nofile=64", *world.commands["everything"]]
    posts = [world.account() for _number in range(12)]
    for post in posts:
        world.deliver(post, 20, attachments=3)
    world.start()
    world.settle(120)


@fault("F62", "a process gets a fifth of a core", bound=240, **REAL)
def starved(world: World, _: str) -> None:
    world.announced.append(AWAY)
    posts = [world.account() for _number in range(4)]
    world.start()
    deliver = stream(world, posts, 40, 200)

    def each() -> None:
        deliver()
        for role in ("poller", "worker"):
            world.signal(role, signal.SIGCONT)
        time.sleep(0.05)
        for role in ("poller", "worker"):
            world.signal(role, signal.SIGSTOP)

    world.run_for(60, each)
    for role in ("poller", "worker"):
        world.signal(role, signal.SIGCONT)
    world.healed()
    world.settle(240)


FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
#: libfaketime 0.9.10 lets every clock_nanosleep() until a moment fail when the monotonic clock is
#: to be right, and that is what time.sleep() calls; a process would end at its first one.
SLEEP = """
import select
import time

time.sleep = lambda seconds: select.select([], [], [], seconds)
"""
SHIFTS = {"plus-90s": "+90s", "minus-1h": "-1h", "plus-1d": "+1d"}


def _faked(world: World, role: str, shift: str, file: Path | None = None) -> None:
    """Let the clock of a role be wrong; the monotonic one is right."""
    assert Path(FAKETIME).exists(), "install libfaketime"
    customized = world.directory / "faked" / "sitecustomize.py"
    customized.parent.mkdir(exist_ok=True)
    customized.write_text(SLEEP)
    words = [f"LD_PRELOAD={FAKETIME}", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"]
    words.append(f"PYTHONPATH={customized.parent}")
    if file is None:
        words.append(f"FAKETIME={shift}")
    else:
        file.write_text(shift)
        words += [f"FAKETIME_TIMESTAMP_FILE={file}", "FAKETIME_NO_CACHE=1"]
    world.commands[role] = ["env", *words, *world.commands[role]]


@fault(
    "F63",
    "the clock of the poller's host is wrong, and set right",
    variants=(*SHIFTS, "jumping"),
    bound=240,
    **REAL,
)
def wrong_clock(world: World, how: str) -> None:
    # What waits until a moment may be told that it is over, or far: a process may end of it.
    world.announced.append(f"Traceback|{AWAY}")
    right, world.commands = world.commands, dict(world.commands)
    file = world.directory / "clock"
    # SQLite has no clock but its writers', which are all on one host.
    roles = world.commands if world.backing.name == EMBEDDED else ("poller",)
    for role in tuple(roles):
        _faked(world, role, SHIFTS.get(how, "+0"), file if how == "jumping" else None)
    posts = [world.account(interval=60) for _number in range(3)]
    for post in posts:
        world.deliver(post, 10)
    world.start()
    if how == "jumping":
        for shift in ("+1h", "-1h", "+1d", "+0"):
            world.run_for(15)
            file.write_text(shift)
            world.deliver(posts[0], 3)
    else:
        world.run_for(60)
        world.deliver(posts[0], 3)
        world.stop()
        world.commands = right
        world.start()
    world.healed()
    world.settle(240)


@fault("F64", "the scheduler's clock is 31 seconds off", bound=150, **REAL)
def skewed_scheduler(world: World, _: str) -> None:
    world.commands = dict(world.commands)
    _faked(world, "scheduler", "-31s")
    posts = [world.account() for _number in range(3)]
    for post in posts:
        world.deliver(post, 5)
    world.start()
    world.run_for(70)
    for post in posts:
        world.deliver(post, 5)
    world.healed()
    world.settle(150)


@fault("F67", "messages that no worker knows")
def unknown_messages(world: World, _: str) -> None:
    world.announced.append("ActorNotFound|TypeError|unexpected|missing")
    world.checker_options.append("--dead")
    post = world.account()
    world.deliver(post, 10)
    broker = actors.process_message.broker
    for queue, actor, args in (
        ("process", "no_such_actor", (1,)),
        ("process", "process_message", ()),
        ("poll", "poll_account", ("x", "y", "z")),
    ):
        message: Any = dramatiq.Message(
            queue_name=queue, actor_name=actor, args=args, kwargs={}, options={}
        )
        broker.enqueue_all([(message, None)])
    world.start()
    world.settle(90)


@fault("F70", "an operator purges the queues", **REAL)
def purged_queues(world: World, _: str) -> None:
    post = world.account()
    world.deliver(post, 40)
    world.start()
    world.until(lambda: counted() > 0, 120, "no load")
    client = redis.Redis.from_url(world.backing.redis.url)
    for key in client.scan_iter("mailpoll:*"):
        if b"__" not in key:
            client.delete(key)
    world.deliver(post, 10)
    world.healed()
    world.settle(180)


@fault(
    "F72",
    "a dyno is restarted with an empty disk while the store is away",
    sets=(PRODUCTION,),
    through=("store",),
    variables={"MAILPOLL_STORAGE_FALLBACK": "no"},
)
def wiped_dyno(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 5)
    world.start()
    world.settle()
    world.proxies["store"].down()
    world.deliver(post, 10)
    world.run_for(8)
    world.stop()
    shutil.rmtree(world.data, ignore_errors=True)
    world.start()
    world.run_for(5)
    world.proxies["store"].up()
    world.healed()
    world.settle(120)


#: What the faults of `nemesis` explain beside what is away: a lease that another took, a deletion
#: under way, a Redis that is full, bytes that the store keeps cut.
OF_NEMESES = "LeaseLost|AccountGone|OutOfMemory|post_process_message|BlobCorrupt"


@fault(
    "F73",
    "two or three faults at a time, at random",
    bound=ATTEMPT_BOUND,
    through=("redis", "database"),
    layer=True,
    **REAL,
)
def random_faults(world: World, _: str) -> None:
    seconds = 60 * float(os.environ.get("MAILPOLL_CAMPAIGN_MINUTES", "5"))
    events = plan(world.seed, seconds, world.backing.name)
    print(*(f"    {event}" for event in events), sep="\n", flush=True)
    world.announced.append(f"{AWAY}|{OF_NEMESES}")
    posts = [world.account(proxy=True) for _number in range(20)]
    world.start()
    deliver = stream(world, posts, seconds * 0.9, min(5_000, int(seconds * 10)))
    doomed = world.chance.sample(posts, 3)
    start = time.monotonic()
    running: list[tuple[float, str]] = []

    def each() -> None:
        now = time.monotonic() - start
        deliver()
        while events and events[0].start <= now:
            event = events.pop(0)
            NEMESES[event.name].begin(world)
            running.append((event.start + event.length, event.name))
        for entry in [one for one in running if one[0] <= now]:
            running.remove(entry)
            NEMESES[entry[1]].end(world)
        if doomed and now > seconds * (0.8 - 0.2 * len(doomed)):
            gone = doomed.pop()
            posts.remove(gone)
            with suppress(Exception):  # the database may be away: then it is asked again
                world.delete(gone)
                return
            posts.append(gone)

    world.run_for(seconds, each)
    for _end, name in running:
        NEMESES[name].end(world)
    world.healed()
    world.settle(300)
