"""``POST /admin/email-accounts/{id}/poll``, ``/pause``, ``/resume`` and ``/test``."""

from uuid import uuid4

import pytest

from mailpoll import database, faults, turns
from mailpoll.actors.poll import poll
from mailpoll.models import AccountState
from tests.integration.queue_entries import polls
from tests.integration.rows import account_row, change_accounts
from tests.integration.system import System, message, wait_until

URL = "/admin/email-accounts"


def test_a_poll_brings_in_new_mail_at_once(system: System, address: str) -> None:
    account = system.add_account(address, poll_interval=86_400)
    system.poll_and_process(account)
    system.dovecot.deliver(address, message("new"))
    system.poll_and_process(account)
    assert [item["subject"] for item in system.messages(account)] == ["new"]


def test_the_longest_interval_is_not_below_the_interval(system: System, address: str) -> None:
    wrong = {"poll_interval": 300, "poll_interval_max": 299}
    problems = [
        system.post(URL, 422, **system.new_account(address, test=False, **wrong)),
        # The usual interval is longer
        system.post(URL, 422, **system.new_account(address, test=False, poll_interval_max=59)),
    ]
    account = system.add_account(address, poll_interval=300, poll_interval_max=300)
    for change in ({"poll_interval_max": 299}, {"poll_interval": 301}):
        answer = system.api.simulate_patch(f"{URL}/{account}", json=change)
        assert answer.status_code == 422
        problems.append(answer.json)
    for problem in problems:
        assert [error["field"] for error in problem["errors"]] == ["poll_interval_max"]
    answer = system.api.simulate_patch(f"{URL}/{account}", json={"poll_interval_max": None})
    assert answer.status_code == 200


def test_an_account_follows_its_rhythm_between_its_limits(system: System, address: str) -> None:
    account = system.add_account(address, poll_interval=60, poll_interval_max=70)
    intervals = []
    for count in (0, 0, 0, 200):
        # Its import, then two polls without mail that make it seldom, then much mail
        system.dovecot.deliver_many(address, [message(f"{count}/{n}") for n in range(count)])
        system.poll_and_process(account)
        row = account_row(account)
        ahead = (row.next_poll_at - row.last_poll_at).total_seconds()
        intervals.append((row.adapted_interval, ahead))
    assert [adapted for adapted, _ in intervals[2:]] == [70, 60]
    # Give or take what brings the account to its place
    assert [ahead for _, ahead in intervals[2:]] == [pytest.approx(70, 0.1), pytest.approx(60, 0.1)]


def test_a_poll_that_is_asked_for_during_a_poll_comes_behind_it_whatever_the_rhythm_says(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an account whose busy mailbox brings its next poll forward
    account = system.add_account(address, poll_interval=60, poll_interval_max=3_600)
    for _ in range(3):
        system.poll_and_process(account)
    system.dovecot.deliver_many(address, [message(f"number {n}") for n in range(200)])
    asked: list[str] = []

    def asks(point: str) -> None:
        if point == "committed" and not asked:
            asked.append(point)
            # Mail of which the poll has not heard
            system.dovecot.deliver(address, message("meanwhile"))
            with turns.waiting():
                system.post(f"{URL}/{account}/poll", 202)

    monkeypatch.setattr(faults, "point", asks)
    before = len(polls(system))
    poll(account_row(account).id, None)
    row = account_row(account)
    assert asked and row.adapted_interval < 3_600
    assert row.next_poll_at <= database.now()
    assert len(polls(system)) == before + 2  # the one that was asked for, and one behind


@pytest.mark.parametrize("state", [AccountState.PAUSED, AccountState.AUTH_FAILED])
def test_only_active_accounts_are_polled(system: System, address: str, state: str) -> None:
    account = system.add_account(address)
    change_accounts(state=state)
    problem = system.post(f"{URL}/{account}/poll", 409)
    assert "resume" in problem["detail"]


def test_a_paused_account_gets_no_mail(system: System, address: str) -> None:
    account = system.add_account(address)
    system.dovecot.deliver(address, message("unseen"))
    shown = system.post(f"{URL}/{account}/pause")
    assert shown["state"] == "paused"
    assert shown["next_poll_at"] is None
    # When the poll that was queued before runs
    system.work_until(lambda: not any(q["waiting"] for q in system.get("/admin/tasks")["queues"]))
    # Then it does nothing
    assert system.messages(account) == []
    assert system.get(f"{URL}/{account}")["last_poll_at"] is None


def test_a_resumed_account_gets_its_mail(system: System, address: str) -> None:
    account = system.add_account(address)
    system.dovecot.deliver(address, message("later"))
    system.post(f"{URL}/{account}/pause")
    assert system.post(f"{URL}/{account}/resume")["state"] == "active"
    system.work_until(lambda: [m["subject"] for m in system.messages(account)] == ["later"])


def test_pause_and_resume_can_be_asked_for_twice(system: System, address: str) -> None:
    account = system.add_account(address)
    for verb, state in (("pause", "paused"), ("resume", "active")):
        for _ in range(2):
            assert system.post(f"{URL}/{account}/{verb}")["state"] == state


def test_refused_logins_end_in_auth_failed_and_resume_tries_again(
    embedded: System, address: str
) -> None:
    account = embedded.add_account(address, password="wrong", test=False, poll_interval=5)
    shown = f"{URL}/{account}"
    with embedded.workers():
        for failures in (1, 2, 3):
            embedded.api.simulate_post(f"{shown}/poll")
            wait_until(lambda least=failures: embedded.get(shown)["failures"] >= least)
    state = embedded.get(shown)
    assert state["state"] == "auth_failed"
    assert state["last_error_kind"] == "auth_failed"
    assert state["next_poll_at"] is None
    resumed = embedded.post(f"{shown}/resume")
    assert (resumed["state"], resumed["failures"]) == ("active", 0)


def test_a_test_lists_the_folders(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("x"), folder="Entwürfe & Ideen/2026")
    account = system.add_account(address)
    answer = system.post(f"{URL}/{account}/test")
    assert answer["ok"] is True
    assert {"INBOX", "Entwürfe & Ideen/2026"} <= set(answer["folders"])


def test_a_test_names_what_is_wrong(system: System, address: str) -> None:
    account = system.add_account(address, password="wrong", test=False)
    problem = system.post(f"{URL}/{account}/test", 422)
    assert problem["errors"][0]["field"] == "password"


@pytest.mark.parametrize("verb", ["poll", "pause", "resume", "test"])
def test_an_account_that_is_not_there(system: System, verb: str) -> None:
    system.post(f"{URL}/{uuid4()}/{verb}", 404)
