"""``DELETE /admin/email-accounts/{id}``: everything of the account goes, whatever is going on."""

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from mailpoll import accounts, actors, database, runtime
from mailpoll.actors import process
from mailpoll.actors.delete import LEASE
from mailpoll.actors.poll import poll
from mailpoll.blobs import NewBlob, Storage, StorageType, StoreUnavailable, blob_key
from mailpoll.models import SHARDS, EmailAccountDay, EmailAttachment, EmailJob, EmailRawMessage
from tests.integration.rows import account_row, blobs, change_jobs, counts
from tests.integration.system import System, message, wait_until

URL = "/admin/email-accounts"
ATTACHED = (
    'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n\r\ntext\r\n--b\r\n'
    'Content-Disposition: attachment; filename="a{0}.bin"\r\n\r\nattached {0}\r\n--b--\r\n'
)


def new_blob(account: str) -> NewBlob:
    sha256 = hashlib.sha256(b"late").hexdigest()
    return NewBlob(blob_key(account, sha256), 4, sha256, b"late")


def letters(count: int) -> list[bytes]:
    return [f"Subject: {n}\r\n".encode() + ATTACHED.format(n).encode() for n in range(count)]


def delete(system: System, account: str, status: int = 202) -> dict[str, object]:
    answer = system.api.simulate_delete(f"{URL}/{account}")
    assert answer.status_code == status, answer.text
    return dict(answer.json)


def done(system: System, job: dict[str, object]) -> bool:
    return bool(system.get(f"/admin/jobs/{job['id']}")["state"] == "done")


def keys(system: System) -> set[str]:
    """Every entry of every queue, dead and delayed ones too."""
    return {
        f"{key.decode()} {field.decode()}"
        for key in system.broker.client.scan_iter("mailpoll:*.msgs")
        for field in system.broker.client.hkeys(key)
    }


def test_nothing_is_left(system: System, address: str) -> None:
    # Given an account with mail, attachments, an unfetched message and queue entries
    system.dovecot.deliver_many(address, letters(250))
    account = system.add_account(address)
    system.poll_and_process(account)
    row = account_row(account)
    (first, *_) = system.messages(account)
    actors.poll_account.send(row.id)
    actors.poll_account.send_with_options(args=(row.id,), delay=3_600_000)
    actors.continue_import.send(row.id)
    # ... one of them for a message that another worker has processed by now
    with database.connected():
        actors.process_message.send(EmailRawMessage.get(EmailRawMessage.account == row.id).id)
    # When it is deleted
    job = delete(system, account)
    # Then nothing can be read any more, at once
    for path in ("", "/stats", "/messages"):
        assert system.api.simulate_get(f"{URL}/{account}{path}").status_code == 404
    for path in ("", "/raw", "/attachments/0"):
        assert system.api.simulate_get(f"/admin/messages/{first['id']}{path}").status_code == 404
    for verb in ("poll", "pause", "resume", "test"):
        system.post(f"{URL}/{account}/{verb}", 404)
    assert system.api.simulate_patch(f"{URL}/{account}", json={}).status_code == 404
    system.post(f"/admin/messages/{first['id']}/retry", 404)
    assert system.get(URL)["items"] == []
    # And its secrets are gone
    row = account_row(account)
    assert (row.credential, row.username) == ("", "")
    assert address not in row.address
    # And when the job is done, so is everything else
    system.work_until(lambda: done(system, job))
    assert counts() == {"email_jobs": 1}
    assert blobs(account) == []
    assert keys(system) == set()
    shown = system.get(f"/admin/jobs/{job['id']}")
    assert shown["counts"]["email_raw_messages"] == 250
    assert sum(n for name, n in shown["counts"].items() if name.startswith("objects_")) == 500
    assert shown["finished_at"] is not None
    assert system.get("/admin/stats")["messages"] == 0


