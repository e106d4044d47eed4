"""Push: the server tells of news, and the mail is there a moment later."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import redis
from imapclient import IMAPClient

from mailpoll import accounts, budgets, database, logins, watcher
from mailpoll.actors.poll import poll
from mailpoll.actors.schedule import schedule_polls
from mailpoll.models import EmailAccount
from mailpoll.settings import settings
from mailpoll.watcher import Watcher
from tests.integration.queue_entries import entries, idle
from tests.integration.rows import account_row
from tests.integration.scripted import add, polled
from tests.integration.system import System, message, wait_until
from tests.servers.scripted_imap import CLOSE, Mailbox, Rule, ScriptedImap, pause


@contextmanager
def watching(**changed: Any) -> Iterator[Watcher]:
    """A watcher in a thread of this process, with some settings changed."""
    one = Watcher()
    one._settings = one._settings.model_copy(update=changed)
    thread = threading.Thread(target=one.run)
    thread.start()
    try:
        yield one
    finally:
        one.stop()
        thread.join(20)
        assert not thread.is_alive()


def imported(system: System, address: str, **fields: Any) -> str:
    """An account that asks for push, with its import done."""
    system.dovecot.deliver(address, message("old"))
    account = system.add_account(address, push=True, **fields)
    system.poll_and_process(account)
    return account


def subjects(system: System, account: str) -> set[str]:
    return {item["subject"] for item in system.messages(account)}


def watched(system: System, *ids: str) -> Callable[[], bool]:
    return lambda: all(system.get(f"/admin/email-accounts/{one}")["watched"] for one in ids)


@pytest.mark.queue
def test_new_mail_comes_without_waiting_for_a_poll(system: System, address: str) -> None:
    account = imported(system, address)
    with watching(), system.workers():
        wait_until(watched(system, account))
        for number in range(3):
            system.dovecot.deliver(address, message(f"pushed {number}"))
            wait_until(lambda: f"pushed {number}" in subjects(system, account))  # noqa: B023


def test_news_of_any_folder_come_where_the_server_has_notify(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("filed"), folder="Lists")
    account = imported(system, address)
    with watching(), system.workers():
        wait_until(watched(system, account))
        # As a mail program files it: Dovecot's list index does not hear of files that just appear.
        with IMAPClient("127.0.0.1", system.dovecot.imap_port, ssl=False) as client:
            client.login(address, system.dovecot.password)
            client.append("Lists", message("pushed"))
        wait_until(lambda: "pushed" in subjects(system, account))


def test_mail_that_came_before_the_watch_began_is_fetched_when_it_begins(
    system: System, address: str
) -> None:
    account = imported(system, address)
    system.dovecot.deliver(address, message("meanwhile"))
    with watching(), system.workers():
        wait_until(lambda: "meanwhile" in subjects(system, account))


def test_a_mailbox_without_news_is_not_polled_when_its_watch_begins(
    system: System, address: str
) -> None:
    account = imported(system, address)
    before = account_row(account).lease_token
    with watching(), system.workers():
        wait_until(watched(system, account))
        time.sleep(1)
        assert account_row(account).lease_token == before


def test_a_watched_account_is_polled_seldom_and_soon_when_its_watch_ends(
    system: System, address: str
) -> None:
    account = imported(system, address)
    with watching():
        wait_until(watched(system, account))
        poll(account_row(account).id, None)
        ahead = account_row(account).next_poll_at - database.now()
        assert timedelta(minutes=13) < ahead <= timedelta(minutes=16.5)
    row = account_row(account)
    assert row.next_poll_at <= database.now()
    assert (row.watcher, row.watch_interval) == (None, None)


@pytest.mark.parametrize("how", ["pause", "delete", "push off"])
def test_an_account_that_is_paused_deleted_or_wants_no_push_is_let_go(
    system: System, address: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "KEEP", 0.2)
    monkeypatch.setattr(watcher, "LOOK", 0.2)
    account = imported(system, address)
    with watching() as one:
        wait_until(lambda: one.watching == 1)
        path = f"/admin/email-accounts/{account}"
        if how == "pause":
            system.post(f"{path}/pause")
        elif how == "delete":
            assert system.api.simulate_delete(path).status_code == 202
        else:
            answer = system.api.simulate_patch(path, json={"push": False})
            assert answer.status_code == 200, answer.text
        wait_until(lambda: one.watching == 0)


def test_two_watchers_share_accounts_and_each_has_its_own(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "PAGE", 2)
    monkeypatch.setattr(watcher, "KEEP", 0.2)
    monkeypatch.setattr(watcher, "LOOK", 0.2)
    ids = [imported(system, f"{n}-{address}") for n in range(4)]
    limit = {"watcher_connections": 2}
    with watching() as first, watching() as second:
        for one in (first, second):
            one._settings = one._settings.model_copy(update=limit)
        wait_until(watched(system, *ids))
        owners = {account_row(one).watcher for one in ids}
        assert owners <= {first.name, second.name}
        assert first.watching + second.watching == 4


def test_accounts_of_a_watcher_that_was_killed_are_taken_over_and_nothing_is_missed(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "KEEP", 0.2)
    monkeypatch.setattr(watcher, "LOOK", 0.2)
    account = imported(system, address)
    # Given a watcher in a process of its own
    process = subprocess.Popen([sys.executable, "-m", "mailpoll", "watcher"], env=dict(os.environ))
    wait_until(watched(system, account))
    # When it is killed, and mail comes while nobody watches
    process.send_signal(signal.SIGKILL)
    process.wait()
    system.work_until(lambda: idle(system))  # a poll that it asked for would bring the mail
    system.dovecot.deliver(address, message("while nobody watched"))
    with watching() as other, system.workers():
        time.sleep(1)
        assert other.watching == 0  # the claim of the dead one holds for a while
        assert "while nobody watched" not in subjects(system, account)
        with database.transaction():
            EmailAccount.update(watched_until=database.now()).execute()
        wait_until(lambda: "while nobody watched" in subjects(system, account))
        assert other.watching == 1


def test_without_any_watcher_a_tick_gives_accounts_their_own_interval_back(
    system: System, address: str
) -> None:
    account = imported(system, address)
    with database.transaction():
        moment = database.now()
        EmailAccount.update(
            watcher="dead",
            watched_until=moment - timedelta(seconds=1),
            watch_interval=900,
            next_poll_at=moment + timedelta(seconds=800),
        ).execute()
    schedule_polls.fn()
    row = account_row(account)
    assert row.watch_interval is None
    assert row.queued_until is not None


def test_a_server_without_idle_is_polled_and_the_account_says_why(scripted: System) -> None:
    with ScriptedImap(messages={1: message("a")}) as server:
        account = add(server, push=True)
        with watching() as one:
            wait_until(lambda: account_row(account.uuid).watch_error)
            assert one.watching == 0
    row = account_row(account.uuid)
    assert "no IDLE" in row.watch_error
    assert row.watch_interval is None


def test_a_connection_that_went_silent_is_found_and_replaced(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "ANSWER", 0.5)
    monkeypatch.setattr(watcher, "BACKOFF", 0.2)
    with ScriptedImap(messages={1: message("a")}, capabilities=b"IMAP4rev1 IDLE") as server:
        # The first IDLE is never answered, as through a connection that is half open.
        server.rules = [Rule(r"IDLE", b"", times=1), Rule(r"IDLE", b"+ idling\r\n")]
        account = add(server, push=True)
        with watching() as one:
            wait_until(lambda: account_row(account.uuid).watch_error)
            assert "does not answer" in account_row(account.uuid).watch_error
            wait_until(lambda: one.watching == 1)


def test_an_idle_is_begun_anew_again_and_again(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "ANSWER", 0.2)
    with ScriptedImap(messages={1: message("a")}, capabilities=b"IMAP4rev1 IDLE") as server:
        account = add(server, push=True)
        with watching(push_renew=0.1) as one:
            wait_until(lambda: server.commands.count("DONE") > 2)
            assert one.watching == 1
        idles, ended = server.commands.count("IDLE"), server.commands.count("DONE")
        assert idles - ended in (0, 1)
        assert server.commands.count("EXAMINE INBOX") <= 1
    assert account_row(account.uuid).watch_error is None


def test_a_connection_that_goes_silent_while_it_idles_is_found_and_replaced(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "ANSWER", 0.5)
    monkeypatch.setattr(watcher, "BACKOFF", 0.2)
    with ScriptedImap(messages={1: message("a")}, capabilities=b"IMAP4rev1 IDLE") as server:
        server.rules = [Rule(r"DONE", b"", times=1)]
        account = add(server, push=True)
        with watching(push_renew=0.1) as one:
            wait_until(lambda: account_row(account.uuid).watch_error)
            assert "does not answer" in account_row(account.uuid).watch_error
            wait_until(lambda: one.watching == 1)


def test_an_idle_that_a_server_ends_early_is_begun_anew_sooner_from_then_on(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "ANSWER", 0.1)
    monkeypatch.setattr(watcher, "BACKOFF", 0.1)
    monkeypatch.setattr(watcher, "SHORTEST", 0.2)
    with ScriptedImap(messages={1: message("a")}, capabilities=b"IMAP4rev1 IDLE") as server:
        server.rules = [Rule(r"IDLE", b"+ idling\r\n" + pause(800) + CLOSE, times=1)]
        add(server, push=True)
        with watching(push_renew=600):
            wait_until(lambda: server.commands.count("DONE") > 1)
    assert server.commands.count("LOGIN") <= 2


def test_an_idle_that_the_server_ends_is_not_begun_again_at_once(scripted: System) -> None:
    with ScriptedImap(messages={1: message("a")}, capabilities=b"IMAP4rev1 IDLE") as server:
        server.rules = [Rule(r"IDLE", b"+ idling\r\n{tag} OK idled\r\n")]
        account = add(server, push=True)
        with watching() as one:
            wait_until(lambda: account_row(account.uuid).watch_error)
            assert one.watching == 0
        assert server.commands.count("IDLE") == 1
    assert "ended the IDLE" in account_row(account.uuid).watch_error


@pytest.mark.parametrize(("folders", "interval"), [(None, 0), (["INBOX"], 900)])
def test_where_notify_is_refused_one_folder_is_idled_and_the_others_keep_their_interval(
    scripted: System, folders: list[str] | None, interval: int
) -> None:
    with ScriptedImap(messages={1: message("a")}, capabilities=b"IMAP4rev1 IDLE NOTIFY") as server:
        server.rules = [Rule(r"NOTIFY", b"{tag} NO [BADEVENT (MessageNew)] not here\r\n")]
        server.folders = {b"Lists": Mailbox()}
        account = add(server, push=True, folders=folders, poll_interval=300)
        with watching():
            wait_until(watched(scripted, account.uuid))
            poll(account.id, None)
            row = account_row(account.uuid)
            ahead = row.next_poll_at - row.last_poll_at
    assert (row.watch_error, row.watch_interval) == (None, interval)
    assert ahead.total_seconds() == pytest.approx(max(300, interval), rel=0.1)


def test_an_account_that_is_claimed_again_while_it_is_watched_has_one_connection(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim can lapse between being kept and the look for what nobody watches."""
    monkeypatch.setattr(watcher, "KEEP", 0.2)
    monkeypatch.setattr(watcher, "LOOK", 0.2)
    keep = EmailAccount.keep_watches
    lapsed: list[set[int]] = []

    def too_late(name: str, seconds: int) -> set[int]:
        mine = keep(name, seconds)
        if mine and len(lapsed) < 2:
            lapsed.append(mine)
            moment = database.now() - timedelta(seconds=1)
            with database.transaction(durable=False):
                EmailAccount.update(watched_until=moment).execute()
        return mine

    with ScriptedImap(messages={1: message("a")}, capabilities=b"IMAP4rev1 IDLE") as server:
        add(server, push=True)
        with watching() as one:
            wait_until(lambda: one.watching == 1)
            monkeypatch.setattr(EmailAccount, "keep_watches", too_late)
            wait_until(lambda: server.commands.count("IDLE") == 3)
            wait_until(lambda: (one.watching, server.open) == (1, 1))
    assert len(lapsed) == 2


