"""The faults that every run of the tests includes. Time is hurried; see ``World``."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import redis

from mailpoll import accounts, actors, database, runtime
from mailpoll.accounts import AccountGone
from mailpoll.actors.poll import poll
from mailpoll.actors.process import process
from mailpoll.blobs import BlobMissing, StorageType
from mailpoll.models import EmailAccount, EmailRawMessage
from tests.campaign.case import EMBEDDED, PRODUCTION, fault
from tests.campaign.mail import Post
from tests.campaign.store import StoreFault
from tests.campaign.world import World
from tests.servers.proxy import DropReply
from tests.servers.scripted_imap import RESET, Rule

#: A part is larger than what is read at once, so that a literal never comes whole.
PARTS = {"MAILPOLL_PART_BYTES": "600000"}
POLLER_POINTS = (
    *("logged-in", "uids-listed", "mid-literal", "file-written", "put-sent", "blobs-durable"),
    *("before-commit", "committed", "announced"),
)
WORKER_POINTS = ("claimed", "attachments-stored", "before-finish", "finished")
DELETE_POINTS = (
    *("deletion-asked", "queues-forgotten", "rows-deleted", "account-deleted"),
    *("objects-deleted", "stores-emptied"),
)
DRAIN_POINTS = ("fell-back", "copied", "local-removed", "moved")


def expect(world: World, *fired: str) -> None:
    """The faults have happened: a test whose fault did not happen proves nothing."""
    missing = set(fired) - set(world.fired())
    assert not missing, f"{missing} did not happen, only {world.fired()}"


@fault(
    "F01",
    "the poller is killed at a point, twice",
    variants=POLLER_POINTS,
    fast=True,
    variables=PARTS,
)
def killed_poller(world: World, point: str) -> None:
    post = world.account()
    world.deliver(post, 12)
    world.deliver(post, 2, size=700_000)
    world.start(f"{point}:kill:1,{point}:kill:2")
    world.settle()
    expect(world, f"{point}.1.kill", f"{point}.2.kill")


@fault("F01", "the poller is killed six times in a row", variants=("again",), fast=True)
def killed_again_and_again(world: World, _: str) -> None:
    post = world.account()
    world.deliver(post, 3)
    world.start(",".join(f"logged-in:kill:{number}" for number in range(1, 7)))
    # What the dead have held frees itself after 30 s; the time to recover begins with the last.
    world.until(lambda: "logged-in.6.kill" in world.fired(), 120, "not killed six times")
    world.healed()
    world.settle(90)


@fault("F02", "the worker is killed at a point, twice", variants=WORKER_POINTS, fast=True)
def killed_worker(world: World, point: str) -> None:
    post = world.account()
    world.deliver(post, 12, attachments=3)
    world.start(f"{point}:kill:1,{point}:kill:3")
    world.until(lambda: f"{point}.1.kill" in world.fired(), 60, "not killed")
    # What its other threads were about to do may never pass that point again.
    world.deliver(post, 12, attachments=3)
    world.settle()
    expect(world, f"{point}.1.kill", f"{point}.3.kill")


@fault("F03", "a deletion is killed at a point, and goes on", variants=DELETE_POINTS, fast=True)
def killed_deletion(world: World, point: str) -> None:
    kept, doomed = world.account(), world.account()
    for post in (kept, doomed):
        world.deliver(post, 9)
    world.start()
    world.settle()
    world.stop()
    if point == "deletion-asked":
        _ask_and_die(world, doomed)
    else:
        world.delete(doomed)
    world.start("" if point == "deletion-asked" else f"{point}:kill:1")
    world.settle()
    expect(world, f"{point}.1.kill")


def _ask_and_die(world: World, post: Post) -> None:
    uuid = world.uuids[post.address]
    code = f"from mailpoll import accounts, runtime; runtime.start(); accounts.delete({uuid!r})"
    environ = {**os.environ, **world.child_environment, "MAILPOLL_FAULT": "deletion-asked:kill:1"}
    run = subprocess.run([sys.executable, "-c", code], env=environ, check=False)
    assert run.returncode == -signal.SIGKILL
    world.deleted[uuid] = post.address


@fault(
    "F04",
    "what brings blobs back from the fall-back is killed at a point",
    variants=DRAIN_POINTS,
    sets=(PRODUCTION,),
    fast=True,
    through=("store",),
)
def killed_drain(world: World, point: str) -> None:
    post = world.account()
    world.deliver(post, 9)
    world.proxies["store"].down()
    world.start(f"{point}:kill:1")
    world.until(lambda: _local_blobs() > 0, 40, "nothing fell back")
    with Reader() as reader:
        world.proxies["store"].up()
        world.healed()
        world.settle(90)
    assert reader.unreadable == []
    expect(world, f"{point}.1.kill")


def _local_blobs() -> int:
    with database.connected():
        return int(EmailRawMessage.select().where(EmailRawMessage.storage_type == "local").count())


class Reader:
    """Reads every message's blob again and again; ``unreadable`` names what was not there."""

    def __init__(self) -> None:
        self.unreadable: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        storage = runtime.storage()
        while not self._end.wait(0.05):
            with database.connected():
                rows = list(EmailRawMessage.select().limit(20))
            for row in rows:
                try:
                    storage.open(row.storage_key, StorageType(row.storage_type)).close()
                except BlobMissing as error:
                    self.unreadable.append(str(error))