def test_asking_twice_answers_with_the_same_job(system: System, address: str) -> None:
    account = system.add_account(address)
    job = delete(system, account)
    assert delete(system, account)["id"] == job["id"]
    system.work_until(lambda: done(system, job))
    again = delete(system, account, 200)
    assert (again["id"], again["state"]) == (job["id"], "done")
    assert counts() == {"email_jobs": 1}


def test_other_accounts_keep_everything(system: System, address: str) -> None:
    other = f"other-{address}"
    for name in (address, other):
        system.dovecot.deliver_many(name, letters(3))
    kept, deleted = system.add_account(other), system.add_account(address)
    for account in (kept, deleted):
        system.poll_and_process(account)
    before = system.messages(kept)
    job = delete(system, deleted)
    system.work_until(lambda: done(system, job))
    assert system.messages(kept) == before
    for item in before:
        for path in ("raw", "attachments/0"):
            url = f"/admin/messages/{item['id']}/{path}"
            assert system.api.simulate_get(url).status_code == 200


def test_the_address_can_be_added_again(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("kept at the server"))
    first = system.add_account(address)
    job = delete(system, first)
    second = system.add_account(address)
    assert second != first
    system.poll_and_process(second)
    system.work_until(lambda: done(system, job))
    assert len(system.messages(second)) == 1
    assert system.api.simulate_get(f"{URL}/{first}").status_code == 404


def test_deleting_while_mail_comes_in_leaves_nothing(system: System, address: str) -> None:
    # Given workers that are importing
    system.dovecot.deliver_many(address, letters(600))
    account = system.add_account(address)
    with system.workers(8):
        wait_until(lambda: system.get(f"{URL}/{account}/stats")["messages"] > 0)
        # When the account is deleted
        job = delete(system, account)
        wait_until(lambda: done(system, job))
        wait_until(lambda: not keys(system))
        # A poll that stores while the stores are emptied takes its blobs away again itself
        wait_until(lambda: not blobs(account))
    # Then what they were doing left nothing either
    assert counts() == {"email_jobs": 1}
    assert blobs(account) == []


@pytest.mark.parametrize("step", ["queues", "messages", "account", "blobs", "scan"])
def test_a_job_whose_worker_died_is_resumed_when_its_lease_ends(
    system: System, address: str, step: str
) -> None:
    system.dovecot.deliver_many(address, letters(3))
    account = system.add_account(address)
    system.poll_and_process(account)
    job = delete(system, account)
    with database.connected():
        row = EmailJob.get(EmailJob.uuid == job["id"])
    system.broker.flush_all()
    # Given a worker that did all before this step and died in it, holding the lease
    steps = ["queues", "messages", "account", "blobs", "scan"]
    for done_before in itertools.takewhile(lambda name: name != step, steps):
        _run_step(system, row, done_before)
    change_jobs(lease_until=database.now() + timedelta(seconds=LEASE), step=step)
    # Then nobody else takes the job while the lease holds
    actors.delete_account.fn(row.id)
    assert not done(system, job)
    # And the sweep hands it out afterwards
    change_jobs(lease_until=database.now() - timedelta(seconds=1))
    actors.sweep.fn()
    system.work_until(lambda: done(system, job))
    assert counts() == {"email_jobs": 1}
    assert blobs(account) == []


def _run_step(system: System, row: EmailJob, step: str) -> None:
    from mailpoll.actors import delete as steps

    match step:
        case "queues":
            steps._clear(row, "queue_entries")
        case "messages":
            while steps._delete_messages(row):
                pass
        case "account":
            steps._delete_account_rows(row)
        case "blobs":
            for store_type in runtime.storage().stores:
                steps._clear(row, f"objects_{store_type}")