@pytest.mark.parametrize(("folders", "asked"), [(None, True), (["INBOX"], False)])
def test_notify_is_not_asked_for_one_folder_so_that_the_server_may_put_the_connection_to_sleep(
    scripted: System, folders: list[str] | None, asked: bool
) -> None:
    with ScriptedImap(messages={1: message("a")}, capabilities=b"IMAP4rev1 IDLE NOTIFY") as server:
        server.rules = [Rule(r"NOTIFY", b"{tag} OK\r\n")]
        account = add(server, push=True, folders=folders)
        with watching():
            wait_until(watched(scripted, account.uuid))
    assert "IDLE" in server.commands
    assert any(line.startswith("NOTIFY") for line in server.commands) == asked
    assert account_row(account.uuid).watch_error is None


def test_more_news_than_a_server_can_tell_are_news_and_the_watch_begins_anew(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "BACKOFF", 0.2)
    with ScriptedImap(messages={1: message("a")}, capabilities=b"IMAP4rev1 IDLE NOTIFY") as server:
        overflow = b"+ idling\r\n* OK [NOTIFICATIONOVERFLOW] too many\r\n"
        server.rules = [Rule(r"IDLE", overflow, times=1)]
        account = polled(add(server, push=True))
        scripted.broker.flush("poll")
        with watching() as one:
            wait_until(lambda: entries(scripted, "poll"))
            wait_until(lambda: server.commands.count("IDLE") == 2)
            wait_until(lambda: one.watching == 1)
            assert (account.id,) in [entry.args for entry in entries(scripted, "poll")]


