"""The event log: what is announced, once, and in an order that its readers can follow."""

import http.client
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mailpoll import database, events, fsck, replay, runtime, stats
from mailpoll.actors import process
from mailpoll.actors.process import import_messages, process_message
from mailpoll.models import (
    EmailAccount,
    EmailAttachment,
    EmailEvent,
    EmailFolder,
    EmailRawMessage,
    EventType,
)
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import account_row
from tests.integration.scripted import add, polled
from tests.integration.system import TOKEN, System, message, wait_until
from tests.security.live import Web, running
from tests.servers.dovecot import Dovecot
from tests.servers.scripted_imap import Mailbox, Rule, ScriptedImap


def told(*types: str) -> list[dict[str, Any]]:
    """What readers are told, of these types or of all."""
    found = [event.public() for event in events.read(0, 1_000)]
    return [event for event in found if not types or event["type"] in types]


def work() -> None:
    """Process what is stored, as workers would."""
    with database.connected():
        rows = list(EmailRawMessage.select().where(EmailRawMessage.status == "stored"))
    for row in rows:
        process_message.fn(row.id)


def reconciled(account: Any) -> Any:
    with database.transaction():
        EmailFolder.update(reconciled_at=None).execute()
    account = polled(account)
    work()
    return account


# --- announced once


def test_each_message_is_announced_once_when_it_is_processed(system: System, address: str) -> None:
    system.dovecot.deliver_many(address, [message(f"number {n}") for n in range(5)])
    account = system.add_account(address)
    system.poll_and_process(account)
    system.dovecot.deliver(address, message("new"))
    system.poll_and_process(account)
    page = system.get("/admin/events", types="message.new")
    assert {event["message_id"] for event in page["items"]} == {
        item["id"] for item in system.messages(account)
    }
    assert len(page["items"]) == 6
    assert {event["account_id"] for event in page["items"]} == {account}
    assert [event["data"]["imported"] for event in page["items"]] == [True] * 5 + [False]


def imported() -> dict[str, bool]:
    """Of each message that was announced, by its subject, whether it is said to be old."""
    with database.connected():
        subjects = {row.id: row.subject for row in EmailRawMessage.select()}
    return {subjects[one["message_id"]]: one["data"]["imported"] for one in told("message.new")}


def test_what_comes_into_a_folder_that_was_just_made_is_new_and_what_lay_before_is_not(
    system: System, address: str
) -> None:
    # Given an account whose import is over
    system.dovecot.deliver(address, message("first"))
    account = system.add_account(address)
    system.poll_and_process(account)
    # When a rule sorts mail into a folder of its own, and another folder with an old archive comes
    system.dovecot.deliver(address, message("order"), folder="Orders")
    system.dovecot.deliver_many(
        address, [message("old")], folder="Archive 2025", received_at=time.time() - 40 * 86_400
    )
    system.poll_and_process(account)
    # Then only what has just arrived is new
    assert imported() == {"first": True, "order": False, "old": True}
    assert sum(hour["messages"] - hour["imported"] for hour in stats.hours(2)) == 1


def test_what_arrives_while_a_server_counts_anew_is_new(scripted: System) -> None:
    with ScriptedImap(messages={n: message(f"number {n}") for n in (1, 2)}) as server:
        account = polled(add(server))
        work()
        before = told()
        server.uidvalidity = 9
        server.messages[3] = message("meanwhile")
        server.inbox.dates[3] = time.strftime("%d-%b-%Y %H:%M:%S +0000", time.gmtime())
        reconciled(account)
    (new,) = told()[len(before) :]
    assert (new["type"], new["data"]) == ("message.new", {"imported": False})


def test_a_message_is_not_new_again_in_a_second_folder(scripted: System) -> None:
    with ScriptedImap(messages={1: message("a")}) as server:
        account = polled(add(server))
        work()
        server.folders[b"Copy"] = Mailbox({1: message("a")})
        reconciled(account)
    assert [event["type"] for event in told()].count("message.new") == 1
    (located,) = told("message.located")
    assert located["data"] == {"folder": "Copy"}


