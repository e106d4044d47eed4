"""The dashboard in the hands of strangers, of other sites, and of keys that are not for it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import falcon.testing
import pytest

from mailpoll import database
from mailpoll.broker import redis_client
from mailpoll.crypto import KeyRing
from mailpoll.models import AuditEvent
from mailpoll.settings import new_key as new_ring_key
from mailpoll.settings import settings
from mailpoll.web import auth, sessions
from mailpoll.web.app import create_app
from tests.integration.conftest import _embedded, run_system
from tests.integration.system import KEY, TOKEN, System
from tests.integration.test_auth import ORIGIN
from tests.integration.test_dashboard import FORM, send
from tests.security.test_api_keys import KEYS, new_key
from tests.servers.dovecot import Dovecot

LOGIN, LOGOUT = "/login", "/logout"
PAGES = ["/dashboard", "/dashboard/", "/dashboard/queues/poll"]
BROWSER = {"Accept": "text/html,application/xhtml+xml"}


def browser(system: System, cookie: str = "", **headers: str) -> falcon.testing.TestClient:
    given = {**BROWSER, **headers, **({"Cookie": cookie} if cookie else {})}
    return falcon.testing.TestClient(system.api.app, headers=given)


def log_in(system: System, token: str, **headers: str) -> falcon.testing.Result:
    more = {"Content-Type": FORM, "Origin": ORIGIN, **headers}
    return browser(system).simulate_post(LOGIN, body=urlencode({"token": token}), headers=more)


def session(system: System, token: str = TOKEN) -> str:
    """The cookie of somebody who has logged in."""
    answer = log_in(system, token)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    return answer.headers["set-cookie"].partition(";")[0]


def test_it_is_off_unless_it_is_enabled(
    embedded: System, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """S55"""
    request.addfinalizer(settings.cache_clear)
    monkeypatch.delenv("MAILPOLL_DASHBOARD")
    settings.cache_clear()
    headers = {"Authorization": f"Bearer {TOKEN}", **BROWSER}
    client = falcon.testing.TestClient(create_app(), headers=headers)
    assert {client.simulate_get(path).status_code for path in PAGES} == {404}
    assert "/dashboard" not in browser(embedded, session(embedded)).simulate_get("/tasks").text


@pytest.mark.parametrize("path", PAGES)
def test_a_stranger_sees_a_form_and_nothing_else(system: System, path: str) -> None:
    """S55"""
    send(system)
    answer = browser(system).simulate_get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{LOGIN}?next={path}")
    assert answer.text == ""
    # No password prompt of the browser before the form
    assert "www-authenticate" not in answer.headers
    form = browser(system).simulate_get(answer.headers["location"])
    assert 'type="password"' in form.text
    assert "frame-ancestors 'none'" in form.headers["content-security-policy"]
    assert browser(system).simulate_post(path).status_code == 303


def test_a_session_opens_pages_and_not_the_api(system: System) -> None:
    """S55"""
    client = browser(system, session(system))
    for path in (*PAGES, "/", "/docs", "/openapi.json"):
        assert client.simulate_get(path).status_code == 200
    for path in ("/admin/stats", KEYS, "/metrics", "/readyz", "/dashboards", "/admin/../"):
        assert client.simulate_get(path).status_code == 401


def test_an_admin_key_opens_it_and_others_do_not(system: System) -> None:
    """S47, S55"""
    keys = {scope: new_key(system, scope)["token"] for scope in ("read", "operate", "admin")}
    assert (
        browser(system, session(system, keys["admin"])).simulate_get("/dashboard").status_code
        == 200
    )
    for scope in ("read", "operate"):
        client = browser(system, session(system, keys[scope]))
        bearer = {"Authorization": f"Bearer {keys[scope]}"}
        for path in PAGES:
            assert client.simulate_get(path).status_code == 403
            assert system.api.simulate_get(path, headers=bearer).status_code == 403


def test_a_session_ends_with_its_key(system: System) -> None:
    """S45, S55"""
    key = new_key(system, "admin")
    client = browser(system, session(system, key["token"]))
    assert client.simulate_get("/dashboard").status_code == 200
    system.api.simulate_delete(f"{KEYS}/{key['id']}")
    assert client.simulate_get("/dashboard").status_code == 303


def test_a_session_ends_in_time_and_by_logging_out(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S55"""
    monkeypatch.setattr(sessions, "LIFETIME", -1)
    assert browser(system, session(system)).simulate_get("/dashboard").status_code == 303
    monkeypatch.undo()
    client = browser(system, session(system), Origin=ORIGIN)
    answer = client.simulate_post(LOGOUT)
    assert (answer.status_code, answer.headers["location"]) == (303, LOGIN)
    assert re.search(r'mailpoll_session=("")?;', answer.headers["set-cookie"])
    assert "expires=" in answer.headers["set-cookie"]


def test_a_cookie_that_we_did_not_make_opens_nothing(system: System) -> None:
    """S55: forged, changed, sealed with a foreign key, or sealed for another purpose."""
    good = session(system).partition("=")[2]
    foreign = KeyRing([new_ring_key()]).encrypt(f"99999999999:{TOKEN}", sessions.CONTEXT)
    other = KeyRing([KEY]).encrypt(f"99999999999:{TOKEN}", "account:credential")
    flipped = good[:-10] + ("A" if good[-10] != "A" else "B") + good[-9:]
    for value in (TOKEN, good[:-4], flipped, foreign, other, "v1..", "x", '"'):
        client = browser(system, f"{sessions.COOKIE}={value}")
        assert client.simulate_get("/dashboard").status_code == 303, value


