"""Mail whose time is over is deleted, stays deleted, and nothing that is held is."""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peewee
import pytest

from mailpoll import (
    accounts,
    actors,
    audit,
    database,
    doomed,
    events,
    faults,
    fsck,
    holds,
    removal,
    retention,
    threads,
)
from mailpoll.actors.poll import poll
from mailpoll.actors.process import process_message
from mailpoll.archives import intake
from mailpoll.blobs import Storage, StoreUnavailable
from mailpoll.fsck import Tally
from mailpoll.models import (
    AuditEvent,
    EmailAccount,
    EmailAttachment,
    EmailDoomedBlob,
    EmailFolder,
    EmailLocation,
    EmailRawMessage,
    EmailThreadKey,
    EmailTombstone,
    Mark,
    MarkName,
    MessageStatus,
    WebhookDelivery,
    WebhookEndpoint,
)
from tests.integration.rows import account_row, blobs, change_accounts, change_messages
from tests.integration.scripted import add, folder, polled
from tests.integration.system import System, message
from tests.integration.test_cli import run
from tests.security.test_audit import variables
from tests.servers.scripted_imap import Mailbox, ScriptedImap

URL = "/admin/email-accounts"
DAY = 86_400


def days_ago(days: float) -> float:
    return time.time() - days * DAY


def letter(name: str, attached: str = "") -> bytes:
    """A message with an attachment."""
    body = (
        "--b\r\nContent-Type: text/plain\r\n\r\nhi\r\n--b\r\n"
        f"Content-Disposition: attachment; filename=a.txt\r\n\r\n{attached or name}\r\n--b--\r\n"
    )
    more = {"MIME_Version": "1.0", "Content_Type": 'multipart/mixed; boundary="b"'}
    return message(name, body, **more)


def raising(error: Exception) -> Callable[..., None]:
    def raises(*_: Any) -> None:
        raise error

    return raises


def subjects() -> list[str]:
    with database.connected():
        rows = EmailRawMessage.select(EmailRawMessage.subject)
        return sorted(subject for (subject,) in rows.tuples())


def work() -> None:
    """Process what is stored, as workers would."""
    with database.connected():
        rows = list(EmailRawMessage.select().where(EmailRawMessage.status == "stored"))
    for row in rows:
        process_message.fn(row.id)


def keep(account: str, system: System, **fields: Any) -> None:
    answer = system.api.simulate_patch(f"{URL}/{account}", json=fields)
    assert answer.status_code == 200, answer.text


def run_actor() -> None:
    """What a worker does at its time."""
    audit.act_as(audit.ITSELF)
    actors.retain.fn()


def retained() -> None:
    """The same when all is due."""
    change_accounts(retained_at=None)
    run_actor()


def compared(account: EmailAccount) -> EmailAccount:
    """The account after a poll that compares the server's whole list."""
    with database.transaction():
        EmailFolder.update(reconciled_at=None).execute()
    account = polled(account)
    work()
    return account


def expunged(days: float) -> None:
    """Let all that has left have left so long ago."""
    moment = database.now() - timedelta(days=days)
    with database.transaction():
        EmailLocation.update(expunged_at=moment).where(
            EmailLocation.expunged_at.is_null(False)
        ).execute()


def assert_clean(system: System, account: str) -> None:
    """Neither the proof nor a check, of the server too, finds anything."""
    tally = Tally()
    assert [one.as_line() for one in fsck.check(account_row(account), tally)] == []
    assert tally.unchecked == []
    for shown in system.get(f"{URL}/{account}/stats")["folders"]:
        assert shown["complete"], shown
        assert shown["proof"]["missing"] == 0


@pytest.fixture
def mixed(system: System, address: str) -> str:
    """An account with mail of different ages, imported before there was a policy."""
    for days in (0, 10, 40, 50, 60):
        system.dovecot.deliver_many(
            address, [letter(f"{days} days", "shared")], received_at=days_ago(days)
        )
    system.dovecot.deliver_many(address, [letter("alone")], received_at=days_ago(70))
    account = system.add_account(address)
    system.poll_and_process(account)
    return account


# --- by age


def test_nothing_is_deleted_unless_somebody_says_so(system: System, mixed: str) -> None:
    retained()
    assert len(subjects()) == 6


