"""``/healthz``, ``/readyz`` and ``/metrics``, with everything there and with parts away."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from mailpoll import database
from tests.integration.conftest import run_system
from tests.integration.system import System, message
from tests.servers.dovecot import Dovecot
from tests.servers.process import free_ports
from tests.servers.valkey import Valkey


def cut_redis_off(system: System) -> None:
    """Let this process's Redis client find a closed port from now on."""
    (closed,) = free_ports(1)
    # Another pool: a thread that still uses a connection of this one would give it back to it.
    pool = redis.ConnectionPool.from_url(f"redis://127.0.0.1:{closed}")
    system.broker.client.connection_pool = pool


def cut_database_off() -> None:
    """Let this process find a closed port where its database was."""
    (closed,) = free_ports(1)
    before = database.proxy.obj
    database.open_database(f"postgresql://canary-user:canary-word@127.0.0.1:{closed}/canary-name")
    before.close_all()


def test_a_process_that_answers_is_healthy(system: System) -> None:
    answer = system.api.simulate_get("/healthz", headers={"Authorization": ""})
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_it_is_ready_when_all_parts_answer(system: System) -> None:
    assert system.get("/readyz") == {
        "ready": True,
        "database": True,
        "queue": True,
        "storage": True,
    }


def test_it_is_not_ready_without_its_queue(embedded: System) -> None:
    cut_redis_off(embedded)
    answer = embedded.api.simulate_get("/readyz")
    assert answer.status_code == 503
    assert (answer.json["ready"], answer.json["queue"], answer.json["database"]) == (
        False,
        False,
        True,
    )
    assert embedded.api.simulate_get("/healthz").status_code == 200


def test_requests_that_need_the_queue_are_told_to_come_back(embedded: System) -> None:
    cut_redis_off(embedded)
    for path in ("/admin/tasks", "/metrics"):
        answer = embedded.api.simulate_get(path)
        assert answer.status_code == 503
        assert answer.json["detail"] == "the queue is not available now"
        assert answer.headers["retry-after"].isdigit()
    assert embedded.api.simulate_get("/dashboard").status_code == 503
    assert embedded.api.simulate_get("/admin/stats").status_code == 200


@pytest.fixture
def without_database(
    request: pytest.FixtureRequest, tmp_path: Path, valkey: Valkey, dovecot: Dovecot
) -> Iterator[System]:
    for system in run_system({"REDIS_URL": valkey.url}, tmp_path, dovecot):
        url = system.settings.database
        cut_database_off()
        yield system
        database.open_database(url)


def test_it_is_not_ready_without_its_database(without_database: System) -> None:
    answer = without_database.api.simulate_get("/readyz")
    assert answer.status_code == 503
    assert (answer.json["database"], answer.json["queue"]) == (False, True)
    assert without_database.api.simulate_get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "path", ["/admin/stats", "/admin/email-accounts", "/admin/messages/1", "/metrics"]
)
def test_requests_that_need_the_database_are_told_to_come_back(
    without_database: System, path: str
) -> None:
    answer = without_database.api.simulate_get(path)
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["detail"] == "the database is not available now"
    assert answer.headers["retry-after"].isdigit()
    assert "canary" not in answer.text
    assert "127.0.0.1" not in answer.text


def test_metrics_count_accounts_mail_queues_and_tasks(system: System, address: str) -> None:
    system.dovecot.deliver_many(address, [message(str(n)) for n in range(3)])
    system.poll_and_process(system.add_account(address))
    answer = system.api.simulate_get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["mailpoll_accounts", "active"] == 1
    assert samples["mailpoll_messages", "processed"] == 3
    assert samples["mailpoll_queue_messages", "dead", "process"] == 0
    assert samples["mailpoll_task_runs_total", "poll_account"] >= 1
    assert samples["mailpoll_storage_circuit_open",] == 0


def test_metrics_name_no_address_host_or_id(system: System, address: str) -> None:
    account = system.add_account(address)
    system.poll_and_process(account)
    text = system.api.simulate_get("/metrics").text
    for secret in (address, address.partition("@")[0], "localhost", "127.0.0.1", account):
        assert secret not in text
