"""Every operation while a part of mailpoll is away: 503, the request's name, and nothing inside."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from mailpoll import database, runtime
from tests.integration.system import PASSWORD, System
from tests.integration.test_health import cut_database_off, cut_redis_off
from tests.servers.process import free_ports

INSIDE = re.compile(
    r"Traceback|File \"|line \d+|SELECT|INSERT|psycopg|peewee|sqlite|redis\.|minio|urllib3|canary"
    r"|127\.0\.0\.1|localhost|Errno|Connection refused",
    re.IGNORECASE,
)
BODIES: dict[str, dict[str, Any]] = {
    "/admin/email-accounts": {"address": "new@example.org", "password": PASSWORD, "test": False},
    "/admin/email-accounts/{account_id}": {"poll_interval": 60},
    "/admin/discover": {"address": "someone@gmail.com"},
    "/admin/webhooks": {"url": "https://example.org/"},
    "/admin/webhooks/{webhook_id}": {"description": "changed"},
    "/admin/webhooks/{webhook_id}/replay": {"after": 0},
    "/admin/exports": {"account_id": "00000000-0000-4000-8000-000000000000"},
    "/admin/api-keys": {"name": "another", "scope": "read"},
    "/admin/failed/retry": {"error": "none"},
    "/admin/email-accounts/import": {
        "accounts": [{"address": "row@example.org", "password": PASSWORD}],
        "dry_run": True,
    },
}
#: It does not end by itself.
STREAM = "/admin/events/stream"


@pytest.fixture
def filled(system: System, address: str) -> dict[str, str]:
    """The ids of an account and a message, by the names that paths have for them."""
    raw = (
        b'Subject: x\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n'
        b"Content-Disposition: attachment; filename=a\r\n\r\nattached\r\n--b--\r\n"
    )
    system.dovecot.deliver(address, raw)
    account = system.add_account(address)
    system.poll_and_process(account)
    (found,) = system.messages(account)
    return {
        "account_id": account,
        "message_id": str(found["id"]),
        "thread_id": str(found["id"]),
        "n": "0",
        "k": "0",
        "number": "1",
        "job_id": account,
        "task_id": "none",
    }


def operations(system: System, ids: dict[str, str]) -> Iterator[tuple[str, str, Any]]:
    """Every operation of the document, those that change most last."""
    paths = system.get("/openapi.json")["paths"]
    for method in ("get", "post", "patch", "delete"):
        for path, known in paths.items():
            if method in known and path != STREAM:
                # Of what there is none, the account's id will do.
                filled_in = re.sub(
                    r"\{(\w+)\}", lambda found: ids.get(found[1], ids["account_id"]), path
                )
                filled_in += "?q=word" if path == "/admin/search" else ""
                yield method.upper(), filled_in, BODIES.get(path) if method != "get" else None


def ask_all(system: System, asked: list[tuple[str, str, Any]]) -> dict[str, int]:
    """The status of each; each is sound, whatever it is."""
    statuses = {}
    for method, path, body in asked:
        answer = system.api.simulate_request(method, path, json=body)
        name = f"{method} {path}"
        statuses[name] = answer.status_code
        assert answer.status_code in (200, 201, 202, 404, 409, 422, 503), f"{name}: {answer.text}"
        if answer.status_code >= 400 and "readyz" not in path:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json["request_id"] == answer.headers["x-request-id"]
            assert not INSIDE.search(answer.text), f"{name}: {answer.text}"
        if answer.status_code == 503 and "readyz" not in path:
            assert answer.headers["retry-after"].isdigit()
    return statuses


def test_without_the_database(system: System, filled: dict[str, str]) -> None:
    """S52"""
    asked = list(operations(system, filled))
    url = system.settings.database
    cut_database_off()
    try:
        statuses = ask_all(system, asked)
    finally:
        database.open_database(url)
    # The document's own routes and health apart, nothing can be done without it.
    well = {name for name, status in statuses.items() if status != 503}
    assert well <= {
        "GET /healthz",
        "GET /admin/settings",
        "POST /admin/discover",
        "POST /admin/email-accounts/test",
        "GET /admin/tasks",
        "POST /admin/tasks/dead/none/retry",
    }
    assert "GET /admin/stats" not in well


def test_without_the_queue(system: System, filled: dict[str, str]) -> None:
    """S52: what only sends a hint works without it."""
    asked = list(operations(system, filled))
    before = system.broker.client.connection_pool
    cut_redis_off(system)
    statuses = ask_all(system, asked)
    assert {name for name, status in statuses.items() if status == 503} == {
        "GET /admin/tasks",
        "GET /metrics",
        "GET /readyz",
        "POST /admin/tasks/dead/none/retry",
    }
    system.broker.client.connection_pool = before


@pytest.mark.leaves_damage
def test_without_the_store(
    system: System, filled: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """S52: what shows bytes says when to come back; all else works."""
    from mailpoll.settings import settings

    asked = list(operations(system, filled))
    (closed,) = free_ports(1)
    place = f"s3://canary-key:canary-secret@127.0.0.1:{closed}/canary-bucket?secure=0"
    monkeypatch.setenv("STORAGE_URL", place)
    settings.cache_clear()
    runtime.storage.cache_clear()
    with database.transaction():
        for table in ("email_raw_messages", "email_attachments"):
            database.proxy.execute_sql(f"UPDATE {table} SET storage_type = 'oss'")
    try:
        statuses = ask_all(system, asked)
    finally:
        monkeypatch.undo()
        settings.cache_clear()
        runtime.storage.cache_clear()
    message_url = f"/admin/messages/{filled['message_id']}"
    away = {name for name, status in statuses.items() if status == 503}
    assert away == {
        f"GET {message_url}/raw",
        f"GET {message_url}/attachments/0",
        f"GET /admin/email-accounts/{filled['account_id']}/export",
    }


def test_the_log_has_the_name_of_the_request(
    capfd: pytest.CaptureFixture[str], embedded: System
) -> None:
    """S52"""
    cut_redis_off(embedded)
    answer = embedded.api.simulate_get("/admin/tasks")
    assert answer.status_code == 503
    assert answer.headers["x-request-id"] in capfd.readouterr().err


def test_two_requests_have_two_names(embedded: System) -> None:
    """S52: and none that a client chooses."""
    given = {"X-Request-Id": "mine"}
    names = {
        embedded.api.simulate_get("/healthz", headers=given).headers["x-request-id"]
        for _ in range(9)
    }
    assert len(names) == 9
    assert "mine" not in names


QUERIES = [
    "limit=1000000000000",
    "limit=-1",
    "limit=1;DROP TABLE email_accounts",
    "state=active' OR '1'='1",
    "status=stored'--",
    "sort=subject; DELETE FROM email_accounts",
    "order=1",
    "cursor=' OR 1=1 --",
    "cursor=WyInIE9SIDE9MSAtLSIsMV0",
    "since=2026-01-01' OR '1'='1",
    "sha256=' UNION SELECT credential FROM email_accounts --",
    "page=1%20OR%201=1",
]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("path", ["/admin/email-accounts", "/admin/email-accounts/{}/messages"])
def test_a_query_that_is_none_is_refused(
    system: System, address: str, path: str, query: str
) -> None:
    """S53: named, and never part of a statement."""
    account = system.add_account(address, test=False)
    answer = system.api.simulate_get(path.format(account), query_string=query.replace(" ", "%20"))
    assert answer.status_code == 422
    assert answer.json["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.parametrize("text", ["' OR 1=1 --", "%", "_", "\\", "x' UNION SELECT 1 --", '"'])
def test_what_is_looked_for_is_a_value_and_no_pattern(
    system: System, address: str, text: str
) -> None:
    """S53: free text of a filter finds what has it in it, and nothing else."""
    account = system.add_account(address, test=False)
    found = system.get("/admin/email-accounts", address=text)["items"]
    assert found == []
    for field in ("folder", "message_id"):
        url = f"/admin/email-accounts/{account}/messages"
        assert system.get(url, **{field: text})["items"] == []
    assert [one["id"] for one in system.get("/admin/email-accounts")["items"]] == [account]