def test_the_cookie_tells_nothing_and_stays_on_this_site(system: System) -> None:
    """S56"""
    cookie = log_in(system, TOKEN).headers["set-cookie"]
    assert TOKEN not in cookie
    for part in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=28800"):
        assert part in cookie
    assert "Secure" not in cookie


@pytest.fixture
def proxied(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    """A system behind a proxy on this machine that speaks TLS to clients."""
    variables = _embedded(request, tmp_path)
    yield from run_system(variables, tmp_path, dovecot, MAILPOLL_TRUSTED_PROXIES="127.0.0.0/8")


def test_over_tls_the_cookies_are_for_tls_alone(proxied: System) -> None:
    """S56"""
    tls = {"X-Forwarded-Proto": "https"}
    cookie = log_in(proxied, TOKEN, **tls).headers["set-cookie"]
    assert "Secure" in cookie
    page = browser(proxied, session(proxied), **tls).simulate_get("/dashboard/queues/process")
    assert "; Secure" in page.headers["set-cookie"]
    assert "SameSite=Strict" in page.headers["set-cookie"]


def test_a_stranger_does_not_say_what_is_tls(system: System) -> None:
    """S50, S56"""
    cookie = log_in(system, TOKEN, **{"X-Forwarded-Proto": "https"}).headers["set-cookie"]
    assert "Secure" not in cookie


@pytest.mark.parametrize(
    "origin",
    [None, "https://evil.example", "null", f"{ORIGIN}.evil.example", f"{ORIGIN}@evil.example"],
)
def test_another_site_cannot_post(system: System, origin: str | None) -> None:
    """S56: with the visitor's session, the right form token, and no matter what it posts to."""
    task = send(system)
    cookie = session(system)
    shown = browser(system, cookie).simulate_get(f"/dashboard/queues/process/delayed/{task}")
    csrf = shown.headers["set-cookie"].partition(";")[0]
    form = {"__dd_csrf": csrf.partition("=")[2], "queue": "process.DQ", "id": task}
    headers: dict[str, Any] = {"Content-Type": FORM}
    if origin:
        headers["Origin"] = origin
    client = browser(system, f"{cookie}; {csrf}", **headers)
    for path in ("/dashboard/delete-message", "/dashboard/requeue-message", LOGOUT):
        assert client.simulate_post(path, body=urlencode(form)).status_code == 403
    assert redis_client(system.settings).hlen("mailpoll:process.DQ.msgs") == 1
    # Nor log a visitor in with the site's own key
    answer = browser(system, **headers).simulate_post(LOGIN, body=urlencode({"token": TOKEN}))
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_its_own_forms_work_and_are_written_down(system: System) -> None:
    """S56, S64"""
    task = send(system)
    cookie = session(system, new_key(system, "admin", "ann")["token"])
    shown = browser(system, cookie).simulate_get(f"/dashboard/queues/process/delayed/{task}")
    csrf = shown.headers["set-cookie"].partition(";")[0]
    form = {"__dd_csrf": csrf.partition("=")[2], "queue": "process.DQ", "id": task}
    client = browser(system, f"{cookie}; {csrf}", Origin=ORIGIN, **{"Content-Type": FORM})
    answer = client.simulate_post("/dashboard/delete-message", body=urlencode(form))
    assert answer.status_code == 302
    assert redis_client(system.settings).hlen("mailpoll:process.DQ.msgs") == 0
    with database.connected():
        events = [
            (row.action, row.kind, row.target)
            for row in AuditEvent.select().where(AuditEvent.who == "ann")
        ]
    assert events == [("task.delete", "task", task)]


def test_guessing_at_the_form_is_cut_short(system: System) -> None:
    """S50"""
    statuses = [log_in(system, f"guess {number}").status_code for number in range(50)]
    assert statuses == [401] * auth.WRONG_TOKENS + [429] * (50 - auth.WRONG_TOKENS)
    assert session(system)


def test_an_old_session_is_no_guess(system: System) -> None:
    """S50: a page that is left open does not lock its reader out of the form."""
    key = new_key(system, "admin")
    client = browser(system, session(system, key["token"]))
    system.api.simulate_delete(f"{KEYS}/{key['id']}")
    assert {client.simulate_get("/dashboard").status_code for _ in range(100)} == {303}


@pytest.mark.parametrize("body", ["", "token=", "token", "x=1", "token=%ff%00", "a" * 5_000])
def test_a_form_without_a_token_is_no_crash(system: System, body: str) -> None:
    """S55"""
    headers = {"Content-Type": FORM, "Origin": ORIGIN}
    assert browser(system).simulate_post(LOGIN, body=body, headers=headers).status_code == 401


def test_no_page_of_it_may_be_framed(system: System) -> None:
    """S56"""
    client = browser(system, session(system))
    for path in PAGES:
        policy = client.simulate_get(path).headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "form-action 'self'" in policy
