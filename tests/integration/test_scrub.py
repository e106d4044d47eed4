"""The scrub: everything that is stored is read back in time, and what is damaged is healed."""

import logging
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mailpoll import accounts, actors, alarms, budgets, database, runtime, scrub
from mailpoll.blobs import NewBlob, StorageType, StoreUnavailable
from mailpoll.crypto import DataKeyError
from mailpoll.imap import Login, connect
from mailpoll.models import (
    EmailAccount,
    EmailAttachment,
    EmailDamage,
    EmailFolder,
    EmailLocation,
    EmailRawMessage,
    EmailScrub,
)
from mailpoll.settings import settings
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import account_row, change_accounts
from tests.integration.system import System
from tests.integration.test_fsck import (
    DAMAGE,
    attachment_row,
    bring_in,
    expunge,
    letters,
    message_row,
    spoil,
)
from tests.servers.dovecot import Dovecot


@pytest.fixture(params=list(SETS))
def system(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    """Both backing sets, with a round that is due at once, and again after it."""
    variables = SETS[request.param](request, tmp_path)
    yield from run_system(variables, tmp_path, dovecot, MAILPOLL_SCRUB_DAYS="0.0000000001")


@pytest.fixture
def account(system: System, address: str) -> EmailAccount:
    """An account with three processed messages, each with an attachment."""
    system.dovecot.deliver_many(address, letters(1, 2, 3))
    uuid = system.add_account(address)
    system.broker.flush_all()
    bring_in(account_row(uuid))
    return account_row(uuid)


def figures(system: System) -> dict[str, Any]:
    return dict(system.get("/admin/stats")["scrub"])


def found(system: System) -> dict[str, int]:
    shown = figures(system)
    return {name: shown[name] for name in ("corrupt", "missing", "healed", "damaged")}


def damaged(system: System, account: EmailAccount) -> list[dict[str, Any]]:
    return list(system.get(f"/admin/email-accounts/{account.uuid}/stats")["damaged"])


def state() -> EmailScrub:
    with database.connected():
        return EmailScrub.get()


def change(**columns: Any) -> None:
    with database.transaction():
        EmailScrub.update(**columns).execute()


def days(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAILPOLL_SCRUB_DAYS", str(number))
    settings.cache_clear()


CLEAN = {"corrupt": 0, "missing": 0, "healed": 0, "damaged": 0}


def test_everything_is_read_and_counted(system: System, account: EmailAccount) -> None:
    assert figures(system)["finished_at"] is None
    actors.scrub.fn()
    shown = figures(system)
    with database.connected():
        sizes = [row.size for table in (EmailRawMessage, EmailAttachment) for row in table.select()]
    assert (shown["blobs"], shown["bytes"], shown["progress"]) == (6, sum(sizes), 1.0)
    assert found(system) == CLEAN
    assert shown["finished_at"] is not None
    # And again in the next round
    actors.scrub.fn()
    assert figures(system)["blobs"] == 12
    text = system.api.simulate_get("/metrics").text
    assert "mailpoll_scrub_blobs_total 12.0" in text
    assert "mailpoll_scrub_damaged 0.0" in text
    (line,) = re.findall(r"^mailpoll_scrub_finished_timestamp_seconds (.*)$", text, re.MULTILINE)
    assert float(line) == pytest.approx(state().finished_at.timestamp())


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_message_is_named_and_healed_from_the_server(
    system: System, account: EmailAccount, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    row = message_row(2)
    spoil(system, row.storage_key, DAMAGE[damage][0])
    logging.getLogger().addHandler(caplog.handler)
    actors.scrub.fn()
    logging.getLogger().removeHandler(caplog.handler)
    missing = damage == "deleted"
    assert found(system) == {"corrupt": not missing, "missing": missing, "healed": 1, "damaged": 0}
    (said,) = (record.msg for record in caplog.records if record.levelno == logging.ERROR)
    assert isinstance(said, dict)
    told = (said["account"], said["address"], said["message"], said["key"], said["outcome"])
    assert told == (account.uuid, account.address, row.id, row.storage_key, "repaired")
    # And a second round finds nothing any more
    actors.scrub.fn()
    assert found(system)["healed"] == 1
    assert damaged(system, account) == []


def test_a_damaged_attachment_is_taken_from_its_message_again(
    system: System, account: EmailAccount
) -> None:
    spoil(system, attachment_row().storage_key, DAMAGE["bit flip"][0])
    actors.scrub.fn()
    assert found(system) == {"corrupt": 1, "missing": 0, "healed": 1, "damaged": 0}


@pytest.mark.parametrize("system", ["production"], indirect=True)
def test_a_damaged_blob_is_healed_from_the_other_store(
    system: System, account: EmailAccount
) -> None:
    row = message_row(1)
    with runtime.storage().open(row.storage_key, StorageType.OSS) as stream:
        content = stream.read()
    blob = NewBlob(row.storage_key, row.size, row.sha256, content)
    runtime.storage().stores[StorageType.LOCAL].put([blob])
    expunge(system, account, 1)  # which leaves the store alone to heal it from
    spoil(system, row.storage_key, DAMAGE["cut"][0])
    actors.scrub.fn()
    assert found(system) == {"corrupt": 1, "missing": 0, "healed": 1, "damaged": 0}


def test_what_nobody_has_any_more_stays_named_until_it_is_there_again(
    system: System, account: EmailAccount
) -> None:
    # Given a message that its server has no more
    row = message_row(1)
    with runtime.storage().open(row.storage_key, StorageType(row.storage_type)) as stream:
        content = stream.read()
    expunge(system, account, 1)
    bring_in(account)
    spoil(system, row.storage_key, None)
    # Then it is named, once however often it is looked at
    for _ in range(3):
        actors.scrub.fn()
        assert found(system) == {"corrupt": 0, "missing": 1, "healed": 0, "damaged": 1}
    (shown,) = damaged(system, account)
    assert (shown["message_id"], shown["storage_key"]) == (row.id, row.storage_key)
    assert (shown["kind"], "has the message no more" in shown["reason"]) == ("blob_missing", True)
    assert "mailpoll_scrub_damaged 1.0" in system.api.simulate_get("/metrics").text
    # And an alarm tells of it, and whose it is
    told = alarms.ALARMS["blobs_damaged"].look(system.broker)
    assert told is not None
    assert (told.amount, told.names) == (1, [account.uuid])
    # When an operator puts it back, from a backup
    blob = NewBlob(row.storage_key, row.size, row.sha256, content)
    runtime.storage().put([blob])
    with database.transaction():
        EmailDamage.update(next_attempt_at=database.now()).execute()
    actors.scrub.fn()
    # Then it counts as healed
    assert found(system) == {"corrupt": 0, "missing": 1, "healed": 1, "damaged": 0}
    assert damaged(system, account) == []
    assert alarms.ALARMS["blobs_damaged"].look(system.broker) is None


def test_a_round_that_takes_twice_its_days_is_an_alarm(
    system: System, account: EmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late() -> bool:
        return alarms.ALARMS["scrub_late"].look(system.broker) is not None

    days(10, monkeypatch)
    assert not late()
    actors.scrub.fn()
    for age, told in ((19.9, False), (20.1, True)):
        change(started_at=database.now() - timedelta(days=age))
        assert late() is told
    days(0, monkeypatch)
    assert not late()


def test_a_blob_that_cannot_be_healed_now_is_tried_again_later(
    system: System, account: EmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a poll that runs for longer than the scrub waits
    monkeypatch.setattr(scrub, "PATIENCE", 0)
    spoil(system, message_row(1).storage_key, DAMAGE["bit flip"][0])
    poller = EmailAccount.lease(account.id, None, 60)
    assert poller is not None
    actors.scrub.fn()
    assert found(system) == {"corrupt": 1, "missing": 0, "healed": 0, "damaged": 1}
    assert "a poll is running" in damaged(system, account)[0]["reason"]
    poller.release()
    # When its hour is over
    days(1_000, monkeypatch)
    change(position=state().end)
    with database.transaction():
        EmailDamage.update(next_attempt_at=database.now()).execute()
    actors.scrub.fn()
    assert found(system) == {"corrupt": 1, "missing": 0, "healed": 1, "damaged": 0}


# --- servers


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whom the scrub logs in as, session by session."""
    users: list[str] = []

    def counted(login: Login, *arguments: Any) -> Any:
        users.append(login.username)
        return connect(login, *arguments)

    monkeypatch.setattr("mailpoll.fsck.server.connect", counted)
    return users


def spoil_all(system: System) -> None:
    for number in (1, 2, 3):
        spoil(system, message_row(number).storage_key, DAMAGE["bit flip"][0])


def reasons(system: System, account: EmailAccount) -> set[str]:
    shown = damaged(system, account)
    assert len(shown) == 3
    assert len({one["storage_key"] for one in shown}) == 3
    return {one["reason"] for one in shown}


def healed_later(system: System, sessions: list[str]) -> None:
    """When its hour is over all is healed, over one session; before, nobody logs in."""
    sessions.clear()
    change(started_at=database.now() + timedelta(days=1))  # no round is due
    actors.scrub.fn()
    assert sessions == []
    with database.transaction():
        EmailDamage.update(next_attempt_at=database.now()).execute()
    actors.scrub.fn()
    assert len(sessions) == 1
    assert (found(system)["healed"], found(system)["damaged"]) == (3, 0)


def test_damaged_blobs_of_one_account_are_healed_over_one_session(
    system: System, account: EmailAccount, sessions: list[str]
) -> None:
    spoil_all(system)
    actors.scrub.fn()
    assert found(system) == {"corrupt": 3, "missing": 0, "healed": 3, "damaged": 0}
    assert sessions == [account.username]
    # And its share of the limits is given back
    assert list(system.broker.client.scan_iter("mailpoll:limit:slots:*")) == []


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"state": "paused"}, "the account is not polled"),
        ({"state": "auth_failed"}, "its login is refused, and not tried again"),
        ({"host": ""}, "the account has no server"),
        ({"failures": 2, "last_error": "no answer"}, "its polls fail: no answer"),
    ],
)
def test_an_account_that_polls_do_not_ask_is_not_logged_in_to(
    system: System,
    account: EmailAccount,
    sessions: list[str],
    columns: dict[str, Any],
    reason: str,
) -> None:
    before = {name: getattr(account, name) for name in columns}
    spoil_all(system)
    change_accounts(**columns)
    actors.scrub.fn()
    assert (sessions, reasons(system, account)) == ([], {reason})
    change_accounts(**before)
    healed_later(system, sessions)


@pytest.mark.parametrize("limit", ["ACCOUNT_CONNECTIONS", "HOST_CONNECTIONS", "HOST_LOGINS"])
def test_an_account_is_logged_in_to_within_the_limits_of_polls(
    system: System,
    account: EmailAccount,
    sessions: list[str],
    limit: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a poll that has taken the last that a limit allows
    spoil_all(system)
    monkeypatch.setenv(f"MAILPOLL_IMAP_{limit}", "1")
    settings.cache_clear()
    limits = system.broker.limits
    assert limits.hold(budgets.login_terms(account.id)[1], "a poll") == 0
    # When its account is scrubbed
    actors.scrub.fn()
    # Then that waits
    (reason,) = reasons(system, account)
    assert (sessions, "may be logged in to in" in reason) == ([], True)
    # And goes on when there is room again
    limits.give_back("a poll")
    for key in system.broker.client.scan_iter("mailpoll:limit:*"):
        system.broker.client.delete(key)
    healed_later(system, sessions)


def test_a_host_that_wants_to_be_left_alone_is_left_alone(
    system: System, account: EmailAccount, sessions: list[str]
) -> None:
    spoil_all(system)
    budgets.leave_alone(account.host, 600, "come back later")
    actors.scrub.fn()
    (reason,) = reasons(system, account)
    assert (sessions, "may be logged in to in" in reason) == ([], True)
    budgets.leave_alone(account.host, -1, "now")
    healed_later(system, sessions)


def test_a_server_that_refuses_the_login_is_asked_once(
    system: System, account: EmailAccount, sessions: list[str]
) -> None:
    spoil_all(system)
    change_accounts(credential=runtime.keyring().encrypt("wrong", f"{account.uuid}:credential"))
    actors.scrub.fn()
    assert len(sessions) == 1
    assert "its session ended" in reasons(system, account)
    change_accounts(credential=account.credential)
    healed_later(system, sessions)


def test_a_folder_that_cannot_be_opened_ends_no_session(
    system: System, account: EmailAccount, sessions: list[str]
) -> None:
    # Given a message whose folder the server does not open
    spoil_all(system)
    with database.transaction():
        inbox = EmailFolder.get(EmailFolder.account == account.id)
        gone = EmailFolder.create(
            account=account.id,
            wire_name="Gone",
            name="Gone",
            uidvalidity=inbox.uidvalidity,
            low=1,
            high=1,
        )
        place = EmailLocation
        first = message_row(1).id
        place.update(folder=gone.id).where(place.message == first).execute()
    actors.scrub.fn()
    # Then the others are healed over the same session
    assert (len(sessions), found(system)["healed"]) == (1, 2)
    assert [one["message_id"] for one in damaged(system, account)] == [first]
    # And that one when it lies where the server has it
    with database.transaction():
        place.update(folder=inbox.id).where(place.message == first).execute()
        gone.delete_instance()
        EmailDamage.update(next_attempt_at=database.now()).execute()
    actors.scrub.fn()
    assert (len(sessions), found(system)["healed"], found(system)["damaged"]) == (2, 3, 0)


def test_healing_takes_no_more_than_the_bytes_of_the_day(
    system: System,
    account: EmailAccount,
    sessions: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil_all(system)
    monkeypatch.setenv("MAILPOLL_IMAP_DAY_BYTES", "1")
    settings.cache_clear()
    actors.scrub.fn()
    assert sessions == []
    assert any("0 bytes" in one for one in reasons(system, account))
    monkeypatch.delenv("MAILPOLL_IMAP_DAY_BYTES")
    settings.cache_clear()
    spent = account_row(account.uuid).traffic_bytes
    healed_later(system, sessions)
    assert account_row(account.uuid).traffic_bytes > spent


def test_a_round_is_spread_over_its_days(
    system: System, account: EmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    days(30, monkeypatch)
    actors.scrub.fn()
    assert (figures(system)["blobs"], figures(system)["finished_at"]) == (1, None)
    for age, read in ((10, 2), (15.1, 4), (24.9, 5)):
        change(started_at=database.now() - timedelta(days=age))
        actors.scrub.fn()
        actors.scrub.fn()
        assert abs(figures(system)["blobs"] - read) <= 1
    change(started_at=database.now() - timedelta(days=29.9999))
    actors.scrub.fn()
    assert (figures(system)["blobs"], figures(system)["progress"]) == (6, 1.0)
    # And the next round begins when the days of this one are over
    actors.scrub.fn()
    assert figures(system)["blobs"] == 6
    change(started_at=database.now() - timedelta(days=30.1))
    actors.scrub.fn()
    assert (figures(system)["blobs"], figures(system)["progress"] < 1) == (7, True)


def test_a_run_reads_no_more_than_its_bytes(
    system: System, account: EmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "TICK", 1 / settings().scrub_rate)
    for read in (1, 2, 3):
        actors.scrub.fn()
        assert figures(system)["blobs"] == read


def test_a_run_goes_on_where_one_that_died_has_come_to(
    system: System, account: EmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a run that died in its second page
    monkeypatch.setattr(scrub, "PAGE", 2)
    whole = scrub.state_of
    read: list[str] = []

    def die(row: Any) -> Any:
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(row.storage_key)
        return whole(row)

    with monkeypatch.context() as patched:
        patched.setattr(scrub, "state_of", die)
        with pytest.raises(KeyboardInterrupt):
            actors.scrub.fn()
    # Then nothing runs until its lease is over
    actors.scrub.fn()
    assert figures(system)["blobs"] == 3
    change(lease_until=database.now())
    # And the next goes on behind it
    actors.scrub.fn()
    assert (figures(system)["blobs"], figures(system)["progress"]) == (6, 1.0)


def test_a_run_that_was_taken_for_dead_writes_nothing_any_more(
    system: System, account: EmailAccount
) -> None:
    first = scrub._take()
    assert first is not None
    assert scrub._take() is None
    change(lease_until=database.now())
    actors.scrub.fn()
    with pytest.raises(scrub.TakenOver):
        scrub.Slice(first, system.broker.limits).end()
    assert state().position == state().end


def test_while_a_store_is_away_the_scrub_waits_and_names_nothing(
    system: System, account: EmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailable("away")

    storage = runtime.storage()
    kind = type(storage.stores[storage.primary_type])
    with monkeypatch.context() as patched:
        patched.setattr(kind, "open_stored", away)
        patched.setattr(kind, "check", away)
        patched.setattr("mailpoll.fsck.damage.PAUSES", (0,))
        actors.scrub.fn()
    assert (figures(system)["progress"], found(system)) == (0.0, CLEAN)
    actors.scrub.fn()
    assert (figures(system)["progress"], found(system)) == (1.0, CLEAN)


@pytest.mark.parametrize("system", ["embedded"], indirect=True)
def test_what_lies_in_a_store_that_is_not_configured_any_more_is_named_and_passed(
    system: System, account: EmailAccount
) -> None:
    def lie_in(store: StorageType) -> None:
        with database.transaction():
            for table in (EmailRawMessage, EmailAttachment):
                table.update(storage_type=store).execute()
            EmailDamage.update(next_attempt_at=database.now()).execute()

    lie_in(StorageType.OSS)
    actors.scrub.fn()
    # All six are named, and the round is over
    assert found(system) == {"corrupt": 6, "missing": 0, "healed": 0, "damaged": 6}
    assert {row["kind"] for row in damaged(system, account)} == {"blob_unreadable"}
    assert figures(system)["finished_at"] is not None
    # When they are to be had again they are found whole
    lie_in(StorageType.LOCAL)
    actors.scrub.fn()
    assert found(system)["damaged"] == 0


def test_a_blob_that_no_key_opens_is_named(
    system: System, account: EmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_key(_row: object) -> None:
        raise DataKeyError("no key of the ring opens it")

    with monkeypatch.context() as patched:
        patched.setattr(scrub, "state_of", no_key)
        actors.scrub.fn()
    assert found(system) == {"corrupt": 6, "missing": 0, "healed": 0, "damaged": 6}
    assert "no key" in damaged(system, account)[0]["reason"]
    with database.transaction():
        EmailDamage.update(next_attempt_at=database.now()).execute()
    actors.scrub.fn()
    assert found(system)["damaged"] == 0


def test_it_can_be_switched_off(
    system: System, account: EmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    days(0, monkeypatch)
    actors.scrub.fn()
    assert figures(system)["blobs"] == 0


def test_with_an_account_the_names_of_its_damaged_blobs_go(
    system: System, account: EmailAccount
) -> None:
    expunge(system, account, 1)
    bring_in(account)
    spoil(system, message_row(1).storage_key, None)
    actors.scrub.fn()
    assert figures(system)["damaged"] == 1
    job = accounts.delete(account.uuid)
    assert job is not None
    actors.delete_account.fn(job.id)
    assert figures(system)["damaged"] == 0
