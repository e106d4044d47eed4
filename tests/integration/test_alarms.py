"""Alarms: found once a minute, told once by whoever is first, told again when they are over."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mailpoll import actors, alarms, database, notify, runtime, stats
from mailpoll.blobs import StoreUnavailable
from mailpoll.models import Alarm, Mark, MarkName, WebhookEndpoint
from mailpoll.queues import RedisState
from tests.integration.conftest import SETS, _embedded, run_system
from tests.integration.rows import account_row, change_accounts, change_messages
from tests.integration.system import System, message, wait_until
from tests.integration.test_cli import run
from tests.integration.test_tasks import TOO_MANY, queue
from tests.servers.dovecot import Dovecot
from tests.servers.inbox import Inbox

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the disk of the machine that runs the tests has left."""
    monkeypatch.setattr(alarms, "DISK", 0.0)


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with Inbox() as started:
        yield started


@pytest.fixture(params=list(SETS))
def watched(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, inbox: Inbox
) -> Iterator[System]:
    """A system on each backing set that tells its alarms to the inbox."""
    variables = SETS[request.param](request, tmp_path)
    yield from run_system(variables, tmp_path, dovecot, MAILPOLL_NOTIFY_URLS=inbox.url)


def later(ago: timedelta) -> None:
    """Let what the alarms remember have happened that much earlier."""
    with database.transaction():
        for alarm in Alarm.select():
            for name in ("since", "seen_at", "cleared_at", "notified_at", "claimed_until"):
                moment = getattr(alarm, name)
                if moment is not None:
                    setattr(alarm, name, moment - ago)
            alarm.save()


def refused(system: System, address: str, accounts: int = 1) -> list[str]:
    """Accounts whose logins were refused."""
    uuids = [system.add_account(f"{n}-{address}", test=False) for n in range(accounts)]
    system.broker.flush_all()
    change_accounts(state="auth_failed", last_error_at=database.now())
    return uuids


def listed(system: System) -> dict[str, bool]:
    return {alarm["name"]: alarm["holds"] for alarm in system.get("/admin/alarms")["items"]}


def test_when_all_is_well_nothing_is_told(watched: System, inbox: Inbox) -> None:
    for _ in range(3):
        actors.watch.fn()
    assert inbox.received == []
    assert watched.get("/admin/alarms")["items"] == []


def test_an_alarm_is_told_once_and_so_is_its_end(
    watched: System, inbox: Inbox, address: str
) -> None:
    # Given an account whose login is refused
    (account,) = refused(watched, address)
    for _ in range(3):
        actors.watch.fn()
    # Then one message says which, what, and what to do, without its address
    (told,) = inbox.received
    assert told["type"] == "warning"
    assert told["title"] == "mailpoll: 1 alarms"
    assert "ALARM auth_failed: 1 accounts are not polled" in told["message"]
    assert account in told["message"]
    assert address not in str(told)
    assert alarms.ALARMS["auth_failed"].advice in told["message"]
    (shown,) = watched.get("/admin/alarms")["items"]
    assert (shown["name"], shown["holds"], shown["amount"]) == ("auth_failed", True, 1)
    assert account not in str(shown)
    # And when it is over, that is told once too, but not before it is sure
    change_accounts(state="active")
    actors.watch.fn()
    assert len(inbox.received) == 1
    assert listed(watched) == {"auth_failed": True}
    later(alarms.SETTLED)
    for _ in range(3):
        actors.watch.fn()
    assert inbox.titles[1:] == ["mailpoll: 1 over"]
    assert inbox.received[1]["type"] == "success"
    assert "OVER auth_failed" in inbox.texts[1]
    assert listed(watched) == {"auth_failed": False}


def test_many_accounts_and_alarms_are_one_message(
    watched: System, inbox: Inbox, address: str
) -> None:
    refused(watched, address, 14)
    Mark.set(MarkName.FSCK, 3)
    actors.watch.fn()
    (text,) = inbox.texts
    assert inbox.titles == ["mailpoll: 2 alarms"]
    assert "14 accounts" in text
    assert text.count("-4") >= alarms.NAMED  # version 4 UUIDs
    assert "3 differences are left" in text
    assert len(text) < 1_500


