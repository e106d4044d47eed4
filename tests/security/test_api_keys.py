"""API keys: what a token opens, what it does not, and what guessing gets an attacker."""

import os
import re
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import falcon.testing
import pytest
import urllib3

from mailpoll import api_keys, database, events
from mailpoll.models import (
    TABLES,
    AccountState,
    ApiKey,
    AuditEvent,
    EmailEvent,
    EventType,
    Scope,
)
from mailpoll.settings import settings
from mailpoll.web import auth, sessions
from mailpoll.web import events as web_events
from mailpoll.web.app import create_app
from tests.integration.conftest import _embedded, run_system
from tests.integration.rows import change_accounts
from tests.integration.system import System, message, wait_until
from tests.integration.test_auth import ID, basic, beyond, routes
from tests.integration.test_cli import clean, run
from tests.servers.dovecot import Dovecot
from tests.servers.process import free_ports

KEYS = "/admin/api-keys"
ACCOUNTS = "/admin/email-accounts"
SCOPES = list(Scope)


def new_key(system: System, scope: str = "read", name: str | None = None) -> dict[str, Any]:
    return system.post(KEYS, 201, name=name or f"{scope}-{secrets.token_hex(4)}", scope=scope)


def client_of(system: System, token: str, **headers: str) -> falcon.testing.TestClient:
    return falcon.testing.TestClient(
        system.api.app, headers={"Authorization": f"Bearer {token}", **headers}
    )


def change_keys(**columns: Any) -> None:
    with database.transaction():
        ApiKey.update(**columns).execute()


# --- what a key is


def test_a_key_opens_what_its_scope_says(system: System) -> None:
    """S47"""
    key = new_key(system)
    assert key["token"].startswith("mpk_")
    assert len(key["token"]) >= 47
    assert client_of(system, key["token"]).simulate_get("/admin/stats").status_code == 200
    browser = {"Authorization": basic(key["token"])}
    assert system.api.simulate_get("/admin/stats", headers=browser).status_code == 200


def test_only_its_hash_is_kept_and_the_hash_opens_nothing(system: System) -> None:
    """S45: who reads the database has no key."""
    key = new_key(system, "admin")
    with database.connected():
        everything = repr([list(table.select().dicts()) for table in TABLES])
        (row,) = ApiKey.select()
    assert key["token"] not in everything
    assert key["token"].removeprefix("mpk_") not in everything
    for guess in (row.token_sha256, f"mpk_{row.token_sha256}", row.uuid, row.name):
        assert client_of(system, guess).simulate_get("/admin/stats").status_code == 401


def test_its_token_is_shown_once(system: System) -> None:
    """S49"""
    key = new_key(system)
    again = [system.get(KEYS)["items"], system.get(f"{KEYS}/{key['id']}")]
    assert key["token"] not in repr(again)
    assert "sha256" not in repr(again)