def test_an_account_that_moves_to_another_server_is_watched_there(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "KEEP", 0.2)
    monkeypatch.setattr(watcher, "LOOK", 0.2)
    with (
        ScriptedImap(capabilities=b"IMAP4rev1 IDLE") as old,
        ScriptedImap(capabilities=b"IMAP4rev1 IDLE") as new,
    ):
        account = add(old, push=True)
        with watching() as one:
            wait_until(lambda: one.watching == 1)
            accounts.change(account, {"port": new.port}, test=False)
            wait_until(lambda: (old.open, new.open) == (0, 1))
            wait_until(lambda: one.watching == 1)


def test_polls_that_the_queue_does_not_take_are_sent_by_the_next_tick(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: Any) -> None:
        raise redis.ConnectionError

    with ScriptedImap(messages={1: message("a")}, capabilities=b"IMAP4rev1 IDLE") as server:
        account = add(server, push=True, poll_interval=15)
        monkeypatch.setattr(scripted.broker, "enqueue_all", gone)
        # When a watcher has news, a poll its next one, and a tick a due account
        EmailAccount.expect_polls([account.id])
        one = Watcher()
        one._news.add(account.id)
        one._poll_for_news()
        assert account_row(account.uuid).queued_until is None
        poll(account.id, None)
        assert account_row(account.uuid).queued_until is None
        with pytest.raises(redis.ConnectionError):
            schedule_polls.fn()
        assert account_row(account.uuid).queued_until is None