def test_a_deletion_and_a_commit_do_not_wait_in_a_circle(system: System, address: str) -> None:
    # Given two accounts that are counted in the same rows, one of them with its last day first
    rows = [account_row(system.add_account(f"{n}-{address}")) for n in range(SHARDS + 1)]
    doomed, other = rows[0], rows[-1]
    assert doomed.id % SHARDS == other.id % SHARDS
    for day in ("2026-01-02", "2026-01-01"):
        with database.transaction():
            EmailAccountDay.add(doomed.id, day, messages=1)
    job = delete(system, doomed.uuid)
    with database.connected():
        number = EmailJob.get(EmailJob.uuid == job["id"]).id
    begun = threading.Event()

    def commit() -> None:
        with database.transaction():
            EmailAccountDay.add(other.id, "2026-01-01", messages=1)
            begun.set()
            time.sleep(0.5)
            EmailAccountDay.add(other.id, "2026-01-02", messages=1)

    # When it is deleted while a commit of the other is under way
    with ThreadPoolExecutor(1) as pool:
        committed = pool.submit(commit)
        assert begun.wait(10)
        actors.delete_account.fn(number)
        committed.result()
    # Then both are done
    assert done(system, job)
    days = system.get("/admin/stats")["days"]
    assert {day["day"]: day["messages"] for day in days} == {"2026-01-01": 1, "2026-01-02": 1}
    with database.transaction():
        EmailAccountDay.delete().execute()  # no mail stands behind them


def test_a_message_that_a_worker_is_finishing_goes_with_its_attachments(
    system: System, address: str
) -> None:
    # Given a worker that has written a message's attachments, and has not committed yet
    system.dovecot.deliver_many(address, letters(1))
    account = system.add_account(address)
    poll(account_row(account).id, None)
    job = delete(system, account)
    with database.connected():
        message, number = EmailRawMessage.get(), EmailJob.get(EmailJob.uuid == job["id"]).id
    written = threading.Event()

    def finish() -> None:
        with database.transaction():
            EmailRawMessage.update(status="processed").execute()
            EmailAttachment.create(
                account=message.account_id,
                message=message,
                position=0,
                **dict.fromkeys(("name", "safe_name", "content_type", "content_id"), ""),
                inline=False,
                size=0,
                sha256="",
                storage_type="local",
                storage_key="",
            )
            written.set()
            time.sleep(0.5)

    worker = threading.Thread(target=finish)
    worker.start()
    written.wait()
    # When the deletion comes to it
    actors.delete_account.fn(number)
    worker.join()
    # Then both are gone
    assert done(system, job)
    assert counts() == {"email_jobs": 1}


def test_a_deletion_that_fails_is_tried_again_at_once(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = system.add_account(address)
    job = delete(system, account)
    with database.connected():
        number = EmailJob.get(EmailJob.uuid == job["id"]).id

    def away(*_: object) -> int:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "delete_account", away)
        with pytest.raises(StoreUnavailable):
            actors.delete_account.fn(number)
    actors.delete_account.fn(number)
    assert done(system, job)