def test_what_is_too_old_goes_with_blobs_and_counts_and_stays_away(
    system: System, mixed: str
) -> None:
    before = set(blobs(mixed))
    keep(mixed, system, retention_days=30)
    with database.connected():
        old = [row for row in EmailRawMessage.select() if row.subject not in ("0 days", "10 days")]
        attachments = list(EmailAttachment.select())
    ids = sorted(row.id for row in old)
    shared = next(one.storage_key for one in attachments if one.message_id not in ids)
    run_actor()
    # Rows and blobs are gone, but for the attachment that newer mail has too
    assert subjects() == ["0 days", "10 days"]
    gone = before - set(blobs(mixed))
    alone = {one.storage_key for one in attachments} - {shared}
    assert gone == {row.storage_key for row in old} | alone
    assert shared in blobs(mixed)
    for message_id in ids:
        for path in ("", "/raw", "/attachments/0"):
            answer = system.api.simulate_get(f"/admin/messages/{message_id}{path}")
            assert answer.status_code == 404
    figures = system.get(f"{URL}/{mixed}/stats")
    assert (figures["messages"], figures["attachments"]) == (2, 2)
    assert len(figures["days"]) == 2
    # Everybody is told, and it is written down
    told = [event.public() for event in events.read(0, 100, ["message.deleted"])]
    assert sorted(one["message_id"] for one in told) == ids
    assert {one["data"]["rule"] for one in told} == {"age"}
    with database.connected():
        rows = list(AuditEvent.select().where(AuditEvent.action == "message.delete"))
    assert sorted(int(row.target) for row in rows) == ids
    assert {row.who for row in rows} == {"mailpoll"}
    # It lies at the server still, and is neither fetched nor missed
    assert_clean(system, mixed)
    system.post(f"{URL}/{mixed}/reconcile", 202)
    system.poll_and_process(mixed)
    assert subjects() == ["0 days", "10 days"]
    assert_clean(system, mixed)
    proof = system.get(f"{URL}/{mixed}/stats")["folders"][0]["proof"]
    assert (proof["stored"], proof["left_out"], proof["server"]) == (2, 4, 6)


def test_an_import_leaves_out_what_would_be_deleted_at_once(system: System, address: str) -> None:
    for days in (1, 40):
        raw = [letter(f"{days} days")]
        system.dovecot.deliver_many(address, raw, received_at=days_ago(days))
    account = system.add_account(address, retention_days=30)
    system.poll_and_process(account)
    assert subjects() == ["1 days"]
    assert_clean(system, account)


