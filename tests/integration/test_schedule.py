"""The scheduler's tick: which polls it enqueues, when, and how often."""

import subprocess
import sys
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from mailpoll import accounts, actors, database, queues
from mailpoll.actors import poll as poll_module
from mailpoll.actors.poll import poll
from mailpoll.imap import Fault, ImapError
from mailpoll.models import (
    AccountState,
    EmailAccount,
    EmailHost,
    EmailRawMessage,
    Mark,
    MarkName,
)
from mailpoll.sync import LEASE
from tests.integration.queue_entries import entries, polls
from tests.integration.rows import account_row
from tests.integration.system import System, message, wait_until

pytestmark = pytest.mark.queue

#: A process that is a scheduler for one tick, when it is told to.
ONE_TICK = """
import sys
from mailpoll.actors import schedule_polls
print("ready", flush=True)
sys.stdin.readline()
schedule_polls.fn()
"""


def add(system: System, **columns: Any) -> EmailAccount:
    """An account that is due at once unless told otherwise, and has no poll in the queue."""
    account = accounts.create(
        address=f"{uuid4().hex[:16]}@example.org",
        password="secret",
        host="localhost",
        port=system.dovecot.imaps_port,
        test=False,
    )
    return change(account, **{"queued_until": None, **columns})


def change(account: EmailAccount, **columns: Any) -> EmailAccount:
    with database.transaction():
        EmailAccount.update(**columns).where(EmailAccount.id == account.id).execute()
    return reread(account)


def reread(account: EmailAccount) -> EmailAccount:
    with database.connected():
        return EmailAccount.get_by_id(account.id)


def soon(**span: float) -> Any:
    return database.now() + timedelta(**span)


@pytest.mark.parametrize("known", ["by the last tick", "by the last poll"])
def test_a_clock_that_is_set_back_stops_nobody(system: System, known: str) -> None:
    # Given what was written by a clock that was a day ahead
    later = soon(days=1)
    account = add(system, next_poll_at=soon(days=1, seconds=50), queued_until=soon(days=1))
    polling = add(
        system, next_poll_at=soon(days=1, seconds=50), lease_until=soon(days=1, minutes=2)
    )
    with database.transaction():
        EmailHost.create(host="imap.example.org", not_before=soon(days=1, minutes=5), reason="busy")
    if known == "by the last tick":
        with database.transaction():
            Mark.set(MarkName.TICK)
            Mark.update(at=later).execute()
    else:
        change(polling, last_poll_at=later)
    # When it is set right, and the scheduler ticks
    actors.watch.fn()
    # Then everything is due when it would have been
    for one in (account, polling):
        assert soon(seconds=30) < reread(one).next_poll_at < soon(seconds=51)
    assert reread(account).queued_until < soon()
    assert soon(seconds=90) < reread(polling).lease_until < soon(seconds=121)
    with database.connected():
        assert soon(minutes=4) < EmailHost.get().not_before < soon(minutes=5, seconds=1)
    # And nothing is brought nearer twice
    before = reread(account).next_poll_at
    actors.watch.fn()
    assert reread(account).next_poll_at == before


def polled_ids(system: System) -> list[int]:
    return sorted(entry.args[0] for entry in polls(system))


def test_a_tick_enqueues_each_poll_at_its_own_time(system: System) -> None:
    # Given accounts that fall due during the next minutes
    due = [add(system, next_poll_at=soon(seconds=second)) for second in (0, 5, 20, 60)]
    add(system, next_poll_at=soon(seconds=90))
    # When the scheduler ticks
    actors.schedule_polls.fn()
    # Then those of the next minute are enqueued for their times, and the later one is not yet
    found = {entry.args[0]: entry for entry in polls(system)}
    assert sorted(found) == [account.id for account in due]
    for account in due[1:]:
        assert abs(found[account.id].eta - account.due) < 2_000
    assert found[due[0].id].eta is None


def test_polls_of_the_same_second_are_sent_together_and_one_alone_as_it_is(system: System) -> None:
    begun = database.now()
    for second in (10, 10, 10, 30):
        add(system, next_poll_at=begun + timedelta(seconds=second))
    actors.schedule_polls.fn()
    assert [entry.actor for entry in entries(system, "poll")] == ["begin_polls", "poll_account"]