def test_an_alarm_that_stays_is_repeated_seldom(
    watched: System, inbox: Inbox, address: str
) -> None:
    refused(watched, address)
    actors.watch.fn()
    for _ in range(23):
        later(HOUR)
        actors.watch.fn()
    assert len(inbox.received) == 1
    later(HOUR)
    actors.watch.fn()
    actors.watch.fn()
    assert len(inbox.received) == 2


def test_an_alarm_that_grows_is_told_again_within_bounds(
    watched: System, inbox: Inbox, address: str
) -> None:
    refused(watched, address, 2)
    actors.watch.fn()
    refused(watched, f"more-{address}")
    actors.watch.fn()
    assert len(inbox.received) == 1
    later(alarms.PAUSE)
    actors.watch.fn()
    actors.watch.fn()
    assert len(inbox.received) == 2
    assert "3 accounts" in inbox.texts[1]


def test_an_alarm_that_comes_and_goes_is_no_storm(
    watched: System, inbox: Inbox, address: str
) -> None:
    refused(watched, address)
    for _ in range(6):
        change_accounts(state="auth_failed")
        actors.watch.fn()
        change_accounts(state="active")
        later(alarms.SETTLED)
        actors.watch.fn()
    # Told and over, and then not again within the hour
    assert inbox.titles == ["mailpoll: 1 alarms", "mailpoll: 1 over"]
    later(alarms.PAUSE)
    change_accounts(state="auth_failed")
    actors.watch.fn()
    assert inbox.titles[2:] == ["mailpoll: 1 alarms"]


def test_of_many_that_look_at_once_one_tells(watched: System, inbox: Inbox, address: str) -> None:
    refused(watched, address)
    inbox.pause = 0.3
    with ThreadPoolExecutor(6) as pool:
        for looked in [pool.submit(alarms.look, watched.broker) for _ in range(6)]:
            looked.result()
    assert len(inbox.received) == 1


def test_a_worker_that_is_killed_while_it_tells_leaves_it_to_another(
    watched: System, inbox: Inbox, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(watched, address)

    def killed(*_: object) -> bool:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(notify.Receiver, "send", killed)
        with pytest.raises(Killed):
            actors.watch.fn()
    # Then nobody tells while it may still be at it, and somebody afterwards
    actors.watch.fn()
    assert inbox.received == []
    later(alarms.CLAIM)
    actors.watch.fn()
    actors.watch.fn()
    assert len(inbox.received) == 1


def test_what_no_receiver_takes_is_tried_again(watched: System, inbox: Inbox, address: str) -> None:
    refused(watched, address)
    inbox.status = 500
    actors.watch.fn()
    inbox.status = 200
    actors.watch.fn()
    assert inbox.received == []
    later(alarms.RETRY)
    actors.watch.fn()
    actors.watch.fn()
    assert len(inbox.received) == 1


@pytest.fixture
def doubly(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, inbox: Inbox
) -> Iterator[System]:
    urls = f"json://127.0.0.1:1/nobody {inbox.url}?format=text"
    variables = {**_embedded(request, tmp_path), "MAILPOLL_NOTIFY_URLS": urls}
    yield from run_system(variables, tmp_path, dovecot)


def test_one_receiver_that_is_away_does_not_flood_the_other(
    doubly: System, inbox: Inbox, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    refused(doubly, address)
    for _ in range(3):
        actors.watch.fn()
        later(alarms.RETRY)
    assert len(inbox.received) == 1
    assert "canary-word-77e1" not in caplog.text
    text = doubly.api.simulate_get("/metrics").text
    assert 'mailpoll_notifications_total{result="failed"}' in text


def test_without_receivers_alarms_are_listed_all_the_same(system: System, address: str) -> None:
    refused(system, address)
    actors.watch.fn()
    assert listed(system) == {"auth_failed": True}


# Conditions


def test_dead_letters(watched: System, inbox: Inbox) -> None:
    options = {"max_retries": 1, "min_backoff": 1, "max_backoff": 1}
    actors.delete_account.send_with_options(args=TOO_MANY, **options)
    watched.work_until(lambda: queue(watched, "maintenance")["dead"] == 1)
    actors.watch.fn()
    assert listed(watched) == {"dead_letters": True}
    assert "1 tasks have failed for good" in inbox.texts[0]


def test_housekeeping_that_fails_is_no_dead_letter_as_the_next_tick_sends_it_again(
    watched: System,
) -> None:
    options = {"max_retries": 1, "min_backoff": 1, "max_backoff": 1}
    actors.prune_audit.send_with_options(args=TOO_MANY, **options)

    def failed_twice() -> bool:
        tasks = watched.get("/admin/tasks")["tasks"]
        return ("prune_audit", 2) in [(task["actor"], task["failures"]) for task in tasks]

    watched.work_until(failed_twice)
    left = queue(watched, "maintenance")
    assert (left["waiting"], left["delayed"], left["running"], left["dead"]) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"state": "disabled"}, True),
        ({"failing_since": 2}, True),
        ({"failing_since": 0.5}, False),
        ({"state": "paused", "failing_since": 2}, False),
    ],
    ids=str,
)
def test_webhooks_that_are_not_told(
    watched: System, inbox: Inbox, change: dict[str, Any], told: bool
) -> None:
    made = watched.post("/admin/webhooks", 201, url="https://example.org/hook")
    columns = dict(change)
    if "failing_since" in columns:
        columns["failing_since"] = database.now() - columns["failing_since"] * HOUR
    with database.transaction():
        WebhookEndpoint.update(**columns).execute()
    actors.watch.fn()
    assert listed(watched) == ({"webhooks_fail": True} if told else {})
    assert inbox.texts == [] or made["id"] in inbox.texts[0]


