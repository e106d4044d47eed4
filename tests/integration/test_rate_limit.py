"""Limits of connections and logins to a host, over all threads and processes."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import dramatiq
import peewee
import pytest
import redis
from dramatiq import Worker
from dramatiq.middleware import SkipMessage

from mailpoll import accounts, actors, database
from mailpoll.broker import POLL, make_broker
from mailpoll.middleware.rate_limit import Limit, RateLimit
from mailpoll.models import EmailAccount
from mailpoll.settings import settings
from tests.integration.conftest import SETS, run_system
from tests.integration.queue_entries import Entry, entries, polls, runs
from tests.integration.system import System, wait_until
from tests.servers.dovecot import Dovecot
from tests.servers.scripted_imap import Rule, ScriptedImap
from tests.servers.valkey import Valkey

pytestmark = pytest.mark.queue

CONNECTIONS = 2
LOGINS = 12
DONE = b'* LIST () "/" INBOX\r\n{tag} OK done\r\n'


@pytest.fixture
def system(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, scripted_port: int
) -> Iterator[System]:
    """The embedded set with low limits, and a port for a server without TLS."""
    yield from run_system(
        SETS["embedded"](request, tmp_path),
        tmp_path,
        dovecot,
        MAILPOLL_IMAP_PORTS=f"{dovecot.imaps_port},{scripted_port}",
        MAILPOLL_IMAP_ALLOW_PLAIN="yes",
        MAILPOLL_IMAP_HOST_CONNECTIONS=str(CONNECTIONS),
        MAILPOLL_IMAP_HOST_LOGINS=str(LOGINS),
    )


def enqueue(server: ScriptedImap, count: int) -> None:
    """Accounts of one host, whose first polls are in the queue."""
    for number in range(count):
        account = accounts.create(
            address=f"someone-{number}@example.org",
            password="secret",
            host="127.0.0.1",
            port=server.port,
            security="plain",
            test=False,
        )
        actors.poll_account.send(account.id)


def polled() -> int:
    with database.connected():
        return EmailAccount.select().where(EmailAccount.last_success_at.is_null(False)).count()


def ended_polls(system: System) -> dict[str, int]:
    """The statistics of the polls that have ended; a poll has succeeded a little before that."""
    tasks = {task["actor"]: task for task in system.get("/admin/tasks")["tasks"]}
    return dict(tasks.get("poll_account", {"runs": 0, "failures": 0}))


def logins(server: ScriptedImap) -> int:
    return sum(command.startswith("LOGIN") for command in server.commands)


def connections(port: int) -> int:
    """How many connections to a loopback port the kernel holds open at the client's side."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    established = [fields[2] for fields in map(str.split, lines) if fields[3] == "01"]
    return sum(remote == f"0100007F:{port:04X}" for remote in established)


def test_no_more_connections_to_a_host_at_once_than_allowed(
    system: System, scripted_port: int
) -> None:
    # Given a server that counts its connections, and answers only when there are two
    seen: list[int] = []
    both = threading.Barrier(CONNECTIONS, timeout=30)

    def counted() -> bytes:
        both.wait()
        seen.append(connections(server.port))
        both.wait()
        return DONE

    with ScriptedImap(port=scripted_port, rules=[Rule("LIST", counted)]) as server:
        # When many threads poll its accounts
        enqueue(server, 8)
        system.work_until(lambda: polled() == 8 and ended_polls(system)["runs"] >= 8, threads=8)
    # Then there were two at once, and never more
    assert set(seen) == {CONNECTIONS}
    # And those that had to wait were neither failures nor retries
    ended = ended_polls(system)
    assert (ended["runs"], ended["failures"]) == (8, 0)


def test_no_more_logins_to_a_host_in_a_minute_than_allowed(
    system: System, scripted_port: int
) -> None:
    with ScriptedImap(port=scripted_port) as server:
        # When more accounts are due than may log in within a minute
        enqueue(server, LOGINS + 5)
        # (the worker ends when this holds, and must have written down all that it put off)
        system.work_until(lambda: polled() == LOGINS and put_off(system) == 5)
        # Then only so many have logged in
        assert logins(server) == LOGINS
        # And the others wait for the minute to end, without a retry on their account
        waiting = for_long(system)
        assert {entry.retries for entry in waiting} == {0}
        # And a tick does not enqueue them a second time
        with database.transaction():
            EmailAccount.update(next_poll_at=database.now()).where(
                EmailAccount.last_success_at.is_null()
            ).execute()
        actors.schedule_polls.fn()
        late = {entry.args[0] for entry in waiting}
        assert sum(entry.args[0] in late for entry in polls(system)) == 5


def put_off(system: System) -> int:
    """Accounts whose poll is put off for long, in the queue and in their rows."""
    later = database.now() + timedelta(minutes=2, seconds=20)
    with database.connected():
        noted = EmailAccount.select().where(EmailAccount.queued_until > later).count()
    return min(noted, len(for_long(system)))