def test_the_installation_has_a_default_and_an_account_its_own(
    system: System, mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = system.settings.model_copy(update={"retention_days": 45})
    monkeypatch.setattr("mailpoll.policy.settings", lambda: config)
    monkeypatch.setattr("mailpoll.retention.settings", lambda: config)
    keep(mixed, system, retention_days=0)
    retained()
    assert len(subjects()) == 6
    keep(mixed, system, retention_days=65)
    retained()
    assert len(subjects()) == 5
    keep(mixed, system, retention_days=None)
    shown = system.get(f"{URL}/{mixed}")
    assert shown["retention_days"] is None
    assert shown["kept"] == {"days": 45, "expunged_days": 0}
    retained()
    assert subjects() == ["0 days", "10 days", "40 days"]


def test_deleted_content_does_not_come_back_under_other_numbers(scripted: System) -> None:
    raw = {1: letter("old"), 2: letter("new")}
    dates = {1: "01-Jan-2020 10:00:00 +0000", 2: f"{datetime.now(UTC):%d-%b-%Y} 00:00:00 +0000"}
    with ScriptedImap(messages=raw) as server:
        server.inbox.dates = dates
        account = polled(add(server))
        work()
        accounts.change(account, {"retention_days": 365}, test=False)
        run_actor()
        assert subjects() == ["new"]
        # A copy with a new date, in another folder; then a folder that is counted anew
        server.folders[b"Copy"] = Mailbox({9: raw[1]})
        account = compared(account)
        server.uidvalidity = 9
        account = compared(compared(account))
    assert subjects() == ["new"]
    assert folder().complete
    assert folder("Copy").complete
    assert folder("Copy").proof["left_out"] == 1


def test_what_a_server_names_is_not_even_downloaded_again(scripted: System) -> None:
    raw = {1: letter("old"), 2: letter("new")}
    capabilities = b"IMAP4rev1 OBJECTID"
    with ScriptedImap(messages=raw, capabilities=capabilities) as server:
        server.inbox.dates = {1: "01-Jan-2020 10:00:00 +0000"}
        account = polled(add(server))
        work()
        accounts.change(account, {"retention_days": 365}, test=False)
        run_actor()
        fetched = len(server.manifest)
        server.folders[b"Copy"] = Mailbox({9: raw[1]})
        compared(account)
        assert len(server.manifest) == fetched
    assert folder("Copy").complete


def test_a_message_that_is_being_processed_is_left_until_it_is(system: System, mixed: str) -> None:
    keep(mixed, system, retention_days=30)
    change_messages(status=MessageStatus.STORED, processed_at=None, attachment_count=0)
    with database.transaction():
        size = sum(row.size for row in EmailAttachment.select())
        EmailAttachment.delete().execute()
    assert size
    run_actor()
    assert len(subjects()) == 6
    with database.transaction():
        database.proxy.execute_sql(
            "UPDATE email_account_days SET attachments = 0, attachment_bytes = 0"
        )
    work()
    retained()
    assert subjects() == ["0 days", "10 days"]


# --- after it left


def test_mail_that_left_the_server_goes_some_days_later(scripted: System) -> None:
    with ScriptedImap(messages={n: letter(f"number {n}") for n in range(1, 6)}) as server:
        server.folders[b"Archive"] = Mailbox({})
        account = polled(add(server, retention_expunged_days=7))
        work()
        del server.messages[1]
        server.folders[b"Archive"].messages[1] = server.messages.pop(2)
        account = compared(account)
        expunged(6)
        retained()
        assert len(subjects()) == 5
        expunged(8)
        retained()
        # The one that was moved is there still
        assert subjects() == ["number 2", "number 3", "number 4", "number 5"]
        compared(account)
        assert folder().complete
        assert folder().proof["expunged"] == 1
        # When it is put back, it is new mail: it lies at the server
        server.messages[9] = letter("number 1")
        compared(account)
    assert len(subjects()) == 5
    with database.connected():
        assert EmailTombstone.select().count() == 0


def test_mail_of_a_folder_that_was_removed_goes_and_of_one_not_polled_stays(
    scripted: System,
) -> None:
    with ScriptedImap(messages={1: letter("in the inbox")}) as server:
        server.folders[b"Gone"] = Mailbox({1: letter("gone")})
        server.folders[b"Unwanted"] = Mailbox({1: letter("unwanted")})
        account = polled(add(server, retention_expunged_days=7))
        work()
        del server.folders[b"Gone"]
        fields = {"folders": ["INBOX", "Gone"]}
        account = compared(accounts.change(account, fields, test=False))
        with database.transaction():
            EmailFolder.update(gone_at=database.now() - timedelta(days=8)).where(
                EmailFolder.gone_at.is_null(False)
            ).execute()
        retained()
    assert subjects() == ["in the inbox", "unwanted"]


def test_mail_that_was_lost_when_the_server_counted_anew_goes(scripted: System) -> None:
    with ScriptedImap(messages={n: letter(f"number {n}") for n in (1, 2)}) as server:
        account = polled(add(server, retention_expunged_days=7))
        work()
        server.uidvalidity = 5
        del server.messages[1]
        account = compared(account)
        retained()
        assert len(subjects()) == 2
        with database.transaction():
            EmailFolder.update(restarted_at=database.now() - timedelta(days=8)).execute()
        retained()
    assert subjects() == ["number 2"]


def test_expunged_mail_stays_while_a_folder_is_not_accounted_for(scripted: System) -> None:
    with ScriptedImap(messages={n: letter(f"number {n}") for n in (1, 2)}) as server:
        account = polled(add(server, retention_expunged_days=7))
        work()
        del server.messages[1]
        compared(account)
        expunged(8)
        with database.transaction():
            EmailFolder.update(complete=False).execute()
        retained()
        assert len(subjects()) == 2
        survey = retention.Survey(account_row(account.uuid), database.now())
        assert list(survey.due()) == []
        assert survey.tally.unproved is not None
        assert "INBOX" in survey.tally.unproved
        with database.transaction():
            EmailFolder.update(complete=True).execute()
        retained()
    assert subjects() == ["number 2"]


# --- held


def test_a_held_account_keeps_everything_and_is_not_deleted(system: System, mixed: str) -> None:
    url = f"{URL}/{mixed}/hold"
    answer = system.api.simulate_put(url, json={"reason": "case 7"})
    assert answer.status_code == 200, answer.text
    assert answer.json["held_by"] == "api token"
    assert system.get(f"{URL}/{mixed}")["hold"]["reason"] == "case 7"
    keep(mixed, system, retention_days=30, retention_expunged_days=1)
    retained()
    assert len(subjects()) == 6
    refused = system.api.simulate_delete(f"{URL}/{mixed}")
    assert refused.status_code == 409
    assert "legal hold" in refused.json["detail"]
    assert system.get(f"{URL}/{mixed}")["state"] == "active"
    # What is older than the policy says is fetched too while it is held
    system.dovecot.deliver_many(
        account_row(mixed).address, [letter("late")], received_at=days_ago(90)
    )
    system.poll_and_process(mixed)
    assert "late" in subjects()
    # A second request changes the reason; once lifted, nothing is held
    system.api.simulate_put(url, json={"reason": "case 8"})
    (listed,) = system.get("/admin/holds")["items"]
    assert (listed["reason"], listed["message_id"]) == ("case 8", None)
    assert system.api.simulate_delete(url).status_code == 204
    assert system.api.simulate_delete(url).status_code == 404
    run_actor()
    assert subjects() == ["0 days", "10 days"]


def test_a_held_message_is_kept_and_its_account_with_it(system: System, mixed: str) -> None:
    with database.connected():
        row = EmailRawMessage.get(EmailRawMessage.subject == "50 days")
    url = f"/admin/messages/{row.id}/hold"
    assert system.api.simulate_put(url, json={"reason": "evidence"}).status_code == 200
    assert system.get(f"/admin/messages/{row.id}")["hold"]["reason"] == "evidence"
    keep(mixed, system, retention_days=30)
    retained()
    assert subjects() == ["0 days", "10 days", "50 days"]
    assert system.api.simulate_get(f"/admin/messages/{row.id}/attachments/0").status_code == 200
    assert system.api.simulate_delete(f"{URL}/{mixed}").status_code == 409
    # The database itself keeps it
    with pytest.raises(peewee.IntegrityError), database.transaction():
        removal.remove_messages([row.id])
    assert system.api.simulate_delete(url).status_code == 204
    run_actor()
    assert subjects() == ["0 days", "10 days"]
    actions = [("message.hold", str(row.id)), ("message.unhold", str(row.id))]
    with database.connected():
        rows = AuditEvent.select().where(AuditEvent.action.in_(["message.hold", "message.unhold"]))
        assert [(one.action, one.target) for one in rows.order_by(AuditEvent.id)] == actions


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": "a\nb"}, {"reason": "x" * 1_001}])
def test_a_hold_needs_a_reason(embedded: System, address: str, body: dict[str, str]) -> None:
    account = embedded.add_account(address)
    answer = embedded.api.simulate_put(f"{URL}/{account}/hold", json=body)
    assert answer.status_code == 422
    assert "reason" in answer.text
    assert embedded.get("/admin/holds")["items"] == []


def test_a_hold_that_comes_during_a_run_ends_it(
    system: System, mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(mixed, system, retention_days=30)
    monkeypatch.setattr(retention, "PAGE", 2)

    def interrupt(point: str) -> None:
        if point == "retention-committed" and not holds.of_accounts([account_row(mixed).id]):
            holds.hold(account_row(mixed), "just now")

    monkeypatch.setattr(faults, "point", interrupt)
    run_actor()
    assert len(subjects()) == 4
    holds.lift(account_row(mixed))


def test_what_is_not_there_cannot_be_held(system: System, mixed: str) -> None:
    assert system.api.simulate_put("/admin/messages/1/hold", json={"reason": "x"}).status_code in (
        200,
        404,
    )
    row = account_row(mixed)
    with database.connected():
        one = EmailRawMessage.get()
    holds.lift(row, one)
    system.api.simulate_delete(f"{URL}/{mixed}")
    with pytest.raises(LookupError):
        holds.hold(row, "too late")
    answer = system.api.simulate_put(f"{URL}/{mixed}/hold", json={"reason": "too late"})
    assert answer.status_code == 404


# --- whatever happens meanwhile


@pytest.mark.parametrize(
    "point",
    ["before-retention", "retention-committed", "blobs-doomed", "retention-blobs-deleted"],
)
def test_a_run_that_is_killed_anywhere_is_gone_on_with(
    system: System, mixed: str, tmp_path: Path, point: str
) -> None:
    keep(mixed, system, retention_days=30)
    fault = {"MAILPOLL_TEST": "1", "MAILPOLL_FAULT": f"{point}:kill:1"}
    killed = run("retention", "--yes", variables=variables() | fault, cwd=tmp_path)
    assert killed.returncode == -9, killed.stderr
    # What was committed is right, and what was not is as before
    assert [one.as_line() for one in fsck.check(None, Tally(), offline=True)] == []
    assert len(subjects()) == (6 if point == "before-retention" else 2)
    # Its lease ends by itself; then the next run goes on
    assert account_row(mixed).lease_until is not None
    change_accounts(lease_until=None)
    retained()
    assert subjects() == ["0 days", "10 days"]
    assert not doomed.left(account_row(mixed).id)
    # Two messages and the attachment that they share
    assert len(blobs(mixed)) == 3


def test_what_tied_mail_to_other_mail_goes_though_its_run_was_killed(
    system: System, mixed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a run that was killed when a page was gone, and the ties to its threads were not
    monkeypatch.setattr(threads, "PAGE", 3)
    keep(mixed, system, retention_days=30)
    fault = {"MAILPOLL_TEST": "1", "MAILPOLL_FAULT": "retention-committed:kill:1"}
    assert run("retention", "--yes", variables=variables() | fault, cwd=tmp_path).returncode == -9
    change_accounts(lease_until=None)
    retained()
    assert len(tied()) == 6
    # When what retention has left is erased, then the ties of what is there stay, and no others
    actors.erase_words.fn()
    with database.connected():
        assert tied() == {row.thread_id for row in EmailRawMessage.select()}
        assert len(tied()) == 2


def tied() -> set[int]:
    """The threads that later messages could come to."""
    with database.connected():
        return {row.thread_id for row in EmailThreadKey.select()}


def test_a_store_that_is_away_gets_its_blobs_deleted_later(
    system: System, mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(mixed, system, retention_days=30)
    before = len(blobs(mixed))

    def away(*_: Any) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", away)
        run_actor()
    assert subjects() == ["0 days", "10 days"]
    assert len(blobs(mixed)) == before
    assert [one.as_line() for one in fsck.check(None, Tally(), offline=True)] == []
    run_actor()
    assert len(blobs(mixed)) == 3


def test_blobs_wait_while_mail_is_processed_that_may_have_them(system: System, mixed: str) -> None:
    keep(mixed, system, retention_days=30)
    with database.connected():
        newest = EmailRawMessage.get(EmailRawMessage.subject == "0 days")
    with database.transaction():
        EmailRawMessage.update(status=MessageStatus.STORED).where(
            EmailRawMessage.id == newest.id
        ).execute()
    before = len(blobs(mixed))
    run_actor()
    assert len(subjects()) == 2
    assert len(blobs(mixed)) == before
    with database.transaction():
        EmailRawMessage.update(status=MessageStatus.PROCESSED).where(
            EmailRawMessage.id == newest.id
        ).execute()
    run_actor()
    assert len(blobs(mixed)) == 3


def test_a_poll_that_runs_is_waited_for_and_a_deletion_ends_it(
    system: System, mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(mixed, system, retention_days=30)
    monkeypatch.setattr(retention, "PATIENCE", 0.0)
    change_accounts(lease_until=database.now() + timedelta(seconds=60))
    assert retention.go_through(account_row(mixed).id, time.monotonic() + 60, 0.0) is None
    assert len(subjects()) == 6
    change_accounts(lease_until=None)
    monkeypatch.setattr(retention, "PAGE", 1)

    def deleted(point: str) -> None:
        if point == "retention-committed":
            accounts.delete(mixed)

    monkeypatch.setattr(faults, "point", deleted)
    run_actor()
    assert len(subjects()) == 5


def test_polls_go_on_after_a_run(system: System, mixed: str) -> None:
    keep(mixed, system, retention_days=30)
    run_actor()
    row = account_row(mixed)
    assert row.lease_until is None
    assert row.retained_at is not None
    system.dovecot.deliver(row.address, letter("newest"))
    poll(row.id, None)
    work()
    assert "newest" in subjects()
    # And it is not gone through again for some hours
    assert retention.due_accounts() == []


# --- the command line


@contextmanager
def command(system: System, tmp_path: Path) -> Iterator[Any]:
    def call(*words: str, ok: bool = True) -> "subprocess.CompletedProcess[bytes]":
        done = run(*words, variables=variables(), cwd=tmp_path)
        assert (done.returncode == 0) == ok, done.stderr
        return done

    yield call


def test_a_dry_run_says_what_would_go_and_deletes_nothing(
    system: System, mixed: str, tmp_path: Path
) -> None:
    keep(mixed, system, retention_days=30)
    with database.connected():
        row = EmailRawMessage.get(EmailRawMessage.subject == "60 days")
    holds.hold(account_row(mixed), "evidence", row)
    with command(system, tmp_path) as call:
        lines = call("retention", "--dry-run", "--json", "--list").stdout.decode().splitlines()
        found = [json.loads(line) for line in lines]
        summary = found.pop()
        assert [one["kind"] for one in found] == ["message"] * 3
        assert {one["rule"] for one in found} == {"age"}
        assert (summary["rule"], summary["days"]) == ("age", 30)
        assert (summary["messages"], summary["held"]) == (3, 1)
        assert summary["bytes"] == sum(one["size"] for one in found)
        words = call("retention", "--dry-run").stdout.decode()
        assert "3 messages would be deleted" in words
        assert len(subjects()) == 6
        # Then it is done, with an answer that is the same
        call("retention", "--list", ok=False)
        assert "3 messages are deleted" in call("retention", "--yes").stdout.decode()
        assert len(subjects()) == 3
        with database.connected():
            rows = AuditEvent.select().where(AuditEvent.action == "message.delete")
            assert {one.who for one in rows} == {"command line"}
        holds.lift(account_row(mixed), row)


def test_holds_are_set_listed_and_lifted(system: System, mixed: str, tmp_path: Path) -> None:
    address = account_row(mixed).address
    with database.connected():
        row = EmailRawMessage.get()
    with command(system, tmp_path) as call:
        call("holds", "set", address, ok=False)
        call("holds", "set", address, "--reason", "case 7")
        call("holds", "set", address, "--reason", "this one", "--message", str(row.id))
        call("holds", "set", address, "--reason", "none", "--message", "999999", ok=False)
        lines = call("holds", "list", "--json").stdout.decode().splitlines()
        assert [json.loads(one)["message_id"] for one in lines] == [row.id, None]
        assert "case 7" in call("holds", "list").stdout.decode()
        assert (
            "legal hold" in call("accounts", "delete", address, "--yes", ok=False).stderr.decode()
        )
        call("holds", "lift", address)
        assert "messages" in call("accounts", "delete", address, "--yes", ok=False).stderr.decode()
        call("holds", "lift", address, "--message", str(row.id))
        call("holds", "lift", address, ok=False)


def test_every_table_of_a_message_is_known_to_the_removal(system: System, mixed: str) -> None:
    with database.connected():
        ids = [row.id for row in EmailRawMessage.select(EmailRawMessage.id)]
    with pytest.raises(ZeroDivisionError), database.transaction():
        counts = removal.remove_messages(ids)
        assert counts["email_raw_messages"] == counts["email_locations"] == 6
        assert counts["email_attachments"] == 6
        raise ZeroDivisionError  # take it back


def test_words_of_deleted_mail_are_erased_from_the_index(embedded: System, address: str) -> None:
    for n in range(30):
        body = f"zebrafish{n} canary{n}\r\n"
        old = days_ago(40 if n % 2 else 1)
        embedded.dovecot.deliver_many(address, [message(f"mail {n}", body)], received_at=old)
    account = embedded.add_account(address)
    embedded.poll_and_process(account)
    actors.erase_words.fn()  # nothing was deleted yet
    keep(account, embedded, retention_days=30)
    retained()
    assert Mark.all()[MarkName.WORDS_LEFT].value == 1
    actors.erase_words.fn()
    assert Mark.all()[MarkName.WORDS_LEFT].value == 0
    with database.connected():
        database.proxy.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    stored = (embedded.settings.data_dir / "mailpoll.db").read_bytes()
    assert b"canary8" in stored
    assert b"canary7" not in stored
    assert [hit["subject"] for hit in embedded.get("/admin/search", q="zebrafish8")["items"]]
    assert embedded.get("/admin/search", q="zebrafish7")["items"] == []


# --- whoever stores without a lease


def imported(system: System, account: str, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    intake.run(account_row(account), [path])


@pytest.mark.parametrize("rows", ["there", "gone"])
def test_what_is_deleted_while_an_import_has_its_blobs_is_put_again(
    system: System, mixed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str
) -> None:
    keep(mixed, system, retention_days=30)
    if rows == "gone":
        with monkeypatch.context() as patch:
            patch.setattr(doomed, "delete_page", lambda _: None)
            run_actor()
    deleted: list[str] = []

    def deletes(point: str) -> None:
        if point == "blobs-durable" and not deleted:
            deleted.append(point)
            run_actor()

    with monkeypatch.context() as patch:
        patch.setattr(faults, "point", deletes)
        imported(system, mixed, tmp_path / "alone.eml", letter("alone"))
    work()
    assert deleted
    assert subjects() == ["0 days", "10 days", "alone"]
    assert [one.as_line() for one in fsck.check(account_row(mixed), Tally(), offline=True)] == []


def test_an_import_waits_for_a_deletion_that_has_begun(
    system: System, mixed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(mixed, system, retention_days=30)
    importer: list[threading.Thread] = []
    waits: list[bool] = []

    def imports(point: str) -> None:
        if point == "blobs-doomed" and not importer:
            target = (system, mixed, tmp_path / "alone.eml", letter("alone"))
            importer.append(threading.Thread(target=imported, args=target))
            importer[0].start()
            importer[0].join(1.0)
            waits.append(importer[0].is_alive())

    with monkeypatch.context() as patch:
        patch.setattr(faults, "point", imports)
        run_actor()
    importer[0].join(30)
    work()
    assert waits == [True]
    assert subjects() == ["0 days", "10 days", "alone"]
    assert [one.as_line() for one in fsck.check(account_row(mixed), Tally(), offline=True)] == []


def test_a_worker_does_not_store_attachments_that_are_being_deleted(
    system: System, mixed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(mixed, system, retention_days=30)
    refused: list[str] = []

    def arrives(point: str) -> None:
        if point == "blobs-doomed" and not refused:
            refused.append("")  # once
            imported(system, mixed, tmp_path / "new.eml", letter("new", "alone"))
            with pytest.raises(StoreUnavailable) as error:
                work()
            refused[0] = str(error.value)

    with monkeypatch.context() as patch:
        patch.setattr(faults, "point", arrives)
        run_actor()
    assert refused == ["the store is deleting blobs that are needed again"]
    work()
    assert subjects() == ["0 days", "10 days", "new"]
    assert [one.as_line() for one in fsck.check(account_row(mixed), Tally(), offline=True)] == []


def test_a_deletion_that_was_killed_ends_though_a_message_waits_for_it(
    system: System, mixed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(mixed, system, retention_days=30)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", raising(StoreUnavailable("away")))
        run_actor()
    imported(system, mixed, tmp_path / "new.eml", letter("new", "alone"))
    with pytest.raises(StoreUnavailable):
        work()
    run_actor()
    work()
    assert subjects() == ["0 days", "10 days", "new"]
    assert [one.as_line() for one in fsck.check(account_row(mixed), Tally(), offline=True)] == []


def test_what_is_gone_is_noted_for_an_hour(
    system: System, mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(mixed, system, retention_days=30)
    run_actor()
    with database.connected():
        rows = list(EmailDoomedBlob.select())
    assert rows and all(row.gone_at for row in rows)
    assert account_row(mixed).id not in [one.id for one in retention.due_accounts()]
    monkeypatch.setattr(doomed, "KEPT", timedelta(0))
    run_actor()
    with database.connected():
        assert EmailDoomedBlob.select().count() == 0


def test_what_an_import_has_placed_meanwhile_stays(
    scripted: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedImap(messages={1: letter("left"), 2: letter("stays")}) as server:
        account = polled(add(server, retention_expunged_days=7))
        work()
        del server.messages[1]
        account = compared(account)
        expunged(8)
        placed: list[str] = []

        def places(point: str) -> None:
            if point == "page-found" and not placed:
                placed.append(point)
                imported(scripted, account.uuid, tmp_path / "left.eml", letter("left"))

        with monkeypatch.context() as patch:
            patch.setattr(faults, "point", places)
            retained()
        assert placed
        assert subjects() == ["left", "stays"]


def test_expunged_mail_stays_while_a_folder_was_not_looked_into(scripted: System) -> None:
    with ScriptedImap(messages={n: letter(f"number {n}") for n in (1, 2)}) as server:
        account = polled(add(server, retention_expunged_days=7))
        work()
        del server.messages[1]
        compared(account)
        expunged(8)
        long_ago = database.now() - timedelta(days=7, hours=1)
        with database.transaction():
            EmailFolder.update(last_error="NO [UNAVAILABLE]", proved_at=long_ago).execute()
        retained()
        assert len(subjects()) == 2
        polled(account)
        retained()
    assert subjects() == ["number 2"]


def test_an_account_that_is_polled_just_now_does_not_hold_up_others(
    system: System, mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(mixed, system, retention_days=30)
    busy = accounts.create_archive("busy@example.org")
    keep(busy.uuid, system, retention_days=30)
    order: list[tuple[str, float]] = []

    def goes(account_id: int, until: float, patience: float = 5.0) -> retention.Tally | None:
        order.append((account_row(mixed).id == account_id, patience))
        return None if account_id == busy.id else retention.Tally()

    monkeypatch.setattr(retention, "go_through", goes)
    change_accounts(retained_at=None)
    run_actor()
    assert sorted(order[:2]) == [(False, 0.0), (True, 0.0)]
    assert order[2:] == [(False, 5.0)]


def test_nothing_of_deleted_mail_stays_in_threads_or_in_what_was_sent(
    system: System, mixed: str
) -> None:
    with database.connected():
        rows = {row.subject: row for row in EmailRawMessage.select()}
        before = set(EmailThreadKey.select(EmailThreadKey.thread_id).tuples())
    old, new = rows["60 days"], rows["0 days"]
    assert {(old.thread_id,), (new.thread_id,)} <= before
    endpoint = system.post("/admin/webhooks", 201, url="https://example.org/hook")["id"]
    with database.transaction():
        WebhookEndpoint.update(state="disabled").execute()
        for row in (old, new):
            WebhookDelivery.create(
                endpoint=WebhookEndpoint.get(WebhookEndpoint.uuid == endpoint).id,
                event_number=1,
                event_type="message.new",
                account_id=row.account_id,
                message_id=row.id,
                attempt=1,
                outcome="delivered",
                request=row.subject,
                duration_ms=1,
                created_at=database.now(),
            )
    keep(mixed, system, retention_days=30)
    run_actor()
    with database.connected():
        after = set(EmailThreadKey.select(EmailThreadKey.thread_id).tuples())
        assert after == {(rows[name].thread_id,) for name in ("0 days", "10 days")}
        assert [row.request for row in WebhookDelivery.select()] == ["0 days"]


def test_a_hold_keeps_what_left_the_server(scripted: System) -> None:
    with ScriptedImap(messages={n: letter(f"number {n}") for n in (1, 2, 3)}) as server:
        account = polled(add(server, retention_expunged_days=7))
        work()
        with database.connected():
            held = EmailRawMessage.get(EmailRawMessage.subject == "number 1")
        answer = scripted.api.simulate_put(
            f"/admin/messages/{held.id}/hold", json={"reason": "case 7"}
        )
        assert answer.status_code == 200, answer.text
        del server.messages[1], server.messages[2]
        compared(account)
        expunged(8)
        retained()
        assert subjects() == ["number 1", "number 3"]
        url = f"{URL}/{account.uuid}/hold"
        assert scripted.api.simulate_put(url, json={"reason": "all"}).status_code == 200
        assert scripted.api.simulate_delete(f"/admin/messages/{held.id}/hold").status_code == 204
        retained()
        assert subjects() == ["number 1", "number 3"]
        assert scripted.api.simulate_delete(url).status_code == 204
        retained()
        assert subjects() == ["number 3"]


def test_what_is_doomed_again_during_its_deletion_is_deleted_again(
    system: System, mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(mixed, system, retention_days=30)
    times: list[int] = []

    def dooms(point: str) -> None:
        if point == "blobs-doomed":
            row = account_row(mixed)
            with database.transaction():
                digests = [
                    one for (one,) in EmailDoomedBlob.select(EmailDoomedBlob.sha256).tuples()
                ]
                if not times:
                    doomed.doom(row.id, digests)
            # Whoever is about to put one of them still sees that it is going
            with pytest.raises(doomed.BeingDeleted):
                doomed.before_put(row.id, digests)
            times.append(len(digests))

    with monkeypatch.context() as patch:
        patch.setattr(faults, "point", dooms)
        run_actor()
    assert len(times) == 2
    assert not doomed.left(account_row(mixed).id)


def test_a_poll_stores_nothing_on_a_blob_that_is_being_deleted(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedImap(messages={n: letter(f"number {n}") for n in (1, 2)}) as server:
        account = polled(add(server, retention_expunged_days=7))
        work()
        first = server.messages.pop(1)
        account = compared(account)
        expunged(8)
        states: list[str] = []

        def stands_still(point: str) -> None:
            if point == "blobs-doomed":
                # Its lease is over, and the mail is put back
                change_accounts(lease_until=None)
                server.messages[7] = first
                states.append(compared(account_row(account.uuid)).last_error_kind)

        with monkeypatch.context() as patch:
            patch.setattr(faults, "point", stands_still)
            retained()
        assert states == ["storage_unavailable"]
        assert subjects() == ["number 2"]
        change_accounts(lease_until=None)
        run_actor()
        compared(account_row(account.uuid))
    assert subjects() == ["number 1", "number 2"]
    assert_clean(scripted, account.uuid)


def test_a_deletion_that_stood_still_does_not_delete_what_was_stored_again(
    system: System, mixed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(mixed, system, retention_days=30)
    stood: list[str] = []

    def stands_still(point: str) -> None:
        if point == "blobs-doomed" and not stood:
            stood.append(point)
            # Its lease is over, another one ends the deletion, and the mail comes back
            change_accounts(lease_until=None)
            run_actor()
            imported(system, mixed, tmp_path / "alone.eml", letter("alone"))
            work()
            clock.monotonic = lambda: time.monotonic() + 61

    clock = SimpleNamespace(monotonic=time.monotonic)
    with monkeypatch.context() as patch:
        patch.setattr(faults, "point", stands_still)
        patch.setattr(doomed, "time", clock)
        run_actor()
    assert stood
    assert subjects() == ["0 days", "10 days", "alone"]
    assert [one.as_line() for one in fsck.check(account_row(mixed), Tally(), offline=True)] == []


def moved_mail(server: ScriptedImap, count: int) -> EmailAccount:
    """An account whose mail was moved to another folder, but for the last one, which has left."""
    server.folders[b"Archive"] = Mailbox({})
    account = polled(add(server, retention_expunged_days=7))
    work()
    for uid in range(1, count):
        server.folders[b"Archive"].messages[uid] = server.messages.pop(uid)
    del server.messages[count]
    account = compared(account)
    expunged(8)
    return account


def test_mail_that_is_not_due_does_not_hold_up_polls(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PAGE", 1)
    with ScriptedImap(messages={n: letter(f"number {n}") for n in range(1, 5)}) as server:
        account = moved_mail(server, 4)
        # Each turn is over at once, and the next goes on where it ended
        turns = []
        while not turns or not turns[-1].done:
            tally = retention.go_through(account.id, time.monotonic())
            assert tally and len(turns) < 10
            turns.append(tally)
    assert [sum(one.messages.values()) for one in turns] == [0, 0, 0, 1, 0]
    assert account_row(account.uuid).retention_cursor is None
    assert subjects() == ["number 1", "number 2", "number 3"]


def test_another_policy_begins_at_the_beginning(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PAGE", 1)
    with ScriptedImap(messages={n: letter(f"number {n}") for n in range(1, 5)}) as server:
        account = moved_mail(server, 4)
        for _ in range(2):
            retention.go_through(account.id, time.monotonic())
        assert account_row(account.uuid).retention_cursor
        # What was passed over is due by now
        del server.folders[b"Archive"].messages[1]
        compared(account)
        expunged(5)
        keep(account.uuid, scripted, retention_expunged_days=4)
        run_actor()
    assert subjects() == ["number 2", "number 3"]


def test_a_lease_is_renewed_while_nothing_is_due(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PAGE", 1)
    kept: list[int] = []
    keeps = EmailAccount.keep

    def renews(account: EmailAccount, seconds: int) -> None:
        kept.append(seconds)
        keeps(account, seconds)

    with ScriptedImap(messages={n: letter(f"number {n}") for n in range(1, 4)}) as server:
        account = moved_mail(server, 3)
        clock = SimpleNamespace(monotonic=iter(range(0, 100_000, 31)).__next__, sleep=time.sleep)
        monkeypatch.setattr(EmailAccount, "keep", renews)
        monkeypatch.setattr(retention, "time", clock)
        retention.go_through(account.id, float("inf"))
    assert kept.count(retention.LEASE) >= 2 + 3  # two pages of nothing, then rows and blobs
    assert subjects() == ["number 1", "number 2"]


def test_holds_on_old_mail_do_not_keep_younger_mail(
    system: System, mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PAGE", 1)
    with database.connected():
        old = list(EmailRawMessage.select().order_by(EmailRawMessage.internal_date).limit(2))
    for row in old:
        answer = system.api.simulate_put(f"/admin/messages/{row.id}/hold", json={"reason": "7"})
        assert answer.status_code == 200, answer.text
    keep(mixed, system, retention_days=5)
    held = sorted(row.subject for row in old)
    for _ in range(10):
        tally = retention.go_through(account_row(mixed).id, time.monotonic())
        if tally and tally.done:
            break
    assert subjects() == sorted([*held, "0 days"])
    for row in old:
        assert system.api.simulate_delete(f"/admin/messages/{row.id}/hold").status_code == 204
    run_actor()
    assert subjects() == ["0 days"]
