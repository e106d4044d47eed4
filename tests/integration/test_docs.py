"""The OpenAPI document and the docs page, which must work offline."""

import pkgutil
import re
from importlib import import_module

import pytest
from openapi_spec_validator import validate

from mailpoll.web import schemas
from tests.integration.system import System


def test_the_document_is_valid(embedded: System) -> None:
    validate(embedded.get("/openapi.json"))


def test_the_document_lists_what_there_is(embedded: System) -> None:
    listed = {
        (method.upper(), re.sub(r"\{\w+\}", "*", path))
        for path, methods in embedded.get("/openapi.json")["paths"].items()
        for method in methods
    }
    assert listed == {
        ("GET", "/admin/email-accounts"),
        ("POST", "/admin/email-accounts"),
        ("POST", "/admin/email-accounts/import"),
        ("POST", "/admin/email-accounts/test"),
        ("GET", "/admin/email-accounts/*"),
        ("PATCH", "/admin/email-accounts/*"),
        ("DELETE", "/admin/email-accounts/*"),
        ("GET", "/admin/email-accounts/*/stats"),
        ("GET", "/admin/email-accounts/*/threads"),
        ("GET", "/admin/search"),
        ("GET", "/admin/threads/*"),
        ("GET", "/admin/email-accounts/*/messages"),
        *(
            ("POST", f"/admin/email-accounts/*/{verb}")
            for verb in ("test", "poll", "reconcile", "pause", "resume")
        ),
        ("GET", "/admin/messages"),
        ("GET", "/admin/failed"),
        ("POST", "/admin/failed/retry"),
        ("GET", "/admin/messages/*"),
        ("GET", "/admin/messages/*/raw"),
        ("GET", "/admin/messages/*/attachments/*"),
        ("GET", "/admin/messages/*/attachments/*/files/*"),
        ("GET", "/admin/email-accounts/*/attachments"),
        ("GET", "/admin/email-accounts/*/export"),
        ("POST", "/admin/email-accounts/*/import"),
        *((method, "/admin/exports") for method in ("GET", "POST")),
        *((method, "/admin/exports/*") for method in ("GET", "DELETE")),
        ("GET", "/admin/exports/*/download"),
        ("POST", "/admin/messages/*/retry"),
        ("GET", "/admin/holds"),
        *((method, "/admin/email-accounts/*/hold") for method in ("PUT", "DELETE")),
        *((method, "/admin/messages/*/hold") for method in ("PUT", "DELETE")),
        ("GET", "/admin/jobs/*"),
        ("GET", "/admin/delete-jobs"),
        ("GET", "/admin/delete-jobs/*"),
        ("GET", "/admin/alarms"),
        ("POST", "/admin/discover"),
        ("GET", "/admin/events"),
        ("GET", "/admin/events/stream"),
        ("GET", "/admin/webhooks"),
        ("POST", "/admin/webhooks"),
        *((method, "/admin/webhooks/*") for method in ("GET", "PATCH", "DELETE")),
        *(("POST", f"/admin/webhooks/*/{verb}") for verb in ("secret", "test", "replay")),
        ("GET", "/admin/webhooks/*/deliveries"),
        ("POST", "/admin/webhooks/*/events/*/redeliver"),
        ("GET", "/admin/stats"),
        ("GET", "/admin/stats/hours"),
        ("GET", "/admin/settings"),
        ("GET", "/admin/tasks"),
        ("POST", "/admin/tasks/dead/*/retry"),
        ("GET", "/admin/api-keys"),
        ("POST", "/admin/api-keys"),
        ("GET", "/admin/api-keys/*"),
        ("DELETE", "/admin/api-keys/*"),
        ("GET", "/admin/audit"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
    }


def test_schemas_have_plain_names_that_clients_can_take(embedded: System) -> None:
    named = embedded.get("/openapi.json")["components"]["schemas"]
    assert {"Account", "Hold", "Problem"} <= named.keys()
    assert [name for name in named if not name.isalpha()] == []


def test_no_two_schemas_have_the_same_name() -> None:
    packages = pkgutil.iter_modules(schemas.__path__, f"{schemas.__name__}.")
    modules = [import_module(one.name) for one in packages]
    own = [
        one.__name__
        for module in modules
        for one in vars(module).values()
        if isinstance(one, type) and one.__module__ == module.__name__
    ]
    assert len(own) > 100
    assert sorted(own) == sorted(set(own))


def test_the_document_never_gives_a_password_back(embedded: System) -> None:
    named = embedded.get("/openapi.json")["components"]["schemas"]
    for name, schema in named.items():
        if "password" in schema.get("properties", {}):
            assert "NewAccount" in name or "AccountChange" in name


def test_the_page_asks_no_other_host(embedded: System) -> None:
    page = embedded.api.simulate_get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in page.text.replace("</", "")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "//" not in embedded.api.simulate_get("/docs/start.js").text


def test_what_the_page_needs_is_served(embedded: System) -> None:
    page = embedded.api.simulate_get("/docs").text
    needed = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(needed) == 4
    for path in needed:
        answer = embedded.api.simulate_get(path)
        assert answer.status_code == 200
        assert answer.content
        assert "json" not in answer.headers["content-type"]


@pytest.mark.parametrize("path", ["../__init__.py", "..%2f__init__.py", "%2e%2e/__init__.py", ""])
def test_nothing_beside_the_assets_is_served(embedded: System, path: str) -> None:
    assert embedded.api.simulate_get(f"/docs/assets/{path}").status_code == 404