def test_a_move_is_told_as_a_move(scripted: System) -> None:
    with ScriptedImap(messages={1: message("a"), 2: message("b")}) as server:
        server.folders[b"Done"] = Mailbox({})
        account = polled(add(server))
        work()
        server.folders[b"Done"].messages[1] = server.messages.pop(1)
        reconciled(account)
    assert [event["type"] for event in told()].count("message.new") == 2
    (moved,) = told("message.moved")
    assert moved["data"] == {"folder": "Done", "from": "INBOX"}
    assert told("message.expunged") == []


def test_a_message_that_leaves_the_server_is_told_once(scripted: System) -> None:
    with ScriptedImap(messages={1: message("a"), 2: message("b")}) as server:
        account = polled(add(server))
        work()
        del server.messages[1]
        account = reconciled(account)
        reconciled(account)
    (expunged,) = told("message.expunged")
    assert expunged["data"] == {"folder": "INBOX"}


def test_a_uidvalidity_reset_announces_nothing(scripted: System) -> None:
    with ScriptedImap(messages={n: message(f"number {n}") for n in range(1, 6)}) as server:
        account = polled(add(server))
        work()
        before = told()
        server.uidvalidity = 9
        account = polled(account)
        reconciled(account)
    assert told() == before


def test_a_re_upload_under_a_new_uid_announces_nothing_new(scripted: System) -> None:
    with ScriptedImap(messages={1: message("a")}) as server:
        account = polled(add(server))
        work()
        server.messages[2] = server.messages.pop(1)
        reconciled(account)
    assert [event["type"] for event in told()].count("message.new") == 1


