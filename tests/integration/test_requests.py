"""Requests that no client of ours would send."""

import pytest

from mailpoll.web.app import BODY_LIMIT
from tests.integration.system import System

URL = "/admin/email-accounts"
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nothing",
        b'{"address": NaN}',
        b'{"poll_interval": Infinity}',
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"address": "\xff"}',
        b'{"address": "\\ud800@example.org", "password": "x"}',
        b"\x00",
        b'{"a": 1} {"b": 2}',
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_json_is_refused(embedded: System, body: bytes) -> None:
    answer = embedded.api.simulate_post(URL, body=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert embedded.get(URL)["items"] == []


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x"],
)
def test_another_content_type_is_refused(embedded: System, kind: str) -> None:
    answer = embedded.api.simulate_post(URL, body=b"{}", headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_empty_body_names_what_is_missing(embedded: System) -> None:
    answer = embedded.api.simulate_post(URL)
    assert answer.status_code == 422
    assert {error["field"] for error in answer.json["errors"]} == {"address"}
    place = {"host": "localhost", "port": embedded.dovecot.imaps_port}
    answer = embedded.api.simulate_post(URL, json={"address": "me@example.org", **place})
    assert answer.status_code == 422
    assert {error["field"] for error in answer.json["errors"]} == {"password"}


@pytest.mark.parametrize("path", [URL, f"{URL}/x/poll", "/dashboard/delete-message"])
def test_a_large_body_is_refused_before_it_is_read(embedded: System, path: str) -> None:
    headers = {**JSON, "Content-Length": str(BODY_LIMIT + 1)}
    answer = embedded.api.simulate_post(path, headers=headers)
    assert answer.status_code == 413


def test_a_body_without_length_is_refused(embedded: System) -> None:
    answer = embedded.api.simulate_post(URL, headers={**JSON, "Transfer-Encoding": "chunked"})
    assert answer.status_code == 411


@pytest.mark.parametrize("method", ["TRACE", "PUT", "DELETE", "CONNECT"])
def test_a_method_that_a_route_does_not_have(embedded: System, method: str) -> None:
    answer = embedded.api.simulate_request(method, URL)
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/nowhere", "/%00", "/admin/message"])
def test_a_route_that_is_not_there(embedded: System, path: str) -> None:
    answer = embedded.api.simulate_get(path)
    assert answer.status_code == 404
    assert answer.json["status"] == 404
