"""Work that fails: what is tried again, how often, and what is left when it is not."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest

from mailpoll import accounts, actors, database, parsing, runtime, turns
from mailpoll.actors import maintain, process
from mailpoll.actors.poll import poll
from mailpoll.blobs import StoreUnavailable
from mailpoll.models import (
    TABLES,
    EmailAccountDay,
    EmailAttachment,
    EmailEvent,
    EmailJob,
    EmailRawMessage,
)
from tests.integration.queue_entries import enqueued, entries, idle
from tests.integration.rows import account_row, change_messages, counts
from tests.integration.system import PATIENCE, System, message

pytestmark = pytest.mark.queue

ATTACHED = (
    'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n\r\ntext\r\n--b\r\n'
    'Content-Disposition: attachment; filename="a.bin"\r\n\r\nattached {0}\r\n--b--\r\n'
)

#: A worker process in which the parser crashes, as native code can, on one message.
WORKER = """
import os, signal
from dramatiq import Worker
from mailpoll import parsing
from mailpoll.actors import broker

parse = parsing.parse

def crash(raw):
    if b"Subject: poison" in raw:
        os.kill(os.getpid(), signal.SIGKILL)
    return parse(raw)

parsing.parse = crash
Worker(broker, queues={"process", "import"}, worker_threads=2, worker_timeout=50).start()
signal.pause()
"""


def stored(system: System, address: str, *mail: bytes) -> list[EmailRawMessage]:
    """Messages whose raw bytes are stored, and that nothing in any queue knows of."""
    system.dovecot.deliver_many(address, mail)
    account = system.add_account(address, test=False)
    poll(account_row(account).id, None)
    system.broker.flush_all()
    with database.connected():
        found = list(EmailRawMessage.select().order_by(EmailRawMessage.id))
    assert len(found) == len(mail)
    return found


def reread(row: EmailRawMessage) -> EmailRawMessage:
    with database.connected():
        return EmailRawMessage.get_by_id(row.id)


def figures(system: System) -> dict[str, int]:
    return dict(system.get("/admin/stats")["by_status"])


def everything() -> dict[str, list[dict[str, Any]]]:
    with database.connected():
        return {
            table._meta.table_name: sorted(table.select().dicts(), key=repr) for table in TABLES
        }


def failures(system: System, actor: str) -> int:
    tasks = system.get("/admin/tasks")["tasks"]
    return sum(task["failures"] for task in tasks if task["actor"] == actor)


@contextmanager
def unreadable(row: EmailRawMessage) -> Iterator[None]:
    """A raw file that cannot be read for the time being: a link loop, where root could read on."""
    path = runtime.storage()._primary.path(row.storage_key)
    aside = path.with_name("aside")
    path.rename(aside)
    path.symlink_to(path)
    yield
    aside.replace(path)


def test_a_fault_that_can_pass_is_tried_three_times_more_with_growing_pauses(
    embedded: System, address: str
) -> None:
    # Given a message whose raw bytes cannot be read at the moment
    (row,) = stored(embedded, address, message("hard to read"))
    with unreadable(row), enqueued(embedded) as noted:
        # When it is processed
        actors.process_message.send(row.id)
        embedded.work_until(lambda: failures(embedded, "process_message") == 4)
    # Then it was sent once and tried again three times, each time later
    # (a delayed message is sent a second time, from the delayed queue to its own)
    pauses = [delay for _, _, delay in noted.seen if delay is not None]
    assert len(pauses) == 3
    assert 0 < pauses[0] <= pauses[1] <= pauses[2]
    assert pauses[2] > pauses[0]
    # And the message is as it was, for it is not to blame, and no dead letter is left of it
    assert (reread(row).status, reread(row).attempts) == ("stored", 0)
    assert embedded.get("/admin/tasks")["dead"] == []
    # And when the fault has passed, a sweep brings it in
    with database.transaction():
        EmailRawMessage.update(next_attempt_at=database.now()).execute()
    actors.sweep.fn()
    embedded.work_until(lambda: reread(row).status == "processed")


@pytest.mark.leaves_damage
def test_what_will_not_pass_is_not_tried_again(system: System, address: str) -> None:
    # Given a message whose raw bytes are gone for good
    (row,) = stored(system, address, message("lost"))
    runtime.storage().delete([row.storage_key], row.storage_type)
    with enqueued(system) as noted:
        # When it is processed
        actors.process_message.send(row.id)
        system.work_until(lambda: reread(row).status == "failed")
    # Then that was the only attempt, and the reason is told
    assert [actor for actor, _, _ in noted.seen] == ["process_message"]
    assert entries(system, "process") == []
    assert reread(row).attempts == 1
    assert reread(row).error == "the raw message is missing from the store"
    assert figures(system)["failed"] == 1


def test_a_failed_poll_is_not_a_retry_but_a_later_poll(embedded: System, address: str) -> None:
    account = embedded.add_account(address, password="wrong", test=False)
    with enqueued(embedded) as noted:
        shown = f"/admin/email-accounts/{account}"
        embedded.work_until(lambda: embedded.get(shown)["failures"] == 1 and idle(embedded))
    assert noted.seen == []
    assert entries(embedded, "poll") == []
    assert embedded.get("/admin/tasks")["dead"] == []


def test_a_failed_message_can_be_replayed(system: System, address: str) -> None:
    (row,) = stored(system, address, message("again"))
    change_messages(status="failed", error="a parser of the past", attempts=4)
    system.post(f"/admin/messages/{row.id}/retry", 202)
    system.work_until(lambda: reread(row).status == "processed")
    assert reread(row).error is None
    assert reread(row).subject == "again"


def test_a_message_that_kills_its_worker_is_given_up_and_its_neighbours_are_not(
    system: System, address: str
) -> None:
    # Given a message that crashes the parser among others of one import
    mail = [message(f"number {n}") for n in range(8)]
    rows = stored(system, address, *mail[:4], message("poison"), *mail[4:])
    poison = next(row for row in rows if b"Subject: poison" in raw(row))
    actors.import_messages.send([row.id for row in rows])
    deaths = 0
    # When workers die of it, one after the other, and the sweeper finds what they left behind
    while reread(poison).status == "stored":
        deaths += killed_worker()
        change_messages_that_wait(next_attempt_at=database.now())
        system.broker.flush_all()
        actors.sweep.fn()
    # Then it has failed after as many attempts as are allowed
    assert deaths == system.settings.max_attempts + 1
    assert reread(poison).error == f"given up after {deaths} attempts that did not end"
    # And the others are processed
    system.work_until(lambda: figures(system)["stored"] == 0)
    assert figures(system) == {"stored": 0, "processed": 8, "failed": 1}


def test_a_message_without_end_leaves_the_turn_to_others_and_is_given_up(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a message on which the parser never ends, among others of one import
    rows = stored(system, address, message("one"), message("endless"), message("three"))
    endless = next(row for row in rows if b"Subject: endless" in raw(row))
    parse = parsing.parse

    def never_ending(content: bytes) -> parsing.ParsedMessage:
        while b"Subject: endless" in content:
            time.sleep(0.001)
        return parse(content)

    monkeypatch.setattr(parsing, "parse", never_ending)
    monkeypatch.setattr(process, "PARSING", 0.1)
    # When they are processed together
    actors.import_messages.send([row.id for row in rows])
    # Then the others are processed
    system.work_until(lambda: figures(system)["processed"] == 2)
    # And the one is given up after as many attempts as are allowed
    while reread(endless).status == "stored":
        with suppress(turns.TurnTooLong):
            actors.import_messages.fn([endless.id])
        change_messages_that_wait(next_attempt_at=database.now())
        actors.sweep.fn()
    attempts = system.settings.max_attempts + 1
    assert reread(endless).error == f"given up after {attempts} attempts that did not end"


@pytest.mark.leaves_damage
def test_of_messages_that_are_processed_together_only_the_bad_one_fails(
    system: System, address: str
) -> None:
    # Given messages of one import, of which one's raw bytes are gone
    mail = [ATTACHED.format(n).encode() for n in range(5)]
    rows = stored(system, address, *mail)
    runtime.storage().delete([rows[2].storage_key], rows[2].storage_type)
    # When they are processed together
    actors.import_messages.send([row.id for row in rows])
    system.work_until(lambda: idle(system))
    # Then that one fails, and the others have all that is theirs
    assert figures(system) == {"stored": 0, "processed": 4, "failed": 1}
    assert reread(rows[2]).error == "the raw message is missing from the store"
    assert counts()["email_attachments"] == 4
    with database.connected():
        days = list(EmailAccountDay.select())
    assert sum(day.attachments for day in days) == 4
    assert sum(day.failures for day in days) == 1


def test_messages_over_which_a_worker_stumbles_together_are_tried_one_by_one(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given messages of one import, over one of which the parser has a bug
    rows = stored(system, address, message("one"), message("stumble"), message("three"))
    parse = parsing.parse

    def stumble(content: bytes) -> parsing.ParsedMessage:
        if b"Subject: stumble" in content:
            raise ZeroDivisionError
        return parse(content)

    monkeypatch.setattr(parsing, "parse", stumble)
    # When they are processed together
    actors.import_messages.send([row.id for row in rows])
    system.work_until(lambda: figures(system)["processed"] == 2)
    # Then the others are done, and the one goes the way of every fault
    assert [row.subject for row in map(reread, rows) if row.status == "processed"] == [
        "one",
        "three",
    ]
    monkeypatch.setattr(parsing, "parse", parse)
    system.work_until(lambda: figures(system)["processed"] == 3)


def test_while_the_store_is_away_no_attempt_of_an_import_counts(
    embedded: System, address: str
) -> None:
    rows = stored(embedded, address, *(message(f"number {n}") for n in range(3)))
    with unreadable(rows[1]), pytest.raises(StoreUnavailable):
        actors.import_messages.fn([row.id for row in rows])
    assert [(row.status, row.attempts) for row in map(reread, rows)] == [("stored", 0)] * 3
    # And the same entry of the queue does it when the store is back
    actors.import_messages.fn([row.id for row in rows])
    assert figures(embedded)["processed"] == 3


def killed_worker() -> bool:
    """Run a worker until it dies; whether that was by SIGKILL."""
    worker = subprocess.Popen([sys.executable, "-c", WORKER])
    try:
        return worker.wait(PATIENCE) == -signal.SIGKILL
    finally:
        worker.kill()
        worker.wait()


def raw(row: EmailRawMessage) -> bytes:
    with runtime.storage().open(row.storage_key, row.storage_type) as stream:
        return stream.read()


def change_messages_that_wait(**columns: Any) -> None:
    with database.transaction():
        EmailRawMessage.update(**columns).where(EmailRawMessage.status == "stored").execute()


def test_losing_every_redis_key_loses_no_message(system: System, address: str) -> None:
    # Given stored messages, new and imported ones, and a queue that lost them all
    rows = stored(system, address, *(message(f"number {n}") for n in range(20)))
    assert entries(system, "import") == entries(system, "process") == []
    with database.transaction():
        EmailRawMessage.update(imported=False).where(EmailRawMessage.id == rows[0].id).execute()
    # When the sweeper comes by too early, it leaves them alone: they may be on their way
    actors.sweep.fn()
    assert entries(system, "import") == entries(system, "process") == []
    # Then when their time is over, it sends each once, in its lane
    change_messages(next_attempt_at=database.now())
    for _ in range(3):
        actors.sweep.fn()
    assert sorted(entry.args[0] for entry in entries(system, "import")) == [
        [row.id] for row in rows[1:]
    ]
    assert [entry.args[0] for entry in entries(system, "process")] == [rows[0].id]
    system.work_until(lambda: figures(system)["processed"] == 20)


def test_a_long_import_hides_no_new_mail_from_the_sweeper(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given more overdue messages of an import than one pass looks at, in a queue that is busy
    monkeypatch.setattr(maintain, "SWEEP", 3)
    monkeypatch.setitem(maintain.BUSY, "import", 3)
    rows = stored(system, address, *(message(f"number {n}") for n in range(6)))
    change_messages(next_attempt_at=database.now() - timedelta(hours=1))
    for row in rows[:5]:
        actors.import_messages.send([row.id])
    # And a new message that the queue lost after them
    with database.transaction():
        new = EmailRawMessage.update(imported=False, next_attempt_at=database.now())
        new.where(EmailRawMessage.id == rows[5].id).execute()
    # When the sweeper comes, then it sends the new message, and the others once only
    actors.sweep.fn()
    assert [entry.args[0] for entry in entries(system, "process")] == [rows[5].id]
    assert len(entries(system, "import")) == 5


def test_processing_again_changes_nothing(system: System, address: str) -> None:
    mail = [f"Subject: {n}\r\n".encode() + ATTACHED.format(n).encode() for n in range(3)]
    rows = stored(system, address, *mail)
    for row in rows:
        actors.process_message.fn(row.id)
    before = everything()
    assert counts()["email_attachments"] == 3
    for row in rows:
        actors.process_message.fn(row.id)
        actors.import_messages.fn([row.id])
    assert everything() == before


def test_processing_many_times_at_once_has_one_effect(system: System, address: str) -> None:
    # Given messages, and what processing each of them once does
    mail = [f"Subject: {n}\r\n".encode() + ATTACHED.format(n).encode() for n in range(4)]
    rows = stored(system, address, *mail)
    for row in rows:
        actors.process_message.fn(row.id)
    once = comparable(everything())
    assert counts()["email_attachments"] == 4
    # When the same is done by eight threads, each message eight times at once
    undo_processing()
    for row in rows:
        for _ in range(8):
            actors.process_message.send(row.id)
    system.work_until(lambda: idle(system), threads=8)
    # Then the effect is the same
    assert comparable(everything()) == once


def undo_processing() -> None:
    with database.transaction():
        EmailAttachment.delete().execute()
        EmailEvent.delete().where(EmailEvent.type == "message.new").execute()
        EmailAccountDay.update(attachments=0, attachment_bytes=0).execute()
        EmailRawMessage.update(status="stored", attempts=0, parser=None).execute()


def comparable(tables: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    """Rows without what tells when, how often and in which order they were written."""
    passing = ("processed_at", "attempts", "updated_at")
    found = {}
    for name, rows in tables.items():
        numbered = name in ("email_attachments", "email_events")
        left_out = (*passing, "id", "created_at") if numbered else passing
        found[name] = sorted(
            repr({column: value for column, value in row.items() if column not in left_out})
            for row in rows
        )
    return found


def test_messages_in_flight_for_a_deleted_account_do_nothing(system: System, address: str) -> None:
    # Given an account with messages and polls in the queue
    rows = stored(system, address, message("one"), message("two"))
    account = rows[0].account_id
    (shown,) = system.get("/admin/email-accounts")["items"]
    # When it is fenced for its deletion, and the job has not begun
    accounts.delete(shown["id"])
    before = everything()
    for row in rows:
        actors.process_message.fn(row.id)
        actors.import_messages.fn([row.id])
    actors.poll_account.fn(account)
    actors.continue_import.fn(account)
    assert everything() == before
    # And when all is gone, neither do those that come later still
    with database.connected():
        (job,) = EmailJob.select()
    actors.delete_account.fn(job.id)
    assert counts() == {"email_jobs": 1}
    for row in rows:
        actors.process_message.send(row.id)
        actors.import_messages.send([row.id])
    actors.poll_account.send(account)
    actors.continue_import.send(account)
    system.work_until(lambda: idle(system))
    assert counts() == {"email_jobs": 1}
    assert system.get("/admin/tasks")["dead"] == []