def test_logins_of_a_watcher_keep_to_the_providers_pace(scripted: System) -> None:
    with ScriptedImap(capabilities=b"IMAP4rev1 IDLE") as server:
        for number in range(5):
            add(server, f"{number}@example.org", push=True)
        pace = {"imap_host_logins_per_minute": 2}
        scripted_settings = settings().model_copy(update=pace)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(budgets, "settings", lambda: scripted_settings)
            with watching() as one:
                wait_until(lambda: one.watching == 2)
                wait_until(lambda: sum(not a.busy for a in one._accounts.values()) == 5)
                assert one.watching == 2
                # Those that wait have an appointment each, spread, and no thread
                moments = {due.moment for due in one._appointments if due.watch is None}
                assert len(moments) == 3


def test_news_that_come_while_the_account_is_being_polled_lead_to_another_poll(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedImap(messages={1: message("a")}) as server:
        account = add(server)
        asked: list[int] = []

        def news(line: bytes) -> None:
            asked.append(1)
            time.sleep(0.01)
            EmailAccount.expect_polls([account.id])

        monkeypatch.setattr(logins, "login_of", _telling(logins.login_of, news))
        poll(account.id, None)
        assert asked
        found = [entry for entry in entries(scripted, "poll") if entry.args[0] == account.id]
        assert found


def _telling(real: Callable[..., Any], call: Callable[[bytes], None]) -> Callable[..., Any]:
    def login_of(account: EmailAccount) -> Any:
        call(b"")
        return real(account)

    return login_of
