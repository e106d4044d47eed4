"""The queue: what goes into it names rows by number, and what others put there does no harm."""

import json
import logging
import re
from typing import Any, NoReturn
from uuid import uuid4

import pytest
from dramatiq import Message

from mailpoll import actors, database, parsing, queues
from mailpoll.actors.poll import poll
from mailpoll.broker import IMPORT, POLL, PROCESS
from mailpoll.models import EmailRawMessage
from tests.integration.queue_entries import enqueued
from tests.integration.rows import account_row, counts
from tests.integration.system import System, message, wait_until

FIELDS = {
    "queue_name",
    "actor_name",
    "args",
    "kwargs",
    "options",
    "message_id",
    "message_timestamp",
}
OPTIONS = {"redis_message_id", "eta", "scheduled_at", "retries", "requeue_timestamp"}


PLACE = re.compile(r"\w+( in \S+, [\w.]+:\d+)?")


def is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def of_numbers(argument: Any) -> bool:
    """Whether an argument names rows and times, and nothing else."""
    if isinstance(argument, list):
        return all(map(is_number, argument))
    if isinstance(argument, dict):
        return all(key.isdecimal() and is_number(value) for key, value in argument.items())
    return argument is None or is_number(argument)


def test_messages_hold_numbers_alone(system: System, address: str) -> None:
    """S40: everything that a life from the first poll to the deletion puts into Redis."""
    raw = set()
    client = system.broker.client

    def note_all() -> None:
        for key in client.scan_iter("mailpoll:*.msgs"):
            raw.update(client.hvals(key))

    with enqueued(system) as sent:
        system.dovecot.deliver_many(address, [message(f"canary {n}") for n in range(30)])
        account = system.add_account(address, poll_interval=5)
        note_all()
        actors.schedule_polls.fn()
        note_all()
        system.poll_and_process(account)
        system.dovecot.deliver(address, message("canary later"))
        system.poll_and_process(account)
        note_all()
        job = system.api.simulate_delete(f"/admin/email-accounts/{account}").json
        note_all()
        system.work_until(lambda: system.get(f"/admin/jobs/{job['id']}")["state"] == "done")
    assert {actor for actor, _, _ in sent.seen} >= {"poll_account", "delete_account"}
    for actor, args, _ in sent.seen:
        assert all(of_numbers(argument) for argument in args), (actor, args)
    assert raw
    for data in raw:
        fields = json.loads(data)  # JSON, and never pickle
        assert set(fields) == FIELDS
        assert fields["kwargs"] == {}
        # Where a task was interrupted, as at a worker's end, and in no words of the error.
        assert PLACE.fullmatch(fields["options"].pop("traceback", "Shutdown"))
        assert set(fields["options"]) <= OPTIONS
        assert b"canary" not in data
        assert address.encode() not in data