#: Calls of the kernel at which a process can be killed, and on which set they come.
CALLS = {
    EMBEDDED: ("fsync", "fdatasync", "pwrite64", "write", "rename", "unlink", "sendto"),
    PRODUCTION: ("write", "connect", "sendto"),
}
STEP = """
import sys
from mailpoll import runtime
runtime.start()
from mailpoll.actors.poll import poll
from mailpoll.actors.process import process
from mailpoll.models import EmailRawMessage
from mailpoll import database
account = int(sys.argv[1])
poll(account, None)
with database.connected():
    rows = [row.id for row in EmailRawMessage.select().where(EmailRawMessage.account == account)]
process(rows)
"""


@fault("F05", "a process is killed at its n-th call of the kernel", fast=True)
def killed_at_calls(world: World, _: str, most: int = 2) -> None:
    for call in CALLS[world.backing.name]:
        names = {"rename": "rename,renameat,renameat2", "unlink": "unlink,unlinkat"}.get(call, call)
        account = _small_account(world)
        total = _calls(_traced(world, account, names, 0))
        # sqlite may not need each call at all; what never comes cannot be cut.
        chosen = sorted(world.chance.sample(range(1, total + 1), min(most, total)))
        for nth in chosen:
            account = _small_account(world)
            _traced(world, account, names, nth)
            world.pass_time()
            poll(account, None)
            with database.connected():
                mine = EmailRawMessage.account == account
                rows = [row.id for row in EmailRawMessage.select().where(mine)]
            for row in rows:
                process([row])
        # What it sent stands in the trace, the password too.
        (world.directory / "trace").unlink()
    # Each account was polled to its end once, not after the last of all messages.
    world._since = 0.0
    assert world.restless() == []


def _small_account(world: World) -> int:
    post = world.account()
    world.deliver(post, 3)
    with database.connected():
        return int(EmailAccount.get(EmailAccount.address == post.address).id)


def _traced(world: World, account: int, calls: str, nth: int) -> Path:
    """Poll an account in a process that is killed at its nth of these calls; the calls it made."""
    trace = world.directory / "trace"
    inject = ["-e", f"inject={calls}:signal=SIGKILL:when={nth}"] if nth else []
    command = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", str(trace), "-e", f"trace={calls}"]
    subprocess.run(
        [*command, *inject, sys.executable, "-c", STEP, str(account)],
        env={**os.environ, **world.child_environment},
        cwd=world.directory,
        check=nth == 0,
        capture_output=True,
    )
    return trace


def _calls(trace: Path) -> int:
    return len(re.findall(r"^\d+ +\w+\(", trace.read_text(), re.MULTILINE))


@fault("F14", "Redis loses every key", variants=("idle", "load", "committed"), fast=True)
def flushed_redis(world: World, moment: str) -> None:
    post = world.account()
    world.deliver(post, 30)
    if moment == "idle":
        world.start()
        world.settle()
        world.backing.redis.flush()
        world.deliver(post, 5)
    elif moment == "load":
        world.start()
        world.until(lambda: _count() > 5, 30, "no load")
        world.backing.redis.flush()
        world.deliver(post, 5)
    else:
        world.start("committed:kill:1")
        world.until(world.fired, 30, "not killed")
        world.backing.redis.flush()
    world.healed()
    world.settle()


def _count() -> int:
    with database.connected():
        return int(EmailRawMessage.select().count())


@fault(
    "F16",
    "Redis restarts while retries wait in it",
    fast=True,
    # A message may come to the point oftener than others before each has been there once.
    variables={"MAILPOLL_MAX_ATTEMPTS": "20"},
)
def restarted_redis(world: World, _: str) -> None:
    post = world.account()
    world.announced.append("Injected|connection error")
    world.start(",".join(f"claimed:raise:{number}" for number in range(1, 41)))
    world.deliver(post, 40)
    world.until(lambda: len(world.fired()) > 20, 40, "no retries")
    world.backing.redis.restart(empty=False)
    world.healed()
    world.settle(90)


@fault("F17", "Redis stalls for longer than clients wait", fast=True)
def stalled_redis(world: World, _: str, times: int = 1) -> None:
    post = world.account()
    world.announced.append("redis|Redis|Timeout|Connection")
    world.start()
    for _number in range(times):
        world.deliver(post, 20)
        world.until(lambda: _count() > 0, 30, "no load")
        client = redis.Redis.from_url(world.backing.redis.url)
        client.execute_command("CLIENT", "PAUSE", "11000", "ALL")
        time.sleep(11)
    world.healed()
    world.settle(90)
    world.miss_workers()


