"""``GET /admin/tasks`` and ``POST /admin/tasks/dead/{id}/retry``."""

from typing import Any

import pytest

from mailpoll import actors
from tests.integration.system import System, message

#: One argument too many, so that the actor fails.
TOO_MANY = (1, 2)


def queue(system: System, name: str) -> dict[str, int]:
    (found,) = (item for item in system.get("/admin/tasks")["queues"] if item["queue"] == name)
    return dict(found)


def make_dead(system: System, *args: Any) -> dict[str, Any]:
    """A message that has failed for good."""
    options = {"max_retries": 1, "min_backoff": 1, "max_backoff": 1}
    actors.delete_account.send_with_options(args=args, **options)
    system.work_until(lambda: queue(system, "maintenance")["dead"] == 1)
    (dead,) = system.get("/admin/tasks")["dead"]
    return dict(dead)


def test_an_empty_queue_has_zeros(system: System) -> None:
    found = system.get("/admin/tasks")
    assert {item["queue"] for item in found["queues"]} == {
        "poll",
        "backfill",
        "process",
        "import",
        "maintenance",
        "webhooks",
    }
    for item in found["queues"]:
        assert (item["waiting"], item["delayed"], item["running"], item["dead"]) == (0, 0, 0, 0)
    assert found["dead"] == []


def test_waiting_and_delayed_messages_are_counted(system: System) -> None:
    for _ in range(3):
        actors.process_message.send(1)
    actors.process_message.send_with_options(args=(1,), delay=3_600_000)
    counted = queue(system, "process")
    assert (counted["waiting"], counted["delayed"], counted["dead"]) == (3, 1, 0)


def test_a_message_that_a_worker_has_taken_counts_as_running(system: System) -> None:
    # Given a worker that took a message and has not acknowledged it
    actors.process_message.send(1)
    taken = next(system.broker.consume("process", timeout=1_000))
    assert taken is not None
    counted = queue(system, "process")
    assert (counted["waiting"], counted["running"]) == (0, 1)


def test_runs_of_each_task_are_counted(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("x"))
    system.poll_and_process(system.add_account(address))
    tasks = {item["actor"]: item for item in system.get("/admin/tasks")["tasks"]}
    assert tasks["poll_account"]["runs"] >= 1
    assert tasks["poll_account"]["failures"] == 0
    assert tasks["poll_account"]["mean_ms"] > 0


def test_a_dead_message_says_what_it_was_and_why(system: System) -> None:
    dead = make_dead(system, *TOO_MANY)
    assert (dead["queue"], dead["actor"]) == ("maintenance", "delete_account")
    assert dead["args"] == list(TOO_MANY)
    assert dead["retries"] == 1
    assert dead["reason"].startswith("TypeError")
    assert "\n" not in dead["reason"]


@pytest.mark.parametrize("args", [(), ("text", 1), ({"a": 1}, 1), (1.5, None, 1)])
def test_a_foreign_message_does_not_break_the_list(system: System, args: tuple[Any, ...]) -> None:
    make_dead(system, *args)


def test_a_dead_message_is_enqueued_once_more(system: System) -> None:
    # Given a dead message
    dead = make_dead(system, *TOO_MANY)
    url = f"/admin/tasks/dead/{dead['id']}/retry"
    # When it is sent again
    assert system.post(url, 202) == {"id": dead["id"], "enqueued": True}
    # Then it waits, and is not dead any more
    counted = queue(system, "maintenance")
    assert (counted["waiting"], counted["dead"]) == (1, 0)
    system.post(url, 404)
    # And it runs: here to fail as before
    system.work_until(lambda: queue(system, "maintenance")["dead"] == 1)
    (again,) = system.get("/admin/tasks")["dead"]
    assert again["retries"] == 1
    assert again["args"] == dead["args"]


@pytest.mark.parametrize("task", ["1", "%00", "%F0%9F%98%80", "a" * 4_000])
def test_a_dead_message_that_is_not_there(system: System, task: str) -> None:
    system.post(f"/admin/tasks/dead/{task}/retry", 404)