def test_polls_that_nobody_makes(watched: System, inbox: Inbox, address: str) -> None:
    watched.add_account(address, test=False)
    change_accounts(next_poll_at=database.now() - timedelta(seconds=alarms.LATE - 60))
    actors.watch.fn()
    assert listed(watched) == {}
    change_accounts(next_poll_at=database.now() - timedelta(seconds=alarms.LATE + 1))
    actors.watch.fn()
    assert listed(watched) == {"polls_late": True}


def test_new_mail_that_waits(watched: System, inbox: Inbox, address: str) -> None:
    watched.dovecot.deliver(address, message("x"))
    account = watched.add_account(address)
    watched.poll_and_process(account)
    watched.broker.flush_all()
    ago = database.now() - timedelta(hours=1)
    # Mail of a first import may wait
    change_messages(status="stored", stored_at=ago, imported=True, next_attempt_at=ago)
    actors.watch.fn()
    assert listed(watched) == {}
    change_messages(imported=False)
    actors.watch.fn()
    assert listed(watched) == {"messages_wait": True}
    assert "60 minutes" in inbox.texts[0]
    change_messages(status="processed")


@pytest.mark.parametrize("watched", ["production"], indirect=True)
def test_blobs_in_local_files(
    watched: System, inbox: Inbox, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.dovecot.deliver(address, message("x"))
    account = watched.add_account(address)

    def away(*_: object) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        primary = runtime.storage()._primary
        patched.setattr(primary, "put", away)
        watched.poll_and_process(account)
    actors.watch.fn()
    assert listed(watched)["fallback_used"]
    assert "1 blobs wait in local files" in inbox.texts[0]
    # And when they have been moved it is over
    while runtime.storage().circuit_open:
        time.sleep(0.1)
    actors.drain_fallback.fn()
    assert stats.fallen_back() == (0, 0.0)
    later(alarms.SETTLED)
    actors.watch.fn()
    assert not listed(watched)["fallback_used"]


def test_a_store_that_takes_nothing(
    watched: System, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise StoreUnavailable("object store: AccessDenied")

    with monkeypatch.context() as patched:
        patched.setattr(runtime.storage()._primary, "check", away)
        actors.watch.fn()
    assert listed(watched)["storage_away"]
    assert "AccessDenied" in inbox.texts[0]
    assert "mailpoll_storage_circuit_open 1.0" in watched.api.simulate_get("/metrics").text


def test_differences_that_fsck_left(watched: System, inbox: Inbox) -> None:
    from mailpoll import fsck

    assert list(fsck.check(None, fsck.Tally(), offline=True)) == []
    actors.watch.fn()
    assert listed(watched) == {}
    Mark.set(MarkName.FSCK, 2)
    actors.watch.fn()
    assert "2 differences are left" in inbox.texts[0]
    assert list(fsck.check(None, fsck.Tally(), offline=True)) == []
    later(alarms.SETTLED)
    actors.watch.fn()
    assert listed(watched) == {"fsck_differences": False}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (RedisState(memory=0.71, keeps=True), "71% of the memory"),
        (RedisState(memory=0.1, keeps=False), "noeviction"),
    ],
)
def test_redis_that_fills_up_or_forgets(
    watched: System,
    inbox: Inbox,
    monkeypatch: pytest.MonkeyPatch,
    state: RedisState,
    words: str,
) -> None:
    monkeypatch.setattr(alarms.queues, "redis_state", lambda _: state)
    actors.watch.fn()
    assert listed(watched) == {"redis": True}
    assert words in inbox.texts[0]