def test_polls_long_overdue_are_spread_over_half_a_minute(system: System) -> None:
    for _ in range(30):
        add(system, next_poll_at=soon(hours=-1), poll_interval=60)
    begun = database.now().timestamp() * 1_000
    actors.schedule_polls.fn()
    ahead = [(entry.eta or begun) - begun for entry in polls(system)]
    assert len(ahead) == 30
    assert max(ahead) < 31_000
    # 30 times in 30 seconds: all within one of its thirds would be a chance of 3 in 3^30
    assert max(ahead) - min(ahead) > 10_000


def test_many_ticks_enqueue_a_poll_once(system: System) -> None:
    ids = [add(system).id for _ in range(3)]
    for _ in range(10):
        actors.schedule_polls.fn()
    assert polled_ids(system) == ids


def test_an_account_that_is_being_polled_is_not_enqueued(system: System) -> None:
    # Given a poll that has begun, whose account is due again before it ends
    account = add(system)
    leased = EmailAccount.lease(account.id, None, LEASE)
    assert leased is not None
    change(account, next_poll_at=soon(seconds=-1))
    # When the scheduler ticks, and ticks
    for _ in range(3):
        actors.schedule_polls.fn()
    assert polls(system) == []
    # Then it is enqueued once the poll has ended
    leased.release()
    actors.schedule_polls.fn()
    assert polled_ids(system) == [account.id]


def test_an_account_whose_poller_died_is_enqueued_when_its_lease_ends(system: System) -> None:
    account = add(system)
    EmailAccount.lease(account.id, None, LEASE)
    change(account, next_poll_at=soon(seconds=-1), lease_until=soon(seconds=-1))
    actors.schedule_polls.fn()
    assert polled_ids(system) == [account.id]


def test_a_lost_poll_is_enqueued_again_when_its_claim_lapses(system: System) -> None:
    # Given a poll that was enqueued, and a queue that lost it
    account = add(system)
    actors.schedule_polls.fn()
    system.broker.flush_all()
    actors.schedule_polls.fn()
    assert polls(system) == []
    # When the claim lapses, which is within the interval and two minutes
    claimed = reread(account).queued_until
    assert claimed <= soon(seconds=65, minutes=2)
    change(account, queued_until=soon(seconds=-1))
    # Then the next tick enqueues it again, once
    for _ in range(2):
        actors.schedule_polls.fn()
    assert polled_ids(system) == [account.id]


@pytest.mark.parametrize(
    "state", [AccountState.PAUSED, AccountState.AUTH_FAILED, AccountState.DELETING]
)
def test_only_active_accounts_are_enqueued(system: System, state: str) -> None:
    add(system, state=state, next_poll_at=soon(hours=-1))
    actors.schedule_polls.fn()
    assert polls(system) == []


def test_two_schedulers_at_once_enqueue_a_poll_once(system: System) -> None:
    # Given many due accounts and three scheduler processes
    ids = [add(system).id for _ in range(100)]
    schedulers = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_TICK], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    for scheduler in schedulers:
        assert scheduler.stdout is not None
        assert scheduler.stdout.readline() == b"ready\n"
    # When they tick together
    for scheduler in schedulers:
        assert scheduler.stdin is not None
        scheduler.stdin.write(b"now\n")
        scheduler.stdin.flush()
    for scheduler in schedulers:
        scheduler.communicate()
        assert scheduler.returncode == 0
    # Then every poll is in the queue once
    assert polled_ids(system) == ids


def test_a_short_interval_enqueues_its_own_next_poll(system: System) -> None:
    # Given two accounts, one of which is polled more often than the scheduler ticks
    short, long = add(system, poll_interval=5), add(system, poll_interval=300)
    # When each has been polled
    for account in (short, long):
        poll(account.id, None)
        assert reread(account).last_success_at is not None
    # Then the short one's next poll is enqueued for its time, and a tick adds none
    (entry,) = polls(system)
    assert (entry.args[0], entry.args[1]) == (short.id, reread(short).due)
    assert abs(entry.eta - reread(short).due) < 1_000
    change(long, next_poll_at=soon(seconds=50))
    actors.schedule_polls.fn()
    assert polled_ids(system) == sorted([short.id, long.id])