def test_a_stream_of_events_ends_when_its_readers_key_is_revoked(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S45: whoever had opened it before would read on for ten minutes."""
    key = new_key(system)
    for _ in range(2):
        with database.transaction():
            EmailEvent.add(EventType.STORAGE_FALLBACK)
    first, second = events.look(0, 10, 0)[0]

    def follow(*_: Any) -> Iterator[events.Event]:
        yield first
        system.api.simulate_delete(f"{KEYS}/{key['id']}")
        yield second

    monkeypatch.setattr(events, "follow", follow)
    monkeypatch.setattr(web_events, "CHECK", 0)
    told = client_of(system, key["token"]).simulate_get("/admin/events/stream").text
    assert ("id: 1\n" in told, "id: 2\n" in told) == (True, False)


def test_a_revoked_key_opens_nothing_and_stays_in_the_list(system: System) -> None:
    """S45"""
    key = new_key(system)
    client = client_of(system, key["token"])
    assert client.simulate_get("/admin/stats").status_code == 200
    revoked = system.api.simulate_delete(f"{KEYS}/{key['id']}")
    assert (revoked.status_code, bool(revoked.json["revoked_at"])) == (200, True)
    assert client.simulate_get("/admin/stats").status_code == 401
    again = system.api.simulate_delete(f"{KEYS}/{key['id']}")
    assert again.json["revoked_at"] == revoked.json["revoked_at"]
    assert [row["id"] for row in system.get(KEYS)["items"]] == [key["id"]]


@contextmanager
def web_process(variables: dict[str, str], cwd: Path) -> Iterator[str]:
    """A real web process with two workers; its address."""
    given = {"PORT": str(free_ports(1)[0]), **variables, "WEB_CONCURRENCY": "2"}
    port = given["PORT"]
    process = subprocess.Popen([sys.executable, "-m", "mailpoll", "web"], cwd=cwd, env=clean(given))
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/healthz"))
        yield url
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        return urllib3.request("GET", url, timeout=2, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def test_a_revocation_holds_within_five_seconds_in_every_process(
    embedded: System, tmp_path: Path
) -> None:
    """S45"""
    names = ("MAILPOLL_", "REDIS_URL")
    variables = {n: v for n, v in os.environ.items() if n.startswith(names) and "TEST" not in n}
    key = new_key(embedded)
    with web_process(variables, tmp_path) as url:

        def status() -> int:
            headers = {"Authorization": f"Bearer {key['token']}"}
            return urllib3.request("GET", f"{url}/admin/stats", headers=headers).status

        assert {status() for _ in range(10)} == {200}
        assert (
            run("api-keys", "revoke", key["name"], variables=variables, cwd=tmp_path).returncode
            == 0
        )
        end = time.monotonic() + 5
        while time.monotonic() < end and status() == 200:
            time.sleep(0.1)
        assert {status() for _ in range(10)} == {401}


def test_a_key_ends_when_it_should(system: System) -> None:
    """S44"""
    end = datetime.now(UTC) + timedelta(hours=1)
    key = system.post(KEYS, 201, name="soon", scope="read", expires_at=end.isoformat())
    client = client_of(system, key["token"])
    assert client.simulate_get("/admin/stats").status_code == 200
    change_keys(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert client.simulate_get("/admin/stats").status_code == 401


def test_its_use_is_written_down_once_a_minute(system: System) -> None:
    """S64"""
    key = new_key(system)
    client = client_of(system, key["token"])

    def used() -> str:
        assert client.simulate_get("/admin/stats").status_code == 200
        return str(system.get(f"{KEYS}/{key['id']}")["last_used_at"])

    first = used()
    assert first != "None"
    assert used() == first
    change_keys(last_used_at=datetime.now(UTC) - timedelta(seconds=61))
    assert used() > first


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"name": "a"}, 422, "scope"),
        ({"name": "a", "scope": "root"}, 422, "scope"),
        ({"name": "", "scope": "read"}, 422, "name"),
        ({"name": "a\nb", "scope": "read"}, 422, "name"),
        ({"name": "x" * 65, "scope": "read"}, 422, "name"),
        ({"name": "command line", "scope": "read"}, 422, "name"),
        ({"name": "api token", "scope": "read"}, 422, "name"),
        ({"name": "taken", "scope": "read"}, 409, "name"),
        ({"name": "a", "scope": "read", "expires_at": "2020-01-01T00:00:00Z"}, 422, "expires_at"),
        ({"name": "a", "scope": "read", "expires_at": 5}, 422, "expires_at"),
        ({"name": "a", "scope": "read", "token": "mpk_" + "a" * 43}, 422, "token"),
        ({"name": "a", "scope": "read", "token_sha256": "0" * 64}, 422, "token_sha256"),
        ({"name": "a", "scope": "read", "revoked_at": None}, 422, "revoked_at"),
    ],
)
def test_a_key_that_cannot_be_is_refused(
    system: System, body: dict[str, Any], status: int, field: str
) -> None:
    """S48"""
    new_key(system, name="taken")
    refused = system.post(KEYS, status, **body)
    assert field in repr(refused["errors"])
    assert len(system.get(KEYS)["items"]) == 1


# --- scopes


def operations(system: System) -> list[tuple[str, str, str]]:
    """(method, path, scope) of each operation of the document, its parameters filled in."""
    found = []
    for path, methods in system.get("/openapi.json")["paths"].items():
        for method, operation in methods.items():
            place = re.sub(r"\{(account_id|job_id|key_id|webhook_id|export_id)\}", ID, path)
            needed = {scope for one in operation["security"] for (scope,) in one.values()}
            found.append((method.upper(), re.sub(r"\{\w+\}", "1", place), *(needed or {""})))
    return found


def test_every_operation_of_the_document_names_its_scope(embedded: System) -> None:
    """S47"""
    open_to_all = [path for _, path, scope in operations(embedded) if scope not in SCOPES]
    assert open_to_all == ["/healthz"]


def test_a_scope_opens_what_the_document_says_and_no_more(embedded: System) -> None:
    """S47: every operation with a key of every scope."""
    clients = {scope: client_of(embedded, new_key(embedded, scope)["token"]) for scope in SCOPES}
    checked = 0
    for method, path, needed in operations(embedded):
        if path in ("/healthz", "/admin/events/stream"):  # a stream does not end by itself
            continue
        for scope, client in clients.items():
            answer = client.simulate_request(method, path)
            allowed = scope.includes(Scope(needed))
            assert (answer.status_code != 403) == allowed, (method, path, scope)
            if not allowed:
                assert answer.headers["content-type"] == "application/problem+json"
                assert f"scope {needed}" in answer.json["detail"]
                checked += 1
    assert checked >= 20


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", f"{ACCOUNTS}/{ID}"),
        ("PATCH", f"{ACCOUNTS}/{ID}"),
        ("POST", ACCOUNTS),
        ("POST", f"{ACCOUNTS}/{ID}/poll"),
        ("POST", f"{ACCOUNTS}/{ID}/pause"),
        ("POST", "/admin/messages/1/retry"),
        ("POST", "/admin/tasks/dead/1/retry"),
        ("GET", KEYS),
        ("POST", KEYS),
        ("GET", "/admin/audit"),
        ("GET", "/dashboard"),
        ("POST", "/dashboard/delete-message"),
    ],
)
def test_a_key_for_reading_changes_nothing(embedded: System, method: str, path: str) -> None:
    """S47"""
    client = client_of(embedded, new_key(embedded)["token"])
    assert client.simulate_request(method, path).status_code == 403


def test_an_operators_key_polls_and_pauses_but_deletes_nothing(
    embedded: System, address: str
) -> None:
    """S47"""
    account = embedded.add_account(address)
    client = client_of(embedded, new_key(embedded, "operate")["token"])
    statuses = {
        verb: client.simulate_post(f"{ACCOUNTS}/{account}/{verb}").status_code
        for verb in ("pause", "resume", "poll")
    }
    assert statuses == {"pause": 200, "resume": 200, "poll": 202}
    assert client.simulate_delete(f"{ACCOUNTS}/{account}").status_code == 403
    assert client.simulate_patch(f"{ACCOUNTS}/{account}", json={}).status_code == 403


def test_a_responder_that_declares_nothing_is_for_administrators(embedded: System) -> None:
    """S47: forgotten is closed."""

    class Forgotten:
        def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
            resp.media = {}

    embedded.api.app.add_route("/admin/forgotten", Forgotten())
    statuses = [
        client_of(embedded, new_key(embedded, scope)["token"])
        .simulate_get("/admin/forgotten")
        .status_code
        for scope in SCOPES
    ]
    assert statuses == [403, 403, 200]


# --- who has no key


def test_no_route_but_the_open_ones_answers_without_a_good_key(embedded: System) -> None:
    """S44: without a token, with one that was revoked, and with one that is over."""
    revoked, over = new_key(embedded, "admin"), new_key(embedded, "admin")
    embedded.api.simulate_delete(f"{KEYS}/{revoked['id']}")
    with database.transaction():
        past = datetime.now(UTC) - timedelta(seconds=1)
        ApiKey.update(expires_at=past).where(ApiKey.uuid == over["id"]).execute()
    found = sorted({*routes(), *beyond()})
    assert len({path for _, path in found}) >= 40
    for token in (None, revoked["token"], over["token"]):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        for number, (method, path) in enumerate(found):
            if number % auth.WRONG_TOKENS == 0:  # another application counts them anew
                stranger = falcon.testing.TestClient(create_app(), headers=headers)
            if path != "/healthz" and path not in sessions.RETURNS:
                answer = stranger.simulate_request(method, path)
                assert answer.status_code == 401, (method, path)
                assert method == "HEAD" or answer.json.keys() <= {
                    "type",
                    "title",
                    "status",
                    "detail",
                    "request_id",
                }


def test_the_open_routes_tell_nothing(embedded: System) -> None:
    """S44"""
    stranger = falcon.testing.TestClient(embedded.api.app)
    answer = stranger.simulate_get("/healthz")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})
    # The page that takes providers' answers is the same whatever there is
    pages = {stranger.simulate_get(path).text.replace(path, "") for path in sessions.RETURNS}
    assert len(pages) == 1


def test_guesses_that_share_a_beginning_take_no_longer(embedded: System) -> None:
    """S45: 10,000 wrong keys that share 0 to 31 characters with a right one."""
    token = new_key(embedded, "admin")["token"]
    known = settings().api_tokens[0]
    authentication = auth.Authentication(settings())
    for right, begin in ((token, len(api_keys.PREFIX)), (known, 0)):
        times: dict[int, list[int]] = {shared: [] for shared in range(32)}
        for _ in range(157):
            for shared, found in times.items():
                end = begin + shared
                other = "A" if right[end] != "A" else "B"
                rest = secrets.token_urlsafe(64)[: len(right) - end - 1]
                start = time.thread_time_ns()
                assert authentication._caller(right[:end] + other + rest) is None
                found.append(time.thread_time_ns() - start)
        medians = {shared: statistics.median(found) for shared, found in times.items()}
        slope = statistics.linear_regression(list(medians), list(medians.values())).slope
        assert abs(slope) * 31 < 0.15 * statistics.median(medians.values())


# --- who tries many


def wrong(client: falcon.testing.TestClient, **headers: str) -> falcon.testing.Result:
    guess = {"Authorization": f"Bearer mpk_{secrets.token_urlsafe(32)}", **headers}
    return client.simulate_get("/admin/stats", headers=guess)


def test_a_thousand_wrong_keys_are_cut_short_and_right_ones_are_not(system: System) -> None:
    """S50"""
    key = new_key(system)
    right = client_of(system, key["token"])
    statuses = []
    for number in range(1_000):
        answer = wrong(system.api)
        statuses.append(answer.status_code)
        if number % 100 == 0:
            assert right.simulate_get("/admin/stats").status_code == 200
    assert statuses == [401] * auth.WRONG_TOKENS + [429] * (1_000 - auth.WRONG_TOKENS)
    assert 0 < int(answer.headers["retry-after"]) <= 61
    assert answer.headers["content-type"] == "application/problem+json"


def test_wrong_keys_do_not_fill_the_audit_log(system: System) -> None:
    """S50, S64: the first and the last that were looked at, of a thousand."""
    for _ in range(1_000):
        wrong(system.api)
    with database.connected():
        events = [(row.action, row.who, row.client) for row in AuditEvent.select()]
    assert events == [
        ("login.failed", "nobody", "127.0.0.1"),
        ("login.blocked", "nobody", "127.0.0.1"),
    ]


def test_a_forged_header_of_a_stranger_changes_nothing(system: System) -> None:
    """S50: a new X-Forwarded-For with each guess."""
    statuses = {
        wrong(system.api, **{"X-Forwarded-For": f"203.0.113.{n}"}).status_code for n in range(100)
    }
    assert statuses == {401, 429}
    with database.connected():
        assert {row.client for row in AuditEvent.select()} == {"127.0.0.1"}


@pytest.fixture
def proxied(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    """A system behind two proxies that it trusts: the test client, and one before it."""
    variables = _embedded(request, tmp_path)
    trusted = {"MAILPOLL_TRUSTED_PROXIES": "127.0.0.0/8,10.1.0.0/16,fd00::/8"}
    yield from run_system(variables, tmp_path, dovecot, **trusted)


def test_behind_a_trusted_proxy_each_client_counts_alone(proxied: System) -> None:
    """S50"""
    for _ in range(auth.WRONG_TOKENS + 1):
        last = wrong(proxied.api, **{"X-Forwarded-For": "203.0.113.7, 10.1.2.3"})
    assert last.status_code == 429
    other = wrong(proxied.api, **{"X-Forwarded-For": "203.0.113.8, 10.1.2.3"})
    assert other.status_code == 401


def test_what_a_client_itself_wrote_into_the_header_does_not_count(proxied: System) -> None:
    """S50: the proxy appends the true address to what it was sent."""
    for number in range(auth.WRONG_TOKENS + 1):
        last = wrong(proxied.api, **{"X-Forwarded-For": f"198.51.100.{number}, 203.0.113.7"})
    assert last.status_code == 429


def test_an_ipv6_network_counts_as_one_client(proxied: System) -> None:
    """S50: 2**64 addresses belong to one customer."""
    for number in range(auth.WRONG_TOKENS + 1):
        last = wrong(proxied.api, **{"X-Forwarded-For": f"2001:db8:0:1::{number:x}"})
    assert last.status_code == 429


def test_ipv4_clients_of_a_server_that_listens_to_both_count_one_by_one(proxied: System) -> None:
    """S50: an IPv4 address is seen inside one and the same IPv6 network then."""
    for number in range(auth.WRONG_TOKENS + 1):
        last = wrong(proxied.api, **{"X-Forwarded-For": f"::ffff:203.0.113.{number}"})
    assert last.status_code == 401


def test_many_clients_together_do_not_fill_the_audit_log(proxied: System) -> None:
    """S50, S64"""
    for number in range(300):
        address = f"198.51.{number // 200}.{number % 200}"
        assert wrong(proxied.api, **{"X-Forwarded-For": address}).status_code == 401
    with database.connected():
        assert AuditEvent.select().count() == auth.NOTED


@pytest.mark.parametrize("header", ["", ",", "nonsense", "1.2.3.4:80", "::::", "a" * 10_000])
def test_a_header_that_is_no_address_is_no_crash(proxied: System, header: str) -> None:
    """S50"""
    assert wrong(proxied.api, **{"X-Forwarded-For": header}).status_code == 401


# --- what requests may name, and what answers tell


@pytest.mark.parametrize(
    "field",
    ["state", "storage_type", "cursor", "owner", "id", "uuid", "credential", "lease_token"],
)
def test_no_request_sets_what_is_not_its_own(embedded: System, address: str, field: str) -> None:
    """S48"""
    account = embedded.add_account(address)
    new = embedded.new_account(f"more-{address}", test=False)
    for method, path, body in (("POST", ACCOUNTS, new), ("PATCH", f"{ACCOUNTS}/{account}", {})):
        answer = embedded.api.simulate_request(method, path, json={**body, field: "1"})
        assert answer.status_code == 422
        assert {error["field"] for error in answer.json["errors"]} == {field}
    assert len(embedded.get(ACCOUNTS)["items"]) == 1


def names_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from names_in(item)


def test_no_answer_holds_a_password(system: System, address: str) -> None:
    """S49"""
    canary = "canary-" + secrets.token_hex(16)
    new = system.new_account(address, password=canary, test=False)
    answers = [system.api.simulate_post(ACCOUNTS, json=new)]
    account = answers[0].json["id"]
    change = {"password": canary[::-1], "test": False}
    answers.append(system.api.simulate_patch(f"{ACCOUNTS}/{account}", json=change))
    tests = system.api.simulate_post(f"{ACCOUNTS}/{account}/test")
    answers += [tests, *map(system.api.simulate_get, (ACCOUNTS, f"{ACCOUNTS}/{account}"))]
    for answer in answers:
        assert canary not in answer.text
        assert canary[::-1] not in answer.text
        secret = {"password", "credential", "refresh_token", "access_token", "token"}
        assert not secret & set(names_in(answer.json))


def told(answer: Any) -> dict[str, Any]:
    """What an answer says, but for the name of its request."""
    return {name: value for name, value in answer.json.items() if name != "request_id"}


def test_an_account_that_is_being_deleted_is_like_none(system: System, address: str) -> None:
    """S46: there are no owners; the nearest to another's account is one that is going."""
    system.dovecot.deliver(address, message("hello"))
    account = system.add_account(address)
    system.poll_and_process(account)
    (mail,) = system.messages(account)
    change_accounts(state=AccountState.DELETING)
    for method, path in (
        ("GET", ""),
        ("PATCH", ""),
        ("GET", "/stats"),
        ("GET", "/messages"),
        *(("POST", f"/{verb}") for verb in ("test", "poll", "reconcile", "pause", "resume")),
    ):
        body = {} if method == "PATCH" else None
        there, none = (
            system.api.simulate_request(method, f"{ACCOUNTS}/{one}{path}", json=body)
            for one in (account, ID)
        )
        assert (there.status_code, told(there)) == (404, told(none)), path
    for path in ("", "/raw", "/attachments/0"):
        there, none = (
            system.api.simulate_get(f"/admin/messages/{one}{path}") for one in (mail["id"], 10**9)
        )
        assert (there.status_code, told(there)) == (404, told(none)), path


# --- on the command line


def test_keys_are_made_listed_and_revoked_on_the_command_line(
    embedded: System, tmp_path: Path
) -> None:
    """S64"""
    names = ("MAILPOLL_", "REDIS_URL")
    variables = {n: v for n, v in os.environ.items() if n.startswith(names) and "TEST" not in n}

    def output(*arguments: str) -> str:
        result = run("api-keys", *arguments, variables=variables, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return result.stdout.decode()

    token = output("create", "crm", "--scope", "operate", "--expires", "2999-01-01").strip()
    assert client_of(embedded, token).simulate_get("/admin/stats").status_code == 200
    assert '"name": "crm"' in output("list", "--json")
    assert token not in output("list", "--json") + output("list")
    assert "revoked_at" in output("revoke", "crm", "--json")
    assert client_of(embedded, token).simulate_get("/admin/stats").status_code == 401
    with database.connected():
        events = [(row.who, row.action) for row in AuditEvent.select().order_by(AuditEvent.id)]
    assert events[:2] == [
        ("command line", "api_key.create"),
        ("command line", "api_key.revoke"),
    ]
