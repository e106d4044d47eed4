"""Many accounts at once: sorted lists with figures, and imports of many."""

from typing import Any

import pytest

from mailpoll import database
from mailpoll.models import EmailAccount
from tests.integration.rows import account_row
from tests.integration.system import PASSWORD, System, message

URL = "/admin/email-accounts"


def add_many(system: System, address: str, amount: int = 5) -> list[str]:
    """Accounts whose addresses, polls and failures have different orders."""
    ids = [
        system.add_account(f"{'cAbDe'[number]}{address}", test=False) for number in range(amount)
    ]
    for number, uuid in enumerate(ids):
        account = account_row(uuid)
        with database.transaction():
            EmailAccount.update(
                next_poll_at=account.created_at.replace(year=2030 + number * 7 % 5),
                failures=number // 2,
            ).where(EmailAccount.uuid == uuid).execute()
    return ids


def pages(system: System, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = system.get(URL, limit=2, **query, **cursor)
        found += page["items"]
        if page["next"] is None:
            return found
        cursor = {"cursor": page["next"]}


@pytest.mark.parametrize("sort", ["added", "address", "next_poll", "failures"])
@pytest.mark.parametrize("descending", [False, True])
def test_a_list_is_sorted_page_by_page(
    system: System, address: str, sort: str, descending: bool
) -> None:
    ids = add_many(system, address)
    column = {"added": "created_at", "next_poll": "next_poll_at"}.get(sort, sort)
    found = pages(system, sort=sort, descending=descending)
    assert sorted(one["id"] for one in found) == sorted(ids)
    values = [one[column] for one in found]
    assert values == sorted(values, reverse=descending)


def test_long_addresses_have_pages_too(system: System) -> None:
    domain = ".".join(("d" * 60, "e" * 60, "f" * 60, "example.org"))
    ids = [system.add_account(f"{'a' * 60}{n}@{domain}", test=False) for n in range(5)]
    assert [one["id"] for one in pages(system, sort="address")] == ids


@pytest.mark.parametrize("sort", ["address", "next_poll", "failures"])
def test_the_cursor_of_another_list_is_refused(system: System, address: str, sort: str) -> None:
    add_many(system, address, 2)
    cursor = system.get(URL, limit=1)["next"]
    answer = system.api.simulate_get(URL, params={"sort": sort, "cursor": cursor})
    assert answer.status_code == 422


def test_figures_come_when_they_are_asked_for(system: System, address: str) -> None:
    for number in range(3):
        system.dovecot.deliver(address, message(f"number {number}"))
    account = system.add_account(address)
    system.poll_and_process(account)
    (without,) = system.get(URL)["items"]
    assert without["figures"] is None
    (listed,) = system.get(URL, figures=True)["items"]
    assert listed["figures"]["messages"] == 3
    assert listed["figures"]["failures"] == 0
    assert len(listed["figures"]["days"]) == 30
    assert sum(listed["figures"]["days"]) == 3  # Dovecot dates what it is given today


def test_a_login_is_tried_before_there_is_an_account(system: System, address: str) -> None:
    found = system.post(f"{URL}/test", 200, **system.new_account(address))
    assert found["ok"]
    assert "INBOX" in found["folders"]
    wrong = system.post(f"{URL}/test", 422, **system.new_account(address, password="wrong"))
    assert [error["field"] for error in wrong["errors"]] == ["password"]
    assert system.get(URL)["items"] == []


def test_an_import_tells_of_each_row(system: System, address: str) -> None:
    system.add_account(address)
    rows = [
        system.new_account(f"a{address}"),
        {"address": f"b{address}", "password": "x", "port": "many"},
        system.new_account(address),
        system.new_account(f"a{address}"),
        {"address": f"c{address}"},
        {"address": f"d{address}", "password": "x", "host": "127.0.0.1", "port": 25},
        {"address": "nobody", "password": "x"},
        system.new_account(f"e{address}", poll_interval=300, poll_interval_max=60),
    ]
    dry = system.post(f"{URL}/import", 200, accounts=rows)
    assert dry["dry_run"]
    outcomes = [(row["row"], row["outcome"]) for row in dry["items"]]
    assert outcomes == [(1, "fine"), *((number, "refused") for number in range(2, 9))]
    fields = [[error["field"] for error in row["errors"]] for row in dry["items"]]
    named = ["port", "address", "address", "password", "port", "address", "poll_interval_max"]
    assert fields == [[], *([name] for name in named)]
    assert PASSWORD not in repr(dry)
    assert len(system.get(URL)["items"]) == 1

    done = system.post(f"{URL}/import", 200, accounts=rows[:3], dry_run=False)
    assert (done["added"], done["refused"]) == (1, 2)
    account = done["items"][0]["account_id"]
    assert system.get(f"{URL}/{account}")["address"] == f"a{address}"
    assert len(system.get("/admin/audit", action="account.create")["items"]) == 2


@pytest.mark.parametrize(
    "body", [{}, {"accounts": []}, {"accounts": [1]}, {"accounts": [{}] * 501}]
)
def test_an_import_of_nothing_is_refused(embedded: System, body: dict[str, Any]) -> None:
    assert embedded.api.simulate_post(f"{URL}/import", json=body).status_code == 422


def test_settings_are_shown_without_secrets(system: System) -> None:
    shown = system.get("/admin/settings")
    values = {one["name"]: one["value"] for one in shown["items"]}
    assert values["MAILPOLL_API_TOKEN"] is None
    assert values["MAILPOLL_SECRET_KEY"] is None
    assert values["MAILPOLL_POLL_INTERVAL"] == "240"
    config = system.settings
    text = repr(shown)
    secrets = [*config.require_tokens(), *config.require_keys()]
    for url in (config.database_url, config.storage_url, config.redis_url):
        secrets += [part for part in [url.partition("@")[0].rpartition(":")[2]] if "@" in url]
    assert [secret for secret in secrets if secret and secret in text] == []
