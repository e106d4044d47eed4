"""Dramatiq's dashboard behind mailpoll's authentication."""

import base64
import re
from urllib.parse import urlencode

import falcon.testing
import pytest

from mailpoll import actors
from mailpoll.broker import redis_client
from tests.integration.system import TOKEN, System
from tests.integration.test_auth import ORIGIN

LOGIN = "Basic " + base64.b64encode(f"admin:{TOKEN}".encode()).decode()
FORM = "application/x-www-form-urlencoded"


def send(system: System, delay: int = 3_600_000) -> str:
    """A message that waits; its id in Redis."""
    actors.process_message.send_with_options(args=(1,), delay=delay)
    (key,) = redis_client(system.settings).hkeys("mailpoll:process.DQ.msgs")
    return str(key.decode())


def submit(system: System, action: str, page: str, origin: str, **more: str) -> int:
    """Send the form of ``page`` as a browser does; the answer's status."""
    browser = falcon.testing.TestClient(system.api.app, headers={"Authorization": LOGIN})
    shown = browser.simulate_get(page)
    assert shown.status_code == 200
    form = {
        name: re.search(rf'name="{name}" value="([^"]*)"', shown.text)[1]
        for name in ("__dd_csrf", "queue", "id")
    }
    cookie = shown.headers["set-cookie"].partition(";")[0]
    answer = browser.simulate_post(
        f"/dashboard/{action}",
        body=urlencode({**form, **more}),
        headers={"Content-Type": FORM, "Cookie": cookie, "Origin": origin},
    )
    return int(answer.status_code)


def test_it_shows_the_queues(system: System) -> None:
    for path in ("/dashboard", "/dashboard/"):
        answer = system.api.simulate_get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "maintenance" in answer.text
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["", "/", "/queues/poll", "/queues/process/delayed", "/nowhere"])
def test_it_is_closed_without_a_token(embedded: System, path: str) -> None:
    stranger = falcon.testing.TestClient(embedded.api.app)
    for method in ("GET", "POST"):
        assert stranger.simulate_request(method, f"/dashboard{path}").status_code == 401


def test_it_loads_nothing_from_elsewhere(system: System) -> None:
    message = send(system)
    for path in ("", "/queues/process/delayed", f"/queues/process/delayed/{message}"):
        text = system.api.simulate_get(f"/dashboard{path}").text
        assert not re.search(r"""(?:src|href|action|url)\s*[=(]\s*["']?\s*(?:https?:)?//""", text)


def test_its_cookie_stays_on_this_site(system: System) -> None:
    answer = system.api.simulate_get("/dashboard/queues/process")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "SameSite=Strict" in answer.headers["set-cookie"]


def test_a_message_can_be_deleted(system: System) -> None:
    page = f"/dashboard/queues/process/delayed/{send(system)}"
    assert submit(system, "delete-message", page, ORIGIN) == 302
    assert redis_client(system.settings).hlen("mailpoll:process.DQ.msgs") == 0


def test_a_message_can_be_requeued(system: System) -> None:
    page = f"/dashboard/queues/process/delayed/{send(system)}"
    assert submit(system, "requeue-message", page, ORIGIN) == 302
    assert redis_client(system.settings).hlen("mailpoll:process.msgs") == 1
    assert redis_client(system.settings).hlen("mailpoll:process.DQ.msgs") == 0


@pytest.mark.parametrize("action", ["delete-message", "requeue-message"])
def test_another_site_can_do_neither(system: System, action: str) -> None:
    page = f"/dashboard/queues/process/delayed/{send(system)}"
    assert submit(system, action, page, "https://evil.example") == 403
    assert redis_client(system.settings).hlen("mailpoll:process.DQ.msgs") == 1


def test_a_form_without_its_token_does_nothing(system: System) -> None:
    page = f"/dashboard/queues/process/delayed/{send(system)}"
    assert submit(system, "delete-message", page, ORIGIN, __dd_csrf="guessed") == 403
    assert redis_client(system.settings).hlen("mailpoll:process.DQ.msgs") == 1


@pytest.mark.parametrize(
    ("path", "statuses"),
    [
        ("/queues/process?cursor=x", {400}),
        ("/queues/nowhere", {200, 404}),
        ("/queues/process/delayed/nothing", {302}),
        ("/nowhere", {404}),
        ("/a%0Ab", {404}),
        ("foo", {404}),
    ],
)
def test_a_wrong_address_is_no_crash(system: System, path: str, statuses: set[int]) -> None:
    assert system.api.simulate_get(f"/dashboard{path}").status_code in statuses
