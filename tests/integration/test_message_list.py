"""``GET /admin/email-accounts/{id}/messages``."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mailpoll import database
from mailpoll.models import EmailFolder, EmailRawMessage
from mailpoll.web import paging
from tests.integration.rows import change_messages
from tests.integration.system import System, message

URL = "/admin/email-accounts"
#: INTERNALDATE of the first message, in seconds since 1970; each next one is a day later.
START = 1_700_000_000
DAY = 86_400


def deliver(system: System, address: str, numbers: range, folder: str = "INBOX") -> None:
    for n in numbers:
        raw = message(f"number {n}")
        system.dovecot.deliver(address, raw, folder, received_at=START + n * DAY)


@pytest.fixture
def account(system: System, address: str) -> str:
    """A mailbox with five messages a day apart, two of them in another folder."""
    deliver(system, address, range(3))
    deliver(system, address, range(3, 5), "Ordner/ä & b")
    account = system.add_account(address)
    system.poll_and_process(account)
    return account


def subjects(items: list[dict[str, Any]]) -> list[str]:
    return [item["subject"].removeprefix("number ") for item in items]


def pages(system: System, account: str, **query: Any) -> Iterator[list[dict[str, Any]]]:
    cursor: dict[str, str] = {}
    while True:
        page = system.get(f"{URL}/{account}/messages", **query, **cursor)
        yield page["items"]
        if page["next"] is None:
            return
        cursor = {"cursor": page["next"]}


def test_the_newest_comes_first(system: System, account: str) -> None:
    assert subjects(system.messages(account)) == ["4", "3", "2", "1", "0"]


@pytest.mark.parametrize("limit", [1, 2, 5, 200])
def test_pages_have_every_message_once(system: System, account: str, limit: int) -> None:
    found = list(pages(system, account, limit=limit))
    assert all(len(items) <= limit for items in found)
    assert subjects([item for items in found for item in items]) == ["4", "3", "2", "1", "0"]


def test_pages_stay_stable_while_mail_comes_in(system: System, account: str, address: str) -> None:
    # Given a client in the middle of the list
    reading = pages(system, account, limit=2)
    seen = [*next(reading)]
    # When newer mail arrives, and mail with a time in between
    deliver(system, address, range(9, 11))
    system.dovecot.deliver(address, message("number 3"), received_at=START + 3 * DAY + 5)
    system.poll_and_process(account)
    # Then the rest follows without gap or repetition
    seen += [item for items in reading for item in items]
    assert subjects(seen) == ["4", "3", "2", "1", "0"]


def test_messages_of_the_same_moment_are_told_apart(system: System, address: str) -> None:
    raws = [message(f"number {n}") for n in range(7)]
    system.dovecot.deliver_many(address, raws, received_at=START)
    account = system.add_account(address)
    system.poll_and_process(account)
    found = [item["id"] for items in pages(system, account, limit=2) for item in items]
    assert len(set(found)) == len(found) == 7


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"folder": "Ordner/ä & b"}, ["4", "3"]),
        ({"folder": "INBOX"}, ["2", "1", "0"]),
        ({"folder": "inbox' OR ''='"}, []),
        ({"since": "2023-11-16T22:13:20Z"}, ["4", "3", "2"]),
        ({"since": "2023-11-16T23:13:20+01:00"}, ["4", "3", "2"]),
        ({"since": "2023-11-16T22:13:20"}, ["4", "3", "2"]),
        ({"before": "2023-11-16T22:13:20Z"}, ["1", "0"]),
        ({"since": "2023-11-15T00:00:00Z", "before": "2023-11-17T00:00:00Z"}, ["2", "1"]),
        ({"since": "2023-11-15"}, ["4", "3", "2", "1"]),
        ({"status": "processed"}, ["4", "3", "2", "1", "0"]),
        ({"status": "failed"}, []),
        ({"status": "stored"}, []),
        ({"sha256": "0" * 64}, []),
        ({"message_id": "nobody@example.org"}, []),
    ],
)
def test_filters(system: System, account: str, query: dict[str, str], expected: list[str]) -> None:
    found = [item for items in pages(system, account, limit=2, **query) for item in items]
    assert subjects(found) == expected


def change_messages_among(ids: list[int], **columns: Any) -> None:
    table = EmailRawMessage
    with database.transaction():
        table.update(**columns).where(table.id.in_(ids)).execute()


@pytest.mark.leaves_damage
def test_every_filter_pages_through_what_the_whole_list_has(system: System, address: str) -> None:
    # Given mail in three folders: some in two of them, some twice in one, some of one moment
    raws = [message(f"number {n}") for n in range(24)]
    for n, raw in enumerate(raws):
        for folder in (
            ("INBOX", "Archive", "Archive", "Sent")[n % 4],
            "INBOX" if n % 3 else "Sent",
        ):
            system.dovecot.deliver(address, raw, folder, received_at=START + n // 2 * DAY)
    account = system.add_account(address)
    system.poll_and_process(account)
    # And some that failed or wait
    every = system.messages(account)
    for status, step in (("failed", 5), ("stored", 7)):
        change_messages_among([item["id"] for item in every[::step]], status=status)
    every = system.messages(account)
    assert len(every) == 24
    lying = {
        item["id"]: {
            place["folder"] for place in system.get(f"/admin/messages/{item['id']}")["locations"]
        }
        for item in every
    }
    # Then each page of each combination of filters has what it must, in order and once
    middle = every[12]["internal_date"]
    choices = itertools.product(
        (None, "INBOX", "Archive", "Sent", "Trash"),
        (None, "processed", "failed", "stored"),
        ({}, {"since": middle}, {"before": middle}),
    )
    for folder, status, times in choices:
        wanted = [
            item["id"]
            for item in every
            if (folder is None or folder in lying[item["id"]])
            and status in (None, item["status"])
            and times.get("since", "") <= item["internal_date"] < times.get("before", "9")
        ]
        query = {"folder": folder, "status": status, **times}
        given = {name: value for name, value in query.items() if value}
        for limit in (1, 5, 200):
            found = [
                item["id"]
                for items in pages(system, account, limit=limit, **given)
                for item in items
            ]
            assert found == wanted, (given, limit)


def test_two_folders_of_one_name_are_listed_together(system: System, account: str) -> None:
    # Given a folder that reads like another, though its server spells it differently
    with database.transaction():
        EmailFolder.update(name="INBOX").where(EmailFolder.name == "Ordner/ä & b").execute()
    found = [item for items in pages(system, account, limit=2, folder="INBOX") for item in items]
    assert subjects(found) == ["4", "3", "2", "1", "0"]


#: Where the search for a page begins: in the order of the list, or with few rows.
PLANS = {
    "": "email_raw_messages_newest (account_id=?)",
    "cursor={cursor}": "email_raw_messages_newest (account_id=? AND internal_date<?)",
    "since=2020-01-01": "email_raw_messages_newest (account_id=? AND internal_date>?)",
    "before=2020-01-01": "email_raw_messages_newest (account_id=? AND internal_date<?)",
    "status=processed": "email_raw_messages_newest (account_id=?)",
    "status=failed": "email_raw_messages_unfinished (account_id=? AND status=?)",
    "status=stored": "email_raw_messages_unfinished (account_id=? AND status=?)",
    "status=failed&folder=INBOX": "email_raw_messages_unfinished (account_id=? AND status=?)",
    "folder=INBOX": "email_locations_newest (folder_id=?)",
    "folder=INBOX&cursor={cursor}": (
        "email_locations_newest (folder_id=? AND (message_date,message_id)<(?,?))"
    ),
    "folder=INBOX&status=processed": "email_locations_newest (folder_id=?)",
    "unseen=true": "email_flags_account (account_id=? AND flag=?)",
    "flag=x&status=processed": "email_flags_account (account_id=? AND flag=?)",
    "unseen=false&folder=INBOX": "email_flags_folder (folder_id=? AND flag=?)",
    "unseen=true&cursor={cursor}": (
        "email_flags_account (account_id=? AND flag=? AND (message_date,message_id)<(?,?))"
    ),
    "message_id=x": "email_raw_messages_message_id (message_id=?)",
    "message_id=x&folder=INBOX": "email_raw_messages_message_id (message_id=?)",
    "sha256=" + "0" * 64: "(account_id=? AND sha256=?)",
}


@pytest.mark.parametrize("query", list(PLANS))
def test_a_page_costs_the_same_whatever_is_stored(
    embedded: System, address: str, query: str
) -> None:
    deliver(embedded, address, range(3))
    account = embedded.add_account(address, sync_flags=True)
    embedded.poll_and_process(account)
    cursor = embedded.get(f"{URL}/{account}/messages", limit=1)["next"]
    with watched() as statements:
        answer = embedded.api.simulate_get(
            f"{URL}/{account}/messages", query_string=query.format(cursor=cursor)
        )
        assert answer.status_code == 200
    plans = [plan for statement in statements for plan in planned(statement)]
    assert any(PLANS[query] in plan for plan in plans), plans
    assert not [plan for plan in plans if plan.startswith("SCAN")]


@contextmanager
def watched() -> Iterator[list[str]]:
    """The SELECTs of the block, with their parameters."""
    statements: list[str] = []
    with database.connected():
        connection = database.proxy.connection()
        connection.set_trace_callback(statements.append)
        try:
            yield statements
        finally:
            connection.set_trace_callback(None)
            statements[:] = [text for text in statements if text.startswith("SELECT")]


def planned(statement: str) -> list[str]:
    with database.connected():
        rows = database.proxy.execute_sql(f"EXPLAIN QUERY PLAN {statement}").fetchall()
    return [detail for *_, detail in rows]


def test_the_hash_and_the_message_id_find_their_message(system: System, account: str) -> None:
    wanted = system.messages(account)[2]
    whole = system.get(f"/admin/messages/{wanted['id']}")
    for query in ({"sha256": wanted["sha256"]}, {"message_id": whole["message_id"]}):
        found = system.get(f"{URL}/{account}/messages", **query)["items"]
        assert [item["id"] for item in found] == [wanted["id"]]


@pytest.mark.leaves_damage
def test_failed_messages_can_be_listed(system: System, account: str) -> None:
    change_messages(status="failed", error="because")
    found = system.get(f"{URL}/{account}/messages", status="failed")["items"]
    assert {item["error"] for item in found} == {"because"}
    assert len(found) == 5


def test_mail_of_other_accounts_is_not_listed(system: System, account: str, address: str) -> None:
    other = system.add_account(f"other-{address}")
    assert system.messages(other) == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=1000000000000",
        "status=gone",
        "since=never",
        "since=1700000000",
        "since=0001-01-01T00:00:00%2B14:00",
        "before=9999-12-31T23:59:59-14:00",
        "before=99999-01-01",
        "sha256=xyz",
        "sha256=" + "A" * 64,
        "folder=%00",
        "message_id=%00",
        "flag=%00",
        "flag=",
        "unseen=perhaps",
        "unseen=true",
        "order=subject",
        "cursor=x",
        "cursor=W10",
        f"cursor={paging.encode(5)}",
        f"cursor={paging.encode(5, 5)}",
        "cursor=WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwxXQ",
        "cursor=WyJ0b2RheSIsMV0",
    ],
)
def test_a_wrong_query_is_named(embedded: System, address: str, query: str) -> None:
    account = embedded.add_account(address)
    answer = embedded.api.simulate_get(f"{URL}/{account}/messages", query_string=query)
    assert answer.status_code == 422, answer.text
    assert answer.json["errors"][0]["field"] == query.partition("=")[0]