def test_processing_a_message_again_and_at_once_announces_it_once(
    system: System, address: str
) -> None:
    system.dovecot.deliver_many(address, [message(f"number {n}") for n in range(8)])
    account = account_row(system.add_account(address))
    polled(account)
    with database.connected():
        ids = [row.id for row in EmailRawMessage.select(EmailRawMessage.id)]
    threads = [threading.Thread(target=import_messages.fn, args=(ids,)) for _ in range(4)]
    threads += [threading.Thread(target=process_message.fn, args=(one,)) for one in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work()
    assert sorted(event["message_id"] for event in told("message.new")) == sorted(ids)


def test_a_crash_before_the_commit_announces_nothing_and_after_it_once(
    embedded: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.dovecot.deliver(address, message("a"))
    polled(account_row(embedded.add_account(address)))
    real = process._count_attachments

    def dies(*args: Any) -> None:
        real(*args)
        raise RuntimeError("the process dies before its commit")

    monkeypatch.setattr(process, "_count_attachments", dies)
    with pytest.raises(RuntimeError):
        work()
    assert told("message.new") == []
    monkeypatch.setattr(process, "_count_attachments", real)
    work()
    work()
    assert len(told("message.new")) == 1


def test_what_has_to_be_processed_anew_is_not_announced_again(system: System, address: str) -> None:
    system.dovecot.deliver(address, WITH_ATTACHMENT)
    account = account_row(system.add_account(address))
    polled(account)
    work()
    # When the attachment's row is lost, and a check has the message processed once more
    with database.transaction():
        EmailAttachment.delete().execute()
    tally = fsck.Tally()
    list(fsck.check(account_row(account.uuid), tally, repair=True))
    work()
    with database.connected():
        assert EmailAttachment.select().count() == 1
    assert len(told("message.new")) == 1


WITH_ATTACHMENT = (
    b'Subject: a\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n\r\ntext\r\n--b\r\n'
    b'Content-Disposition: attachment; filename="a.bin"\r\n\r\nattached\r\n--b--\r\n'
)
#: Polls an account, and processes what came, in a process of its own.
ONE_PASS = """
import sys
from mailpoll import database
from mailpoll.actors import poll, process
from mailpoll.models import EmailRawMessage
poll.poll(int(sys.argv[1]), None)
with database.connected():
    ids = [row.id for row in EmailRawMessage.select().where(EmailRawMessage.status == "stored")]
process.process(ids)
"""


@pytest.mark.parametrize(
    "point",
    [
        *("blobs-durable", "before-commit", "committed", "announced"),
        *("claimed", "attachments-stored", "before-finish", "finished"),
    ],
)
def test_a_message_is_announced_once_whichever_step_the_process_dies_behind(
    scripted: System, point: str
) -> None:
    with ScriptedImap(messages={1: WITH_ATTACHMENT}) as server:
        account = add(server)
        fault = {"MAILPOLL_TEST": "1", "MAILPOLL_FAULT": f"{point}:kill:1"}
        command = [sys.executable, "-c", ONE_PASS, str(account.id)]
        died = subprocess.run(command, env={**os.environ, **fault}, check=False)
        assert died.returncode == -signal.SIGKILL
        assert len(told("message.new")) == (point == "finished")
        for _ in range(2):
            with database.transaction():
                EmailAccount.update(lease_until=None).execute()
            account = polled(account)
            work()
    assert len(told("message.new")) == 1


def test_a_failed_message_is_told_with_its_reason_and_new_only_after_a_replay(
    embedded: System, address: str
) -> None:
    embedded.dovecot.deliver(address, message("a"))
    account = embedded.add_account(address)
    polled(account_row(account))
    with database.connected():
        row = EmailRawMessage.get()
    blob = runtime.storage().open(row.storage_key, row.storage_type).read()
    runtime.storage().delete_account(account)
    work()
    (failed,) = told("message.failed")
    assert failed["data"]["reason"] == "the raw message is missing from the store"
    assert told("message.new") == []
    from mailpoll.blobs import NewBlob

    runtime.storage().put([NewBlob(row.storage_key, row.size, row.sha256, blob)])
    assert replay.one(row)
    work()
    assert len(told("message.new")) == 1


# --- accounts


def test_changes_of_an_accounts_state_and_its_finished_import_are_told(
    system: System, address: str
) -> None:
    system.dovecot.deliver(address, message("a"))
    account = system.add_account(address)
    system.poll_and_process(account)
    system.post(f"/admin/email-accounts/{account}/pause")
    system.post(f"/admin/email-accounts/{account}/pause")
    system.post(f"/admin/email-accounts/{account}/resume")
    assert len(told("account.imported")) == 1
    assert [event["data"]["state"] for event in told("account.state")] == ["paused", "active"]


def test_a_poll_that_is_released_twice_tells_its_end_once(scripted: System) -> None:
    with ScriptedImap() as server:
        account = EmailAccount.lease(add(server).id, None, 60)
        assert account is not None
        # As when the process is told to end while its first release is committed
        columns = {"state": "auth_failed", "last_error": "no"}
        assert [account.release(**columns) for _ in range(2)] == [True, False]
    assert len(told("account.state")) == 1


def test_refused_logins_are_told_with_the_reason(scripted: System) -> None:
    with ScriptedImap() as server:
        account = add(server)
        account = polled(account)
        no = b"{tag} NO [AUTHENTICATIONFAILED] wrong password\r\n"
        server.rules = [Rule("LOGIN", no)]
        for _ in range(4):
            account = polled(account)
    (event,) = told("account.state")
    assert event["data"]["state"] == "auth_failed"
    assert event["data"]["reason"]


# --- the order of readers


def test_numbers_have_no_gap_and_none_is_missed_while_transactions_commit_in_any_order(
    system: System,
) -> None:
    # Given writers whose transactions overlap, some of which roll back
    seen: list[int] = []
    stopped = threading.Event()

    def write(number: int) -> None:
        for round_ in range(15):
            try:
                with database.transaction(durable=False):
                    EmailEvent.add(EventType.STORAGE_FALLBACK, data={"n": [number, round_]})
                    stopped.wait(0.002 * ((number + round_) % 4))
                    if round_ % 5 == 4:
                        raise RuntimeError
            except RuntimeError:
                continue

    def read() -> None:
        while not stopped.is_set() or events.last() > (seen[-1] if seen else 0):
            seen.extend(event.number for event in events.read(seen[-1] if seen else 0, 7))

    readers = [threading.Thread(target=read)]
    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stopped.set()
    readers[0].join()
    # Then the reader has seen each committed event once, in order
    assert seen == list(range(1, 6 * 12 + 1))
    rows = [tuple(event.data["n"]) for event in events.read(0, 1_000)]
    for number in range(6):
        assert [n for n in rows if n[0] == number] == sorted(n for n in rows if n[0] == number)


def test_old_events_are_removed_but_not_before_every_reader_has_them(system: System) -> None:
    with database.transaction():
        for _ in range(5):
            EmailEvent.add(EventType.STORAGE_FALLBACK)
    events.number_all()
    long_ago = database.now().replace(year=2020)
    with database.transaction():
        EmailEvent.update(created_at=long_ago).execute()
    assert events.forget(30, 3) == 3
    assert [event.number for event in events.read(0, 10)] == [4, 5]
    with database.transaction():
        EmailEvent.add(EventType.STORAGE_RECOVERED)
    assert events.forget(30, None) == 2
    assert [event.number for event in events.read(0, 10)] == [6]


# --- the API


def test_events_are_read_page_by_page_and_by_type_and_account(system: System, address: str) -> None:
    system.dovecot.deliver_many(address, [message(f"number {n}") for n in range(3)])
    account = system.add_account(address)
    system.poll_and_process(account)
    everything = system.get("/admin/events")["items"]
    pages: list[Any] = []
    after = 0
    while page := system.get("/admin/events", after=after, limit=2)["items"]:
        pages += page
        after = page[-1]["id"]
    assert pages == everything
    assert system.get("/admin/events", account=account)["items"] == everything
    types = {e["type"] for e in system.get("/admin/events", types="account.imported")["items"]}
    assert types == {"account.imported"}
    # Behind a full page there may be more; else all was looked through up to now
    last = everything[-1]["id"]
    assert system.get("/admin/events", limit=2)["last"] == everything[1]["id"]
    assert system.get("/admin/events", types="fsck.difference")["last"] == last
    assert system.get("/admin/events", types="fsck.difference", after=last + 5)["last"] == last + 5
    assert system.get("/admin/events", newest=True, limit=2)["last"] == last


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", "types=message.nwe", "limit=0", "wait=26", "account=7", "x=1"]
)
def test_wrong_queries_are_refused_by_name(embedded: System, query: str) -> None:
    answer = embedded.api.simulate_get("/admin/events", query_string=query)
    assert answer.status_code == 422
    assert answer.json["errors"][0]["field"] == query.partition("=")[0]


def test_a_reader_waits_for_the_next_event_and_gets_it_at_once(system: System) -> None:
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.append(system.get("/admin/events", wait=20)))
    reader.start()
    with database.transaction():
        EmailEvent.add(EventType.STORAGE_FALLBACK)
    reader.join(10)
    assert [event["type"] for event in got[0]["items"]] == ["storage.fallback"]