@fault("F20", "Redis is full, then there is room again", fast=True)
def full_redis(world: World, _: str) -> None:
    world.announced.append("connection error|OutOfMemory|unexpected error|post_process_message")
    posts = [world.account() for _number in range(4)]
    for post in posts:
        world.deliver(post, 5)
    world.start()
    world.settle()
    client = redis.Redis.from_url(world.backing.redis.url)
    client.config_set("maxmemory", 1)
    # Polls of short intervals are delayed messages: some of them fall due now.
    world.run_for(8)
    client.config_set("maxmemory", 0)
    for post in posts:
        world.deliver(post, 5)
    world.healed()
    world.settle()


REPLIES = {"fetch": rb"\$5\r\nfetch", "ack": rb"\$3\r\nack", "enqueue": rb"\$7\r\nenqueue"}


@fault(
    "F18",
    "Redis did it, and its answer was lost",
    variants=tuple(REPLIES),
    fast=True,
    through=("redis",),
)
def lost_redis_replies(world: World, command: str) -> None:
    post = world.account()
    world.announced.append("redis|Redis|Connection")
    lost = DropReply(request=REPLIES[command], times=4)
    world.proxies["redis"].faults = (lost,)
    world.deliver(post, 20)
    world.start()
    world.settle(90)
    world.deliver(post, 5)
    world.settle(90)
    assert lost.done == 4
    world.miss_workers()


@fault(
    "F26",
    "the database committed, and its answer was lost",
    sets=(PRODUCTION,),
    fast=True,
    through=("database",),
)
def lost_commits(world: World, _: str) -> None:
    post = world.account()
    world.announced.append("OperationalError|InterfaceError|Connection")
    lost = DropReply(request=rb"COMMIT", times=8)
    world.deliver(post, 20)
    world.start()
    world.until(lambda: _count() > 0, 30, "no load")
    world.proxies["database"].faults = (lost,)
    # Whatever the load has left to do: new mail makes new commits until eight are lost.
    world.until(lambda: lost.done >= 8 or world.deliver(post, 1), 60, "no commits")
    world.healed()
    world.settle(90)


@fault(
    "F34",
    "the object store refuses connections, and comes back",
    sets=(PRODUCTION,),
    fast=True,
    through=("store",),
)
def store_outage(world: World, _: str, messages: int = 150, seconds: float = 10) -> None:
    post = world.account()
    world.deliver(post, 3)
    world.start()
    world.settle()
    world.proxies["store"].down()
    world.deliver(post, messages)
    world.until(lambda: _count() == messages + 3, seconds + 60, "mail waits for the store")
    world.proxies["store"].up()
    world.healed()
    world.settle(90)


@fault(
    "F37",
    "the object store has it, and its answer was lost",
    sets=(PRODUCTION,),
    fast=True,
    layer=True,
)
def lost_puts(world: World, _: str) -> None:
    assert world.store_layer
    post = world.account()
    world.store_layer.faults = (StoreFault("drop", times=5),)
    world.deliver(post, 20)
    world.start()
    world.settle(90)
    assert world.store_layer.done["drop"] == 5


@fault(
    "F44",
    "the connection is reset in the middle of a message",
    variants=("first", "second", "half", "last"),
    fast=True,
)
def reset_in_literal(world: World, where: str) -> None:
    post = world.account()
    world.deliver(post, 5)
    raw = post.messages[max(post.messages)]
    position = {"first": 0, "second": 1, "half": len(raw) // 2, "last": len(raw) - 1}[where]
    start = b"* 1 FETCH (UID %d BODY[] {%d}\r\n" % (max(post.messages), len(raw))
    post.rules = [Rule(r"UID FETCH .*BODY\.PEEK\[\]", start + raw[:position] + RESET, times=3)]
    world.start()
    world.settle(90)
    assert post._used[0] == 3


@fault("F69", "accounts are deleted while they are polled, again and again", fast=True)
def deleted_meanwhile(world: World, _: str, rounds: int = 6) -> None:
    # A put may find that its directory has just been removed.
    world.announced.append("AccountGone|StoreUnavailable")
    kept = world.account()
    world.deliver(kept, 5)
    world.start()
    for _number in range(rounds):
        post = world.account()
        world.deliver(post, 25)
        mine: Callable[[], int] = lambda: _of(world.uuids[post.address])  # noqa: E731, B023
        wanted = world.chance.randrange(0, 20)
        with suppress(AssertionError):
            world.until(lambda: mine() >= wanted, 10, "no load")  # noqa: B023
        together = [
            threading.Thread(target=_patch, args=(world.uuids[post.address],)),
            threading.Thread(target=accounts.delete, args=(world.uuids[post.address],)),
        ]
        for thread in together:
            thread.start()
        for thread in together:
            thread.join()
        world.delete(post)
        actors.delete_account.send(1)  # a job that there is none of, or that is done
    world.healed()
    world.settle(90)


def _of(uuid: str) -> int:
    with database.connected():
        account = EmailAccount.get_or_none(EmailAccount.uuid == uuid)
        if account is None:
            return 1_000
        return int(EmailRawMessage.select().where(EmailRawMessage.account == account).count())


def _patch(uuid: str) -> None:
    account = accounts.find(uuid)
    if account is not None:
        with suppress(AccountGone):
            accounts.pause(account)
