"""Processes are killed, stopped, doubled or starved, or one message is the end of them."""

import os
import signal
import time

from mailpoll import database
from mailpoll.models import EmailAccount, EmailRawMessage
from tests.campaign.case import PRODUCTION, fault
from tests.campaign.fast import expect
from tests.campaign.mail import letter
from tests.campaign.nemesis import kill_one
from tests.campaign.slow.load import AWAY, REAL, sessions, stream
from tests.campaign.world import PROCFILE, World
from tests.servers.proxy import bandwidth


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
    before = [sessions(post) for post in posts]
    world.run_for(180)
    polls = [sessions(post) - one for post, one in zip(posts, before, strict=True)]
    assert all(2 <= count <= 4 for count in polls), polls
    world.healed()
    world.settle(150)


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
