"""``GET /admin/email-accounts`` and ``GET /admin/email-accounts/{id}``."""

from uuid import uuid4

import pytest

from mailpoll.web import paging
from tests.integration.system import PASSWORD, System

URL = "/admin/email-accounts"
MISSING = "00000000-0000-4000-8000-000000000000"


def add(system: System, count: int) -> list[str]:
    return [system.add_account(f"{uuid4().hex}@list.example", test=False) for _ in range(count)]


def test_pages_follow_each_other(system: System) -> None:
    ids = add(system, 5)
    first = system.get(URL, limit=2)
    # An account that comes in between changes nothing of what is still to come
    ids += add(system, 1)
    second = system.get(URL, limit=2, cursor=first["next"])
    third = system.get(URL, limit=2, cursor=second["next"])
    assert [item["id"] for page in (first, second, third) for item in page["items"]] == ids
    assert third["next"] is None


def test_an_empty_list(system: System) -> None:
    assert system.get(URL) == {"items": [], "next": None}


def test_the_state_filters(system: System) -> None:
    active, paused = add(system, 2)
    system.post(f"{URL}/{paused}/pause")
    assert [item["id"] for item in system.get(URL, state="active")["items"]] == [active]
    assert [item["id"] for item in system.get(URL, state="paused")["items"]] == [paused]
    assert system.get(URL, state="auth_failed")["items"] == []


def test_a_part_of_the_address_filters_and_is_no_pattern(system: System) -> None:
    wanted = system.add_account("a_b%c@example.org", test=False)
    system.add_account("axbyc@example.org", test=False)
    assert [item["id"] for item in system.get(URL, address="a_b%c")["items"]] == [wanted]
    assert system.get(URL, address="' OR 1=1 --")["items"] == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=1000000000000",
        "limit=abc",
        "limit=1&limit=2",
        "state=deleting",
        "state=%27",
        "address=%00",
        "sort=colour",
        "cursor=!!!",
        "cursor=%C3%A9",
        "cursor=bnVsbA",
        "cursor=" + "A" * 201,
        f"cursor={paging.encode(2**63)}",
        f"cursor={paging.encode(-1)}",
    ],
)
def test_a_wrong_query_is_named(system: System, query: str) -> None:
    answer = system.api.simulate_get(URL, query_string=query)
    assert answer.status_code == 422, answer.text
    assert answer.json["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.parametrize(
    "account_id", ["1", "x", MISSING, "%00", "%27", "..", "a" * 5_000, "%F0%9F%98%80"]
)
@pytest.mark.parametrize("part", ["", "/stats", "/messages"])
def test_an_account_that_is_not_there(system: System, account_id: str, part: str) -> None:
    answer = system.api.simulate_get(f"{URL}/{account_id}{part}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_no_answer_has_a_password(embedded: System, address: str) -> None:
    account = embedded.add_account(address)
    for path in (URL, f"{URL}/{account}", f"{URL}/{account}/stats"):
        text = embedded.api.simulate_get(path).text
        assert PASSWORD not in text
        assert '"password":' not in text
        assert "credential" not in text