def test_a_message_that_is_processed_meanwhile_leaves_no_attachment(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that has read a message
    system.dovecot.deliver_many(address, letters(1))
    account = system.add_account(address, test=False)
    poll(account_row(account).id, None)
    with database.connected():
        (row,) = EmailRawMessage.select()
    put = process._store_attachments

    def put_after_deletion(*arguments: Any) -> Any:
        job = accounts.delete(account)
        assert job
        actors.delete_account.fn(job.id)
        assert blobs(account) == []
        attachments = put(*arguments)
        assert blobs(account) != []
        return attachments

    # When its account is deleted before it puts the attachments into the store
    monkeypatch.setattr(process, "_store_attachments", put_after_deletion)
    actors.process_message.fn(row.id)
    # Then it takes them away again
    assert blobs(account) == []
    assert counts() == {"email_jobs": 1}


def two_attachments() -> bytes:
    """A message of which a store can take a half."""
    part = "--b\r\nContent-Disposition: attachment; filename={0}.bin\r\n\r\nattached {0}\r\n"
    parts = "".join(map(part.format, (1, 2)))
    head = 'Subject: two\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n'
    return f"{head}{parts}--b--\r\n".encode()


def half_put(account: str) -> Callable[[Sequence[NewBlob]], StorageType]:
    """A put that takes the first blob, and fails; meanwhile the account was deleted."""
    storage = runtime.storage()
    put = storage.put

    def fail(blobs_: Sequence[NewBlob]) -> StorageType:
        job = accounts.delete(account)
        assert job
        actors.delete_account.fn(job.id)
        assert blobs(account) == []
        put(blobs_[:1])
        assert len(blobs_) > len(blobs(account)) == 1
        raise StoreUnavailable("away")

    return fail


def stored(system: System, address: str, *mail: bytes) -> tuple[str, int]:
    """An account whose mail was polled and waits to be processed, and a message of it."""
    system.dovecot.deliver_many(address, mail)
    account = system.add_account(address, test=False)
    poll(account_row(account).id, None)
    with database.connected():
        query = EmailRawMessage.select().where(EmailRawMessage.account == account_row(account).id)
        return account, query.first().id


def test_a_store_that_fails_half_way_leaves_no_attachment_of_a_deleted_account(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, message_id = stored(system, address, two_attachments())
    with monkeypatch.context() as patched:
        patched.setattr(runtime.storage(), "put", half_put(account))
        actors.process_message.fn(message_id)
    assert blobs(account) == []
    assert counts() == {"email_jobs": 1}


def test_what_was_put_after_a_deletion_by_who_could_not_take_it_away_goes_within_an_hour(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store that takes an attachment of a deleted account, and is away from then on
    account, message_id = stored(system, address, two_attachments())
    other = system.add_account(f"other-{address}", test=False)
    runtime.storage().put([new_blob(other)])

    def away(_: str) -> int:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        half = half_put(account)

        def put(blobs_: Sequence[NewBlob]) -> StorageType:
            try:
                return half(blobs_)
            finally:
                patched.setattr(runtime.storage(), "delete_account", away)

        patched.setattr(runtime.storage(), "put", put)
        with pytest.raises(StoreUnavailable):
            actors.process_message.fn(message_id)
        actors.process_message.fn(message_id)
    assert len(blobs(account)) == 1
    # When the hourly task has run
    actors.empty_deleted.fn()
    # Then that is gone, and nothing else
    assert blobs(account) == []
    assert len(blobs(other)) == 1


def test_a_deletion_that_is_not_done_is_left_to_its_job(system: System, address: str) -> None:
    account, _ = stored(system, address, two_attachments())
    accounts.delete(account)
    actors.empty_deleted.fn()
    assert len(blobs(account)) == 1


def test_while_a_store_is_away_deleted_accounts_wait(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = system.add_account(address, test=False)
    job = accounts.delete(account)
    assert job
    actors.delete_account.fn(job.id)
    runtime.storage().put([new_blob(account)])

    def away(_: object) -> list[str]:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        for store in runtime.storage().stores.values():
            patched.setattr(type(store), "accounts", away)
        actors.empty_deleted.fn()
    assert len(blobs(account)) == 1
    actors.empty_deleted.fn()
    assert blobs(account) == []


def test_a_job_that_is_done_is_not_run_again(system: System, address: str) -> None:
    account = system.add_account(address)
    job = delete(system, account)
    system.work_until(lambda: done(system, job))
    before = system.get(f"/admin/jobs/{job['id']}")
    with database.connected():
        actors.delete_account.fn(EmailJob.get(EmailJob.uuid == job["id"]).id)
    assert system.get(f"/admin/jobs/{job['id']}") == before


def test_an_account_that_is_not_there(system: System) -> None:
    assert delete(system, str(uuid4()), 404)["status"] == 404


@pytest.mark.parametrize("job", ["1", "%00", "00000000-0000-4000-8000-000000000000"])
def test_a_job_that_is_not_there(system: System, job: str) -> None:
    assert system.api.simulate_get(f"/admin/jobs/{job}").status_code == 404