def test_what_a_failed_task_says_stays_out_of_the_queue(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S40: an error's words may quote a message; what failed and where does not."""

    def fails(_: Any) -> NoReturn:
        raise ValueError("canary: words of a message")

    monkeypatch.setattr(parsing, "parse", fails)
    system.dovecot.deliver(address, message("hello"))
    account = system.add_account(address)
    poll(account_row(account).id, None)
    key = f"{system.broker.namespace}:{IMPORT}.DQ.msgs"
    system.work_until(lambda: system.broker.client.hlen(key))
    (data,) = system.broker.client.hvals(key)
    assert json.loads(data)["options"]["traceback"].startswith("ValueError in fails, ")
    assert b"canary" not in data


# --- what an attacker puts there


def push(system: System, queue: str, data: bytes) -> None:
    """Write an entry as whoever can write to Redis would."""
    name = uuid4().hex
    key = f"{system.broker.namespace}:{queue}"
    system.broker.client.hset(f"{key}.msgs", name, data)
    system.broker.client.rpush(key, name)


def entry(queue: str, actor: str, *args: Any, **fields: Any) -> bytes:
    options = {"redis_message_id": uuid4().hex, "max_retries": 0, **fields.pop("options", {})}
    made: dict[str, Any] = {
        "queue_name": queue,
        "actor_name": actor,
        "args": args,
        "kwargs": {},
        "options": options,
        "message_id": uuid4().hex,
        "message_timestamp": 1,
        **fields,
    }
    return json.dumps(made).encode()


GARBAGE = [
    b"",
    b"{",
    b"\x80\x04cos\nsystem\n(S'touch /tmp/pwned'\ntR.",
    b"[]",
    b"{}",
    b"null",
    b"\xff" * 100,
    b"[" * 100_000,
    b"x" * 1_000_000,
    entry("process", "process_message", 1, options={"redis_message_id": 5}),
    entry("process", "process_message", 1, options={"redis_message_id": None}),
    entry("elsewhere", "process_message", 1),
    entry("process", "process_message", 1, options={"eta": "soon"}),
    entry("process", "os.system", "touch /tmp/pwned"),
    entry("process", "process_message", "1 OR 1=1"),
    entry("process", "process_message", {"a": [1]}),
    entry("process", "process_message", 10**40),
    entry("process", "process_message", -1),
    entry("process", "process_message", None),
    entry("process", "process_message", "x" * 1_000_000),
    entry("process", "process_message", *range(1_000)),
    entry("process", "process_message", 1, kwargs={"message_id": 2, "path": "/etc/passwd"}),
    entry("process", "import_messages", [[1]]),
    entry("process", "process_message", 1, options={"retries": "many", "max_retries": 10**9}),
]


@pytest.mark.parametrize("data", GARBAGE, ids=map(str, range(len(GARBAGE))))
def test_a_hostile_entry_stops_no_worker_and_changes_nothing(
    system: System, address: str, data: bytes
) -> None:
    """S58: dropped, dead or without effect; honest work goes on in all threads."""
    # Given a worker of one thread, and hostile entries before an honest one
    system.dovecot.deliver(address, message("honest"))
    account = system.add_account(address)
    for _ in range(3):
        push(system, "process", data)
    # When it works
    system.poll_and_process(account)
    # Then the honest message is processed, and so is one that comes later
    assert [one["status"] for one in system.messages(account)] == ["processed"]
    before = counts()
    system.dovecot.deliver(address, message("later"))
    for _ in range(3):
        push(system, "process", data)
    system.poll_and_process(account)
    assert [one["status"] for one in system.messages(account)] == ["processed"] * 2
    assert set(counts()) == set(before)
    assert system.api.simulate_get("/admin/tasks").status_code == 200
    assert system.api.simulate_get("/metrics").status_code == 200
    system.broker.client.flushdb()


@pytest.mark.parametrize(
    "args",
    [(), ("x", "y", "z"), ([1],), ({"a": 1},), (10**40,), (None,)],
    ids=map(str, range(6)),
)
def test_a_hostile_poll_stops_no_poller_and_is_no_emergency(
    system: System, address: str, args: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """S58: the limits of connections are looked up by what it names, before it runs."""
    system.dovecot.deliver(address, message("honest"))
    account = system.add_account(address)
    for _ in range(3):
        push(system, POLL, entry(POLL, "poll_account", *args))
    system.poll_and_process(account)
    assert [one["status"] for one in system.messages(account)] == ["processed"]
    # It fails as a task, as any that is not understood; nothing of mailpoll itself has failed.
    assert [r.message for r in caplog.records if r.levelno >= logging.CRITICAL] == []
    system.broker.client.flushdb()


def test_foreign_and_old_numbers_have_no_effect(system: System, address: str) -> None:
    """S58: rows are read again by their number, and their state decides."""
    system.dovecot.deliver(address, message("one"))
    account = system.add_account(address)
    system.poll_and_process(account)
    row = account_row(account)
    with database.connected():
        before = list(EmailRawMessage.select().dicts())
    rows = counts()
    for number in (row.id, 2**62, 0, -1, *range(1, 50)):
        actors.process_message.send(number)
        actors.import_messages.send([number, number])
        actors.delete_account.send(number)
        actors.poll_account.send(number + 10**6)
        actors.continue_import.send(number + 10**6)
    actors.begin_polls.send({str(10**6 + n): 0 for n in range(1_000)})
    with system.workers():
        wait_until(
            lambda: not any(one.waiting or one.running for one in queues.sizes(system.broker))
        )
    with database.connected():
        assert list(EmailRawMessage.select().dicts()) == before
    assert counts() == rows


def test_hostile_entries_do_not_keep_an_account_from_being_deleted(
    system: System, address: str
) -> None:
    """S58: the deletion searches the queues, whatever lies in them."""
    account = system.add_account(address)
    client, namespace = system.broker.client, system.broker.namespace
    for number, data in enumerate(GARBAGE):
        for key in (PROCESS, f"{PROCESS}.DQ", f"{PROCESS}.XQ", "poll.DQ"):
            client.hset(f"{namespace}:{key}.msgs", f"evil{number}", data)
        client.zadd(f"{namespace}:{PROCESS}.XQ", {f"evil{number}": 1})
    assert system.api.simulate_get("/admin/tasks").status_code == 200
    job = system.api.simulate_delete(f"/admin/email-accounts/{account}").json
    actors.delete_account.fn(
        Message.decode(client.hvals(f"{namespace}:maintenance.msgs")[0]).args[0]
    )
    assert system.get(f"/admin/jobs/{job['id']}")["state"] == "done"
    client.flushdb()