def for_long(system: System) -> list[Entry]:
    """Polls that are put off by more than a wait for a free connection is."""
    moment = database.now().timestamp() * 1_000
    return [e for e in entries(system, "poll") if e.eta is not None and e.eta > moment + 20_000]


def test_those_that_wait_hold_no_thread(system: System, address: str, scripted_port: int) -> None:
    # Given a host whose server is stuck with all the connections that it may have
    stuck, go_on = threading.Semaphore(0), threading.Event()

    def wait() -> bytes:
        stuck.release()
        go_on.wait(60)
        return DONE

    with ScriptedImap(port=scripted_port, rules=[Rule("LIST", wait)]) as server:
        enqueue(server, CONNECTIONS + 4)
        with system.workers(threads=CONNECTIONS + 1):
            for _ in range(CONNECTIONS):
                assert stuck.acquire(timeout=60)
            # When another host's account is due, behind those that must wait
            account = system.add_account(address, test=False)
            shown = f"/admin/email-accounts/{account}"
            # Then the one thread that is left polls it
            wait_until(lambda: system.get(shown)["last_success_at"])
            assert polled() == 1
            # And the others get their turn when the server goes on
            go_on.set()
            wait_until(lambda: polled() == CONNECTIONS + 5)
    assert system.get("/admin/tasks")["dead"] == []


class One:
    """A limit of one at a time; a slot that is not given back frees itself after 3 seconds."""

    def __init__(self) -> None:
        self.waits = 0

    def terms(self, *_: Any) -> tuple[float, Sequence[Limit]]:
        return 0.0, (Limit("one", "slots", 1, 3),)

    def postponed(self, seconds: float, *_: Any) -> None:
        self.waits += 1


def declare(broker: dramatiq.Broker, limit: One) -> "dramatiq.Actor[..., None]":
    @dramatiq.actor(broker=broker, queue_name=POLL, actor_name="hold", limits=limit)
    def hold(seconds: float) -> None:
        time.sleep(seconds)

    return hold


def worker_process() -> None:
    """What the process that is killed runs."""
    broker = make_broker(settings())
    declare(broker, One())
    Worker(broker, queues={POLL}, worker_threads=1).start()
    time.sleep(600)


def test_the_slot_of_a_killed_process_frees_itself(system: System) -> None:
    # Given a process that is killed while it holds the only slot
    limit = One()
    hold = declare(system.broker, limit)
    hold.send(600)
    code = f"from {__name__} import worker_process; worker_process()"
    holder = subprocess.Popen([sys.executable, "-c", code])
    slots = "mailpoll:limit:slots:one"
    try:
        wait_until(lambda: system.broker.client.zcard(slots) == 1)
    finally:
        holder.kill()
        holder.wait()
    # When there is more work for the slot
    hold.send(0)
    # Then it is put off at first, and done without anybody's help
    system.work_until(lambda: runs(system, "hold") == 1)
    assert limit.waits >= 1


def test_without_redis_nothing_is_limited_and_nothing_fails(system: System, tmp_path: Path) -> None:
    # Given limits in a Redis of their own, with the only slot taken
    hold = declare(system.broker, One())
    first, second = hold.message(0), hold.message(0)
    with Valkey(tmp_path / "limits") as server:
        limits = RateLimit(redis.Redis.from_url(server.url, socket_connect_timeout=1))
        limits.before_process_message(system.broker, first)
        with pytest.raises(SkipMessage):
            limits.before_process_message(system.broker, second)
    # When that Redis is away, then the other message runs too
    limits.before_process_message(system.broker, second)
    for message in (first, second):
        limits.after_process_message(system.broker, message)


def test_a_task_whose_limits_are_unknown_waits_for_the_database(system: System) -> None:
    class Away(One):
        def terms(self, *_: Any) -> tuple[float, Sequence[Limit]]:
            raise peewee.OperationalError("server closed the connection unexpectedly")

    message = declare(system.broker, Away()).message(0)
    with pytest.raises(SkipMessage):
        system.broker.emit_before("process_message", message)


def test_a_lost_connection_is_not_taken_for_a_database_that_is_away(system: System) -> None:
    class Once(One):
        lost = False

        def terms(self, *_: Any) -> tuple[float, Sequence[Limit]]:
            if not self.lost:
                self.lost = True
                raise peewee.OperationalError("server closed the connection unexpectedly")
            return super().terms()

    message = declare(system.broker, Once()).message(0)
    system.broker.emit_before("process_message", message)
    system.broker.emit_after("process_message", message)


def test_a_message_that_is_put_off_never_runs_over_the_limit(system: System) -> None:
    # Given a limit that cannot write down that a message was put off
    class Forgetful(One):
        def postponed(self, seconds: float, *_: Any) -> None:
            raise ConnectionError

    hold = declare(system.broker, Forgetful())
    first, second = hold.message(0), hold.message(0)
    system.broker.emit_before("process_message", first)
    # Then it is skipped all the same
    with pytest.raises(SkipMessage):
        system.broker.emit_before("process_message", second)
    system.broker.emit_after("process_message", first)