@pytest.mark.parametrize(
    ("second", "place", "own"),
    [(5.0, 45.0, True), (5.0, 25.0, False), (5.0, 5.0, False), (50.0, 30.0, False)],
    ids=["sooner, before the tick", "later", "at its place", "sooner, behind the tick"],
)
def test_a_poll_on_the_way_to_its_place_is_enqueued_where_a_tick_would_be_too_late(
    system: System, monkeypatch: pytest.MonkeyPatch, second: float, place: float, own: bool
) -> None:
    # Given an account with the tick's interval, its place in the minute, and the present second
    account = add(system, poll_interval=60)
    monkeypatch.setattr("mailpoll.models.account.GOLDEN", (place / 60 + 1) / account.id)
    moment = database.now().replace(second=0, microsecond=0) + timedelta(minutes=1, seconds=second)
    monkeypatch.setattr(database, "now", lambda: moment)
    # When it is polled
    poll(account.id, None)
    # Then its next poll is enqueued if it is due before the next whole minute
    row = reread(account)
    between = (row.next_poll_at - row.last_poll_at).total_seconds()
    drift = (place - second + 30) % 60 - 30
    assert between == pytest.approx(60 + max(-6, min(6, drift)), abs=0.001)
    assert polled_ids(system) == ([account.id] if own else [])


def test_a_first_poll_that_ends_when_its_account_is_paused_asks_for_nothing_more(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = add(system)

    def hang_until_paused(_account: Any) -> None:
        accounts.pause(reread(account))
        raise ImapError(Fault.CONNECTION_LOST, "the login took too long")

    monkeypatch.setattr(poll_module, "_synchronise", hang_until_paused)
    poll(account.id, None)
    assert reread(account).last_error_kind is None
    assert polled_ids(system) == []


def test_a_short_interval_goes_on_without_ticks(system: System) -> None:
    account = add(system, poll_interval=5)
    actors.schedule_polls.fn()
    with system.workers():
        wait_until(lambda: reread(account).last_success_at)
        first = reread(account).last_success_at
        system.dovecot.deliver(account.address, message("arrived between two polls"))
        wait_until(lambda: reread(account).last_success_at > first)
        wait_until(lambda: system.messages(account.uuid))


def test_a_message_is_not_early_by_another_clock(system: System) -> None:
    # Given a message that arrives when its account is, by the database's clock, not quite due
    account = add(system, next_poll_at=soon(seconds=30), poll_interval=60)
    # Then one that was sent for another time is early, and one for this time is not
    assert EmailAccount.lease(account.id, account.due - 1, LEASE) is None
    leased = EmailAccount.lease(account.id, account.due, LEASE)
    assert leased is not None
    # And when the poll has ended, the same message delivered once more does nothing
    leased.release()
    assert EmailAccount.lease(account.id, account.due, LEASE) is None


def test_a_scheduler_that_died_after_its_claim_is_made_up_for(system: System) -> None:
    # Given a claim whose message was never sent
    account = add(system)
    assert [claimed.id for claimed in EmailAccount.claim_due(timedelta(seconds=65), 10)] == [
        account.id
    ]
    actors.schedule_polls.fn()
    assert polls(system) == []
    change(account, queued_until=soon(seconds=-1))
    actors.schedule_polls.fn()
    assert polled_ids(system) == [account.id]


@pytest.mark.parametrize("loss", ["emptied", "another"])
def test_what_a_redis_may_have_lost_is_enqueued_again_by_the_next_tick(
    system: System, address: str, loss: str
) -> None:
    # Given a poll and a message that the database takes for queued
    system.dovecot.deliver(address, message("waits"))
    polled = add(system)
    other = system.add_account(address)
    poll(account_row(other).id, None)
    change(polled, queued_until=database.now() + timedelta(minutes=10))
    with database.transaction():
        later = database.now() + timedelta(minutes=10)
        EmailRawMessage.update(next_attempt_at=later).execute()
    # When Redis is emptied, or another takes its place
    if loss == "emptied":
        system.broker.client.flushdb()
    else:
        system.broker.flush_all()
        queues.remember_server(system.broker, "the run of another")
    # Then one tick and one sweep bring everything back, and the next ones nothing more
    actors.schedule_polls.fn()
    actors.sweep.fn()
    assert str(polled.id) in str(polls(system))
    assert system.broker.do_qsize("import") + system.broker.do_qsize("process") == 1
    system.broker.flush_all()
    actors.schedule_polls.fn()
    actors.sweep.fn()
    assert polls(system) == []
