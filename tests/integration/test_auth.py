"""Who may ask: a bearer token, or Basic for browsers; nothing but ``/healthz`` without."""

import base64
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import falcon
import falcon.testing
import pytest

from mailpoll.settings import new_token
from mailpoll.web import sessions
from mailpoll.web.app import create_app
from tests.integration.conftest import _embedded, run_system
from tests.integration.system import TOKEN, System
from tests.servers.dovecot import Dovecot

ID = "00000000-0000-4000-8000-000000000000"
ORIGIN = "http://falconframework.org"  # where the test client says that it is
#: What may stand after a prefix.
BELOW = ("", "/", "/queues/poll", "swagger-ui.css", "/swagger-ui.css", "../admin/stats")


def routes() -> Iterator[tuple[str, str]]:
    """Every method of every route in the router, with its parameters filled in."""

    def walk(nodes: Any) -> Iterator[tuple[str, str]]:
        for node in nodes:
            if node.resource is not None:
                path = re.sub(r"\{\w+:uuid\}", ID, node.uri_template)
                for method in node.method_map.keys() - {"WEBSOCKET"}:
                    yield method, re.sub(r"\{[^}]*\}", "1", path)
            yield from walk(node.children)

    yield from walk(create_app()._router._roots)


def beyond() -> Iterator[tuple[str, str]]:
    """What the router does not know, sinks and directories of files, by prefix; but open ones."""
    app = create_app()
    prefixes = [prefix.pattern for prefix, _, _ in app._sinks]
    prefixes += [directory._prefix for directory, _, _ in app._static_routes]
    assert set(prefixes) >= {"/dashboard", "/docs/assets/", sessions.ASSETS}
    for prefix, name, method in itertools.product(prefixes, BELOW, ("GET", "POST", "HEAD")):
        if prefix != sessions.ASSETS:
            yield method, prefix + name


#: Where providers send browsers back to: no login comes along, and nothing happens there.
RETURNS = {f"/accounts/connect/{name}" for name in ("google", "microsoft", "generic")}


def basic(password: str, user: str = "admin") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def stranger(embedded: System) -> falcon.testing.TestClient:
    return falcon.testing.TestClient(embedded.api.app)


def test_every_route_needs_a_token(embedded: System) -> None:
    found = set(routes())
    assert len({path for _, path in found}) >= 20
    for method, path in [*found, *beyond(), ("GET", "/nowhere")]:
        answer = stranger(embedded).simulate_request(method, path)
        if path == "/healthz" or path in RETURNS:
            assert answer.status_code in (200, 405)
        else:
            assert answer.status_code == 401, (method, path)
            # Chromium reads the first challenge only, and must ask for a password
            assert answer.headers["www-authenticate"].startswith("Basic ")
            assert "Bearer" in answer.headers["www-authenticate"]
            assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/healthz/", "//healthz", "/healthz/../admin/stats", "/HEALTHZ"])
def test_nothing_that_looks_like_the_open_route_is_open(embedded: System, path: str) -> None:
    assert stranger(embedded).simulate_get(path).status_code == 401


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.swapcase()}",
        "Bearer é",
        f"Token {TOKEN}",
        TOKEN,
        "Basic",
        "Basic !!!",
        "Basic é",
        basic(""),
        basic("x"),
        "Basic " + base64.b64encode(TOKEN.encode()).decode(),
        basic("x", user=TOKEN),
    ],
    ids=map(str, range(17)),  # tokens differ between the processes of a run
)
def test_what_is_not_the_token_is_refused(embedded: System, header: str) -> None:
    answer = stranger(embedded).simulate_get("/admin/stats", headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "header",
    [f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN), basic(TOKEN, "anyone")],
    ids=map(str, range(4)),
)
def test_the_token_opens(embedded: System, header: str) -> None:
    answer = stranger(embedded).simulate_get("/admin/stats", headers={"Authorization": header})
    assert answer.status_code == 200


def test_each_of_several_tokens_opens(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot
) -> None:
    tokens = [new_token(), new_token()]
    variables = _embedded(request, tmp_path)
    for system in run_system(variables, tmp_path, dovecot, MAILPOLL_API_TOKEN=",".join(tokens)):
        for token in tokens:
            headers = {"Authorization": f"Bearer {token}"}
            assert stranger(system).simulate_get("/admin/stats", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ({}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Referer": "https://evil.example/falconframework.org"}, 403),
        ({"Origin": "http://falconframework.org.evil.example"}, 403),
        ({"Origin": "http://falconframework.org@evil.example"}, 403),
        ({"Origin": ORIGIN}, 404),
        ({"Referer": f"{ORIGIN}/docs"}, 404),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_another_site_cannot_use_a_browsers_login(
    embedded: System, method: str, origin: dict[str, str], status: int
) -> None:
    path = f"/admin/email-accounts/{ID}" + ("/poll" if method == "POST" else "")
    headers = {"Authorization": basic(TOKEN), **origin}
    answer = stranger(embedded).simulate_request(method, path, headers=headers)
    assert answer.status_code == status


def test_a_bearer_token_needs_no_origin(embedded: System) -> None:
    embedded.post(f"/admin/email-accounts/{ID}/poll", 404)