def test_the_state_of_redis_is_that_of_redis(system: System) -> None:
    client = system.broker.client
    before = client.config_get("maxmemory-policy")["maxmemory-policy"]
    try:
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert not alarms.queues.redis_state(system.broker).keeps
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "100mb")
        state = alarms.queues.redis_state(system.broker)
        assert state.keeps
        assert 0 < state.memory < 0.5
    finally:
        client.config_set("maxmemory", "0")
        client.config_set("maxmemory-policy", before)


def test_a_full_disk(watched: System, inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms, "DISK", 1.0)
    watched.settings.data_dir.mkdir(exist_ok=True)
    actors.watch.fn()
    assert listed(watched) == {"disk_full": True}


# Silence


def test_the_web_process_tells_of_a_scheduler_that_is_silent(
    watched: System, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "SILENCE", 3.0)
    actors.watch.fn()
    stopped = threading.Event()
    thread = threading.Thread(target=alarms.keep_watch, args=(watched.broker, stopped, 0.1))
    thread.start()
    # Given ticks, it leaves everything to the workers
    for _ in range(20):
        time.sleep(0.2)
        Mark.set(MarkName.TICK)
    assert inbox.received == []
    # When they end, it tells
    wait_until(lambda: inbox.received)
    stopped.set()
    thread.join()
    assert inbox.titles == ["mailpoll: 1 alarms"]
    assert "ALARM scheduler_silent: no tick" in inbox.texts[0]
    # And when the scheduler is back, that is told too
    actors.watch.fn()
    later(alarms.SETTLED)
    actors.watch.fn()
    assert inbox.titles[1:] == ["mailpoll: 1 over"]


def test_a_scheduler_that_never_ticked_is_silent(watched: System, inbox: Inbox) -> None:
    alarms.look(watched.broker)
    assert "no tick of the scheduler was ever carried out" in inbox.texts[0]


# Deleting


def test_alarms_keep_nothing_of_an_account(watched: System, inbox: Inbox, address: str) -> None:
    (account,) = refused(watched, address)
    actors.watch.fn()
    assert account in inbox.texts[0]
    with database.connected():
        rows = repr([list(table.select().dicts()) for table in (Alarm, Mark)])
    for word in (account, address, str(account_row(account).host)):
        assert word not in rows


# The command line


def variables() -> dict[str, str]:
    names = ("MAILPOLL_", "REDIS_URL", "DATABASE_URL", "STORAGE_URL")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


def test_a_test_message_reaches_every_receiver(
    doubly: System, inbox: Inbox, tmp_path: Path
) -> None:
    done = run("notify", "test", variables=variables(), cwd=tmp_path)
    shown = (done.stdout + done.stderr).decode()
    assert inbox.titles == ["mailpoll: test"]
    assert shown.splitlines() == ["1 (JSON): not taken", "2 (JSON): sent"]
    assert done.returncode == 1
    one = {**variables(), "MAILPOLL_NOTIFY_URLS": inbox.url}
    assert run("notify", "test", variables=one, cwd=tmp_path).returncode == 0


def test_a_test_message_needs_a_receiver(embedded: System, tmp_path: Path) -> None:
    done = run("notify", "test", variables=variables(), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == b"mailpoll: MAILPOLL_NOTIFY_URLS: is not set\n"


def test_an_address_that_is_none_is_refused_and_not_shown(embedded: System, tmp_path: Path) -> None:
    urls = "json://localhost/ canary://user:canary-word-77e1@example.org"
    wrong = {**variables(), "MAILPOLL_NOTIFY_URLS": urls}
    done = run("stats", variables=wrong, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(b"mailpoll: MAILPOLL_NOTIFY_URLS: should be addresses")
    assert b"canary" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
