"""Limits of providers hold over all workers, and outlive Redis."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mailpoll import accounts, budgets, database, queues
from mailpoll.actors import poll_account
from mailpoll.actors.poll import limits, poll
from mailpoll.budgets import BudgetSpent
from mailpoll.imap import providers
from mailpoll.middleware.rate_limit import Limit
from mailpoll.models import EmailAccount, EmailHost
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import account_row, change_accounts
from tests.integration.system import System, message, wait_until
from tests.servers.dovecot import Dovecot
from tests.servers.personas import LimitedImap
from tests.servers.scripted_imap import CLOSE, Rule, ScriptedImap

URL = "/admin/email-accounts"
DAY = 1_000_000


@pytest.fixture(params=list(SETS))
def system(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    yield from run_system(
        SETS[request.param](request, tmp_path),
        tmp_path,
        dovecot,
        MAILPOLL_IMAP_PORTS="1024-65535",
        MAILPOLL_IMAP_ALLOW_PLAIN="yes",
        MAILPOLL_IMAP_HOST_CONNECTIONS="3",
        MAILPOLL_IMAP_HOST_LOGINS="12",
        MAILPOLL_IMAP_DAY_BYTES=str(DAY),
        MAILPOLL_BATCH_BYTES=str(DAY // 10),
    )


def add(server: ScriptedImap | None, number: int = 0, **fields: Any) -> EmailAccount:
    return accounts.create(
        address=f"user{number}@example.org",
        password="secret",
        host=fields.pop("host", "127.0.0.1"),
        port=server.port if server else 20_000,
        security="plain",
        test=False,
        **fields,
    )


def stats(system: System, account: EmailAccount) -> dict[str, Any]:
    return system.get(f"{URL}/{account.uuid}/stats")


def delayed(system: System) -> int:
    return sum(size.delayed for size in queues.sizes(system.broker))


def limits_of(account: EmailAccount) -> Sequence[Limit]:
    return limits.terms(account.id)[1]


def polled() -> int:
    with database.connected():
        return EmailAccount.select().where(EmailAccount.last_success_at.is_null(False)).count()


# --- connections and logins


def test_eight_workers_cross_no_limit_of_a_host(system: System) -> None:
    with LimitedImap(messages={1: message("one")}, connections=3, logins=12) as server:
        # Given 20 mailboxes at one host, all due, and eight workers
        for number in range(20):
            poll_account.send(add(server, number).id)
        with system.workers(threads=8):
            wait_until(lambda: polled() == 12 and delayed(system) == 8)
    # Then as many as may are connected at once, and no more
    assert server.crossed == []
    assert server.most >= 3
    assert server.seen_logins == polled() == 12


def test_what_is_known_of_a_provider_lowers_the_limits_and_its_hosts_share_them(
    system: System,
) -> None:
    gmail = add(None, 1, host="imap.gmail.com")
    other = add(None, 2, host="imap.googlemail.com")
    qq = add(None, 3, host="imap.qq.com")
    assert {limit.key for limit in limits_of(gmail)} == {f"account:{gmail.id}", "gmail"}
    assert limits_of(gmail)[1:] == limits_of(other)[1:]
    assert [limit.size for limit in limits_of(qq)] == [3, 3, 12]
    assert budgets.day_bytes("imap.gmail.com") == DAY
    assert limits.terms(10**9) == (0.0, ())


def test_a_provider_that_allows_one_connection_gets_one(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = providers.Preset("one", "One", "127.0.0.1", (), "none", "-", connections=1)
    monkeypatch.setitem(providers.BY_HOST, "127.0.0.1", preset)
    assert [limit.size for limit in limits_of(add(None))] == [1, 3, 12]


# --- come back later


def test_a_pause_that_a_server_asked_for_outlives_redis_and_impatience(system: System) -> None:
    line = b"{tag} NO Request is throttled. Suggested Backoff Time: 299910 milliseconds\r\n"
    with ScriptedImap(rules=[Rule("LIST", line, times=1)]) as server:
        account = add(server)
        poll(account.id, None)
        asked = len(server.commands)
        not_before = account_row(account.uuid).next_poll_at
        # When Redis forgets everything and somebody wants a poll now
        system.broker.client.flushdb()
        system.post(f"{URL}/{account.uuid}/poll", 202)
        with system.workers():
            wait_until(lambda: delayed(system) == 1)
        # Then nobody connected, and it can be seen until when
        assert len(server.commands) == asked
        budget = stats(system, account)["budget"]
        assert budget["not_before"] == not_before.isoformat().replace("+00:00", "Z")
        # And an operator who resumes the account overrules it
        system.post(f"{URL}/{account.uuid}/resume")
        assert stats(system, account)["budget"]["not_before"] is None
        poll(account.id, None)
    assert account_row(account.uuid).last_error is None


def test_a_host_that_refuses_whoever_calls_is_left_alone_by_all(system: System) -> None:
    with ScriptedImap(
        greeting=b"* BYE Too many connections from your address\r\n", rules=[Rule(".*", CLOSE)]
    ) as server:
        first, second = add(server, 1), add(server, 2)
        poll(first.id, None)
        poll_account.send(second.id)
        system.broker.client.flushdb()
        poll_account.send(second.id)
        with system.workers():
            wait_until(lambda: delayed(system) == 1)
    assert account_row(second.uuid).last_poll_at is None
    _, wait = budgets.wait(account_row(second.uuid).id) or ("", 0)
    assert 100 < wait <= 120
    assert stats(system, second)["budget"]["not_before"] is not None
    with database.connected():
        (host,) = EmailHost.select()
    assert "Too many connections" in host.reason
    # And the rows of hosts whose pause is over go
    with database.transaction():
        EmailHost.update(not_before=database.now()).execute()
    budgets.leave_alone("other.example.org", 60, "busy")
    with database.connected():
        assert [row.host for row in EmailHost.select()] == ["other.example.org"]


# --- bytes a day


def test_eight_workers_together_stay_within_the_days_bytes(system: System) -> None:
    account = add(None)
    refused = []

    def fetch() -> None:
        for _ in range(30):
            try:
                budgets.spend(account, 7_000, importing=False)
            except BudgetSpent:
                refused.append(1)

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = 240 - len(refused)
    assert taken == DAY // 7_000
    # And a Redis that forgot everything changes nothing
    system.broker.client.flushdb()
    budget = stats(system, account)["budget"]
    assert budget["bytes_today"] == taken * 7_000
    assert budget["bytes_limit"] == DAY


def test_the_import_leaves_some_of_the_day_to_new_mail(system: System) -> None:
    account = add(None)
    budgets.spend(account, 700_000, importing=True)
    with pytest.raises(BudgetSpent):
        budgets.spend(account, 200_000, importing=True)
    budgets.spend(account, 200_000, importing=False)
    assert budgets.of(account).bytes_today == 900_000


def test_a_new_day_starts_anew(system: System) -> None:
    account = add(None)
    budgets.spend(account, DAY, importing=False)
    change_accounts(traffic_day="2020-01-01")
    assert budgets.of(account).bytes_today == 0
    budgets.spend(account, 5, importing=False)
    budget = budgets.of(account)
    assert budget.bytes_today == 5
    assert budget.resets_at - database.now() <= timedelta(days=1)
    assert (budget.resets_at.hour, budget.resets_at.minute) == (0, 0)


def test_a_message_larger_than_the_limit_is_no_dead_end(system: System) -> None:
    account = add(None)
    budgets.spend(account, 5 * DAY, importing=True)
    with pytest.raises(BudgetSpent):
        budgets.spend(account, 1, importing=False)


def test_a_refused_amount_is_not_taken_and_a_rolled_back_one_neither(system: System) -> None:
    account = add(None)
    budgets.spend(account, 900_000, importing=False)
    with pytest.raises(BudgetSpent):
        budgets.spend(account, 200_000, importing=False)
    with pytest.raises(ZeroDivisionError), database.transaction():
        budgets.spend(account, 50_000, importing=False)
        raise ZeroDivisionError
    assert budgets.of(account).bytes_today == 900_000


def large(number: int) -> bytes:
    return message(f"number {number}", "x" * 76 + "\r\n") + b"y" * 99_000


def test_new_mail_that_the_day_has_no_room_for_comes_the_next_day(system: System) -> None:
    with ScriptedImap(messages={1: message("small")}) as server:
        account = add(server)
        poll(account.id, None)
        # Given a day of which nearly all is spent
        budgets.spend(account, DAY - 5_000, importing=False)
        server.messages[2] = large(2)
        poll(account.id, None)
        # Then the poll ends in words and without a failure, until the day is over
        shown = stats(system, account)
        assert shown["last_error_kind"] == "budget_spent"
        assert "was fetched: 1,000,000 bytes" in shown["last_error"]
        row = account_row(account.uuid)
        assert row.failures == 0
        assert row.next_poll_at > budgets.next_day(row.last_error_at)
        assert shown["messages"] == 1
        # When it is another day
        change_accounts(traffic_day="2026-01-01", not_before=None)
        poll(account.id, None)
        assert stats(system, account)["messages"] == 2


def test_an_import_pauses_for_the_day_while_new_mail_goes_on(system: System) -> None:
    # Given a mailbox of 2 MB, of which 800 kB may be imported in a day
    with ScriptedImap(messages={uid: large(uid) for uid in range(1, 21)}) as server:
        account = add(server)
        for _ in range(3):
            poll(account.id, None)
        first = stats(system, account)
        assert 6 <= first["messages"] <= 8
        assert first["last_error"] is None
        assert first["import"]["done"] is False
        assert first["import"]["left"] == 20 - first["messages"]
        # When a message arrives, it is stored at once
        server.messages[21] = message("new")
        poll(account.id, None)
        assert stats(system, account)["messages"] == first["messages"] + 1
        # And the import goes on the next day
        for _ in range(3):
            change_accounts(traffic_day="2026-01-01", not_before=None)
            poll(account.id, None)
        assert stats(system, account)["messages"] == 21
        assert stats(system, account)["import"]["done"] is True


@pytest.mark.parametrize("capabilities", [b"IMAP4rev1", b"IMAP4rev1 STATUS=SIZE"])
def test_an_import_is_estimated_before_it_starts(system: System, capabilities: bytes) -> None:
    mail = {uid: large(uid) for uid in range(1, 21)}
    with ScriptedImap(messages=mail, capabilities=capabilities) as server:
        account = add(server)
        estimate = system.post(f"{URL}/{account.uuid}/test")["estimate"]
        total = sum(map(len, mail.values()))
    assert estimate["messages"] == 20
    assert abs(estimate["bytes"] - total) < 20
    assert estimate["exact"] is (b"SIZE" in capabilities)
    assert estimate["days"] == 3  # 2 MB at 800 kB a day


def test_the_command_line_shows_the_budget(system: System) -> None:
    account = add(None)
    budgets.spend(account, 400_000, importing=False)
    result = subprocess.run(
        [sys.executable, "-m", "mailpoll", "stats", account.address],
        env=os.environ | {"MAILPOLL_IMAP_PORTS": "993"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "fetched today (UTC): 400.0 kB of 1.0 MB" in result.stdout.decode()
