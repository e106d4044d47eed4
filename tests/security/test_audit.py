"""The audit log: who did what, and when, with the change or not at all, and without any content."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mailpoll import actors, database
from mailpoll.models import AuditEvent, MessageStatus
from mailpoll.settings import settings
from tests.integration.rows import change_messages
from tests.integration.system import PASSWORD, System, message
from tests.integration.test_cli import run
from tests.security.test_api_keys import ACCOUNTS, KEYS, client_of, new_key

AUDIT = "/admin/audit"


def events(**columns: Any) -> list[AuditEvent]:
    """Oldest first."""
    with database.connected():
        return list(AuditEvent.select().filter(**columns).order_by(AuditEvent.id))


def variables() -> dict[str, str]:
    """What configures a command like this process."""
    names = ("MAILPOLL_", "REDIS_URL", "DATABASE_URL", "STORAGE_URL")
    return {n: v for n, v in os.environ.items() if n.startswith(names) and "TEST" not in n}


def test_every_change_and_download_is_written_down(system: System, address: str) -> None:
    """S64: who, what, when, by which request, from where."""
    attached = (
        "--b\r\nContent-Type: text/plain\r\n\r\nhi\r\n"
        "--b\r\nContent-Disposition: attachment; filename=a.txt\r\n\r\nfile\r\n--b--\r\n"
    )
    mixed = {"MIME_Version": "1.0", "Content_Type": 'multipart/mixed; boundary="b"'}
    system.dovecot.deliver(address, message("canary-subject", attached, **mixed))
    key = new_key(system, "admin", "ann")
    system.api = client_of(system, key["token"])

    start = datetime.now(UTC)
    account = system.add_account(address)
    system.poll_and_process(account)
    (mail,) = system.messages(account)
    raw = system.api.simulate_get(f"/admin/messages/{mail['id']}/raw")
    system.api.simulate_get(f"/admin/messages/{mail['id']}/attachments/0")
    change_messages(status=MessageStatus.FAILED)
    system.post(f"/admin/messages/{mail['id']}/retry", 202)
    for verb, status in (("pause", 200), ("resume", 200), ("reconcile", 202)):
        system.post(f"{ACCOUNTS}/{account}/{verb}", status)
    system.api.simulate_patch(f"{ACCOUNTS}/{account}", json={"poll_interval": 300})
    other = new_key(system, "read", "bob")
    system.api.simulate_delete(f"{KEYS}/{other['id']}")
    system.api.simulate_delete(f"{ACCOUNTS}/{account}")

    mine = events(who="ann")
    assert [(row.action, row.kind, row.target) for row in mine] == [
        ("account.create", "account", account),
        ("account.poll", "account", account),
        ("message.download", "message", str(mail["id"])),
        ("attachment.download", "attachment", f"{mail['id']}/0"),
        ("message.retry", "message", str(mail["id"])),
        ("account.pause", "account", account),
        ("account.resume", "account", account),
        ("account.reconcile", "account", account),
        ("account.change", "account", account),
        ("api_key.create", "api_key", other["id"]),
        ("api_key.revoke", "api_key", other["id"]),
        ("account.delete", "account", account),
    ]
    assert {row.client for row in mine} == {"127.0.0.1"}
    assert mine[2].request_id == raw.headers["x-request-id"]
    assert len({row.request_id for row in mine}) == len(mine)
    margin = timedelta(seconds=5)
    assert all(start - margin < row.at < datetime.now(UTC) + margin for row in mine)
    # The bootstrap token made the first key.
    assert [(row.who, row.action) for row in events() if row not in mine] == [
        ("api token", "api_key.create")
    ]


def test_no_event_holds_content_or_a_secret(system: System, address: str) -> None:
    """S64"""
    system.dovecot.deliver(address, message("canary-subject"))
    key = new_key(system, "admin")
    system.api = client_of(system, key["token"])
    account = system.add_account(address)
    system.poll_and_process(account)
    system.api.simulate_patch(f"{ACCOUNTS}/{account}", json={"password": PASSWORD})
    with database.connected():
        text = repr(list(AuditEvent.select().dicts()))
    assert "account.change" in text
    for secret in (address, "canary-subject", f"'{PASSWORD}'", key["token"]):
        assert secret not in text


def test_what_did_not_happen_is_not_in_it(system: System, address: str) -> None:
    """S64"""
    account = system.add_account(address)
    before = len(events())
    for method, path, body in (
        ("POST", ACCOUNTS, system.new_account(address)),
        ("POST", ACCOUNTS, system.new_account(f"x{address}", password="wrong")),
        ("PATCH", f"{ACCOUNTS}/{account}", {"password": "wrong"}),
        ("POST", "/admin/messages/1/retry", None),
        ("GET", "/admin/messages/1/raw", None),
        ("GET", "/admin/messages/1/attachments/0", None),
        ("DELETE", f"{KEYS}/{account}", None),
        ("DELETE", f"{ACCOUNTS}/00000000-0000-4000-8000-000000000000", None),
        ("POST", "/admin/tasks/dead/1/retry", None),
        ("GET", ACCOUNTS, None),
    ):
        answer = system.api.simulate_request(method, path, json=body)
        assert answer.status_code in (200, 404, 409, 422), (path, answer.text)
    assert len(events()) == before


def test_a_change_that_cannot_be_written_down_is_not_made(system: System, address: str) -> None:
    """S64: both are one transaction."""
    account = system.add_account(address)
    key = new_key(system)
    rename("audit_events", "audit_away")
    try:
        for method, path in (
            ("POST", f"{ACCOUNTS}/{account}/pause"),
            ("DELETE", f"{ACCOUNTS}/{account}"),
            ("DELETE", f"{KEYS}/{key['id']}"),
        ):
            answer = system.api.simulate_request(method, path)
            assert answer.status_code in (500, 503)
            assert "audit" not in answer.text
    finally:
        rename("audit_away", "audit_events")
    assert system.get(f"{ACCOUNTS}/{account}")["state"] == "active"
    assert system.get(f"{KEYS}/{key['id']}")["revoked_at"] is None


def rename(table: str, name: str) -> None:
    with database.transaction():
        database.proxy.execute_sql(f"ALTER TABLE {table} RENAME TO {name}")


def test_a_failed_login_is_written_down_once_a_minute(system: System) -> None:
    """S64"""
    for _ in range(5):
        answer = system.api.simulate_get("/admin/stats", headers={"Authorization": "Bearer x"})
        assert answer.status_code == 401
    assert [(row.action, row.who) for row in events()] == [("login.failed", "nobody")]


def test_it_is_read_in_pages_and_by_filters(system: System, address: str) -> None:
    """S64"""
    account = system.add_account(address)
    for _ in range(5):
        system.post(f"{ACCOUNTS}/{account}/pause")
    new_key(system)
    everything = system.get(AUDIT)["items"]
    assert len(everything) == 7
    assert [row["id"] for row in everything] == sorted(
        (row["id"] for row in everything), reverse=True
    )
    pages, cursor = [], {}
    while True:
        page = system.get(AUDIT, limit=3, **cursor)
        pages += page["items"]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert pages == everything

    def found(**filters: Any) -> int:
        return len(system.get(AUDIT, **filters)["items"])

    assert found(action="account.pause") == 5
    assert found(target=account) == 6
    assert found(who="api token") == 7
    assert found(who="nobody") == 0
    assert found(since=everything[0]["at"]) == 1
    assert found(before=everything[0]["at"]) == 6


@pytest.mark.parametrize(
    "query", ["cursor=x", "limit=0", "limit=201", "who=a%00", "since=yesterday", "colour=red"]
)
def test_a_wrong_question_is_refused(embedded: System, query: str) -> None:
    """S64"""
    assert embedded.api.simulate_get(AUDIT, query_string=query).status_code == 422


def test_what_the_command_line_does_is_in_it(system: System, address: str, tmp_path: Path) -> None:
    """S64"""
    account = system.add_account(address)
    for arguments in (
        ["accounts", "pause", address],
        ["accounts", "resume", address],
        ["accounts", "poll", address],
        ["accounts", "reconcile", address],
        ["fsck", "--offline", "--repair", "--account", address],
        ["keys", "rotate"],
        ["accounts", "delete", address, "--yes"],
    ):
        result = run(*arguments, variables=variables(), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    mine = events(who="command line")
    assert [row.action for row in mine] == [
        "account.pause",
        "account.resume",
        "account.poll",
        "account.reconcile",
        "fsck.repair",
        "keys.rotate",
        "account.delete",
    ]
    assert {row.target for row in mine if row.action != "keys.rotate"} == {account}

    shown = run("audit", "--who", "command line", "--json", variables=variables(), cwd=tmp_path)
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [line["action"] for line in lines] == [row.action for row in reversed(mine)]
    table = run("audit", "--limit", "1", variables=variables(), cwd=tmp_path)
    assert b"account.delete" in table.stdout


def test_old_events_are_forgotten(system: System) -> None:
    """S64: as many days as they are to be kept."""
    now = datetime.now(UTC)
    days = settings().audit_days
    with database.transaction():
        for age in (0, days - 1, days + 1, days + 2):
            at = now - timedelta(days=age)
            AuditEvent.create(at=at, who="x", action=f"age.{age}")
    actors.prune_audit.fn()
    assert [row.action for row in events()] == ["age.0", f"age.{days - 1}"]
