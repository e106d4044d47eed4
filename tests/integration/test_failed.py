"""Messages of all mailboxes, and those that failed: why, and all of a reason again."""

from datetime import timedelta

import pytest

from mailpoll import actors, database
from mailpoll.models import AccountState, EmailHour, MessageStatus
from tests.integration.rows import change_accounts, change_messages
from tests.integration.system import System, message

MESSAGES, FAILED = "/admin/messages", "/admin/failed"


def filled(system: System, address: str, amount: int = 5) -> str:
    for number in range(amount):
        system.dovecot.deliver(address, message(f"number {number}"))
    account = system.add_account(address)
    system.poll_and_process(account)
    return account


def test_messages_of_all_mailboxes_come_in_pages(system: System, address: str) -> None:
    accounts = {filled(system, address, 3), filled(system, f"b{address}", 3)}
    found, cursor = [], {}
    while True:
        page = system.get(MESSAGES, limit=4, **cursor)
        found += page["items"]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    ids = [item["id"] for item in found]
    assert ids == sorted(ids, reverse=True)
    assert len(ids) == 6
    assert {item["account_id"] for item in found} == accounts


def test_messages_are_found_by_status_and_reason(system: System, address: str) -> None:
    filled(system, address, 3)
    assert system.get(MESSAGES, status="failed")["items"] == []
    assert len(system.get(MESSAGES, status="processed")["items"]) == 3
    change_messages(status=MessageStatus.FAILED, error="it is broken")
    assert len(system.get(MESSAGES, status="failed")["items"]) == 3
    assert len(system.get(MESSAGES, error="it is broken")["items"]) == 3
    assert system.get(MESSAGES, error="it")["items"] == []
    change_messages(status=MessageStatus.PROCESSED, error=None)


def test_reasons_are_grouped_and_all_of_one_are_tried_again(system: System, address: str) -> None:
    filled(system, address, 3)
    filled(system, f"b{address}", 2)
    change_messages(status=MessageStatus.FAILED, error="it is broken")
    (group,) = system.get(FAILED)["items"]
    assert (group["error"], group["messages"], group["accounts"]) == ("it is broken", 5, 2)
    assert system.post(f"{FAILED}/retry", 202, error="other")["enqueued"] == 0
    assert system.post(f"{FAILED}/retry", 202, error="it is broken") == {
        "enqueued": 5,
        "more": False,
    }
    assert system.get(FAILED)["items"] == []
    assert len(system.get("/admin/audit", action="message.retry")["items"]) == 5
    system.work_until(lambda: system.get("/admin/stats")["by_status"]["processed"] == 5)


def test_messages_of_an_account_that_is_being_deleted_are_not_listed(
    system: System, address: str
) -> None:
    filled(system, address, 2)
    change_messages(status=MessageStatus.FAILED, error="it is broken")
    change_accounts(state=AccountState.DELETING)
    assert system.get(MESSAGES)["items"] == []
    assert system.get(FAILED)["items"] == []
    assert system.post(f"{FAILED}/retry", 202, error="it is broken")["enqueued"] == 0
    change_messages(status=MessageStatus.PROCESSED, error=None)


@pytest.mark.parametrize(
    "query", ["cursor=x", "limit=0", "status=lost", "error=a%00", "colour=red"]
)
def test_a_wrong_question_is_refused(embedded: System, query: str) -> None:
    assert embedded.api.simulate_get(MESSAGES, query_string=query).status_code == 422


def test_an_hour_counts_what_was_stored_in_it(system: System, address: str) -> None:
    filled(system, address, 3)
    hours = system.get("/admin/stats/hours", hours=48)["items"]
    assert len(hours) == 48
    assert [one["hour"] for one in hours] == sorted(one["hour"] for one in hours)
    # The test may stand on the boundary of two hours
    assert sum(one["messages"] for one in hours[-2:]) == 3
    assert sum(one["messages"] for one in hours[:-2]) == 0
    assert sum(one["imported"] for one in hours) == 3


def test_old_hours_are_forgotten(system: System, address: str) -> None:
    filled(system, address, 2)
    old = database.now() - timedelta(days=9)
    with database.transaction():
        EmailHour.create(hour=old, shard=0, messages=5, imported=0)
    actors.prune_audit.fn()
    with database.connected():
        assert EmailHour.select().where(EmailHour.hour == old).count() == 0
    assert sum(one["messages"] for one in system.get("/admin/stats/hours")["items"]) == 2


def test_the_newest_events_come_first_when_asked_for(system: System, address: str) -> None:
    account = filled(system, address, 3)
    every = system.get("/admin/events", account=account)["items"]
    newest = system.get("/admin/events", account=account, newest=True, limit=2)
    assert newest["items"] == every[::-1][:2]
    assert newest["last"] == every[-1]["id"]
    assert system.api.simulate_get("/admin/events?newest=true&wait=1").status_code == 422