def test_more_who_wait_than_places_are_sent_away_and_others_are_served(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot
) -> None:
    variables = SETS["embedded"](request, tmp_path)
    more = {"MAILPOLL_WEB_THREADS": "2"}
    got: list[Any] = []
    with contextmanager(run_system)(variables, tmp_path, dovecot, **more) as system:

        def wait_for_events() -> None:
            answer = system.api.simulate_get("/admin/events?wait=20")
            while answer.status_code == 503:  # the look below took the only place for a moment
                answer = system.api.simulate_get("/admin/events?wait=20")
            got.append(answer.json)

        reader = threading.Thread(target=wait_for_events)
        reader.start()
        wait_until(lambda: system.api.simulate_get("/admin/events?wait=1").status_code == 503)
        assert system.get("/admin/events")["items"] == []
        with database.transaction():
            EmailEvent.add(EventType.STORAGE_FALLBACK)
        reader.join(10)
        assert got[0]["last"] == 1


def test_who_waits_for_rare_events_looks_through_each_event_once(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.transaction():
        for _ in range(3):
            EmailEvent.add(EventType.STORAGE_FALLBACK)
    looks: list[int] = []
    read = events.read

    def noted(after: int, *rest: Any) -> list[events.Event]:
        looks.append(after)
        if len(looks) == 3:
            with database.transaction():
                EmailEvent.add(EventType.FSCK_DIFFERENCE)
        return read(after, *rest)

    monkeypatch.setattr(events, "read", noted)
    monkeypatch.setattr(events, "LOOK", 0)
    (found,), upto = events.look(0, 10, 60, ["fsck.difference"])
    assert (found.number, upto, looks) == (4, 4, [0, 3, 3])


def test_a_stream_goes_on_behind_the_last_event_that_its_reader_got(system: System) -> None:
    with database.transaction():
        for _ in range(3):
            EmailEvent.add(EventType.STORAGE_FALLBACK)
    stream = iter(_stream(after=1))
    assert next(stream) == b": mailpoll\n\n"
    for number in (2, 3):
        lines = next(stream).decode().splitlines()
        assert lines[0] == f"id: {number}"
        assert lines[1] == "event: storage.fallback"
        assert lines[2].startswith('data: {"id":')


@pytest.mark.queue
def test_a_stream_goes_over_http_and_a_reader_who_left_gives_its_place_back(
    embedded: System, tmp_path: Path
) -> None:
    def opened(web: Web, **headers: str) -> http.client.HTTPResponse:
        headers |= {"Authorization": f"Bearer {TOKEN}"}
        connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)
        connection.request("GET", "/admin/events/stream?after=0", headers=headers)
        return connection.getresponse()

    def event(answer: http.client.HTTPResponse) -> list[bytes]:
        """The lines of the next event."""
        lines = iter(answer.readline, b"")
        return list(itertools.takewhile(bytes.strip, (x for x in lines if not x.startswith(b":"))))

    def happen() -> None:
        with database.transaction():
            EmailEvent.add(EventType.STORAGE_FALLBACK)

    happen()
    # Half of the threads may wait for events: one
    with running(tmp_path, MAILPOLL_WEB_THREADS="2", WEB_CONCURRENCY="1") as web:
        with opened(web) as answer:
            assert (answer.status, answer.getheader("Content-Type")) == (200, "text/event-stream")
            assert answer.readline() == b": mailpoll\n"
            assert answer.readline() == b"\n"
            assert event(answer)[0] == b"id: 1\n"
            happen()
            assert event(answer)[0] == b"id: 2\n"
            with opened(web) as other:
                assert other.status == 503
        happen()

        def again() -> bool:
            happen()  # what is written to who has left tells that he has
            with opened(web, **{"Last-Event-ID": "3"}) as answer:
                if answer.status != 200:
                    return False
                answer.readline()
                answer.readline()
                assert event(answer)[0] == b"id: 4\n"
                return True

        wait_until(again)


def _stream(after: int) -> Any:
    from mailpoll.web.events import Waiting, _Stream

    waiting = Waiting(2)
    waiting.enter()
    return _Stream(waiting, events.follow(after, 60), lambda: True)


def test_events_of_a_deleted_account_go_with_it(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("a"))
    account = system.add_account(address)
    system.poll_and_process(account)
    assert told()
    assert system.api.simulate_delete(f"/admin/email-accounts/{account}").status_code == 202
    system.work_until(lambda: not told())


def test_mail_that_falls_back_to_local_files_is_told_and_its_return_too(system: System) -> None:
    events.note_storage(fallen_back=False)
    events.note_storage(fallen_back=True)
    events.note_storage(fallen_back=True)
    events.note_storage(fallen_back=False)
    assert [event["type"] for event in told()] == ["storage.fallback", "storage.recovered"]


def test_two_who_find_that_mail_has_fallen_back_tell_it_once(system: System) -> None:
    # Given one whose transaction is open, and another that looks meanwhile
    other = threading.Thread(target=events.note_storage, kwargs={"fallen_back": True})
    with database.transaction():
        events.note_storage(fallen_back=True)
        other.start()
        other.join(0.5)
    other.join(20)
    assert [event["type"] for event in told()] == ["storage.fallback"]
