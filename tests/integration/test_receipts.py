"""What stays of a deleted account: how much was removed, and that a look found nothing."""

import hashlib
import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dramatiq import Message

from mailpoll import accounts, actors, database, queues, receipts, runtime, spool
from mailpoll.actors import delete as steps
from mailpoll.actors.poll import poll
from mailpoll.blobs import NewBlob, Storage, StorageType, StoreUnavailable, blob_key
from mailpoll.models import EmailJob
from tests.integration.conftest import _embedded, run_system
from tests.integration.rows import account_row, blobs, change_jobs, counts
from tests.integration.system import System, message, wait_until
from tests.integration.test_account_delete import delete, keys, letters
from tests.integration.test_cli import run
from tests.servers.dovecot import Dovecot

URL = "/admin/delete-jobs"


class Killed(BaseException):
    """The process ends here: nothing of it is run any more."""


def filled(system: System, address: str, mails: int) -> str:
    """An account with mail in two folders and attachments, processed, without queue entries."""
    system.dovecot.deliver_many(address, letters(mails))
    system.dovecot.deliver(address, letters(1)[0], folder="Files")
    account = system.add_account(address)
    system.poll_and_process(account)
    system.broker.flush_all()
    return account


def job_row(account: str) -> EmailJob:
    with database.connected():
        return EmailJob.get(EmailJob.account_uuid == account)


def run_job(account: str) -> None:
    actors.delete_account.fn(job_row(account).id)


def receipt(system: System, account: str) -> dict[str, Any]:
    return dict(system.get(f"{URL}/{job_row(account).uuid}"))


def stored(account: str) -> dict[str, dict[str, int]]:
    """What the stores list of an account: blobs and bytes."""
    found = {}
    for kind, store in runtime.storage().stores.items():
        sizes = [one.size for one in store.list_account(account)]
        found[str(kind)] = {"objects": len(sizes), "bytes": sum(sizes)}
    return found


def entries(system: System) -> set[str]:
    """Queue entries but for those that ask for the deletion itself."""
    return {entry for entry in keys(system) if "maintenance" not in entry}


def of_rows(found: dict[str, int]) -> dict[str, int]:
    """Those tables that have anything of an account."""
    shared = ("email_jobs", "email_hosts", "email_days")
    return {name: amount for name, amount in found.items() if name not in shared and amount}


def leave_things_behind(system: System, account: str) -> None:
    """Queue entries, a Redis key and temporary files, as live and killed processes have them."""
    row = account_row(account)
    actors.poll_account.send(row.id)
    actors.continue_import.send(row.id)
    actors.poll_account.send_with_options(args=(row.id,), delay=3_600_000)
    system.broker.client.zadd(f"mailpoll:limit:slots:account:{row.id}", {"member": 1})
    spool.new_file(account).write_bytes(b"half a message")
    (spool.directory() / f"{account}.directory").mkdir()
    if StorageType.LOCAL in runtime.storage().stores:
        root = system.settings.data_dir / "blobs"
        (root / ".tmp" / f"{account}.0123456789abcdef").write_bytes(b"half a blob")


def test_a_receipt_counts_what_there_was(system: System, address: str) -> None:
    # Given an account of which something is everywhere
    account = filled(system, address, 12)
    leave_things_behind(system, account)
    before, in_stores = of_rows(counts()), stored(account)
    temporary = len(steps._files(account))
    # When it is deleted
    answer = system.api.simulate_delete(f"/admin/email-accounts/{account}")
    run_job(account)
    # Then the receipt, which the answer named, has the numbers
    found = system.get(answer.headers["location"])
    assert found["id"] == answer.json["id"]
    assert (found["account_id"], found["state"]) == (account, "done")
    assert {name: amount for name, amount in found["rows"].items() if amount} == before
    assert found["stores"] == in_stores
    assert sum(store["objects"] for store in found["stores"].values()) == 24
    assert found["temporary_files"] == temporary >= 2
    assert (found["queue_entries"], found["redis_keys"]) == (3, 1)
    # And a look at every place has found nothing
    assert found["scan"]["empty"]
    assert (found["scan"]["rounds"], found["scan"]["machine"]) == (1, socket.gethostname())
    assert set(found["scan"]["found"].values()) == {0}
    assert {"email_locations", "queue_entries", "temporary_files"} <= found["scan"]["found"].keys()
    assert counts() == {"email_jobs": 1}
    assert blobs(account) == []
    assert entries(system) == set()
    assert steps._files(account) == []
    # And it is found by the account's id too, and in the list
    assert system.get(f"{URL}/{account}") == found
    assert system.get(URL)["items"] == [found]


def test_it_counts_the_same_however_often_the_job_is_killed(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job that works in many small pages
    account = filled(system, address, 7)
    leave_things_behind(system, account)
    before, in_stores = of_rows(counts()), stored(account)
    temporary = len(steps._files(account))
    delete(system, account)
    monkeypatch.setattr(steps, "PAGE", 3)
    monkeypatch.setattr(steps, "BLOBS", 4)
    survived: set[str] = set()

    def instant(*what: object) -> None:
        """Die the first time that the job comes here."""
        name = repr(what)
        if name not in survived:
            survived.add(name)
            raise Killed

    def dying(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            seen = [one for one in arguments if isinstance(one, str | list)]
            state = (job_row(account).counts, job_row(account).page, seen)
            instant(name, "before", state)
            answer = original(*arguments, **options)
            instant(name, "after", state)
            return answer

        return wrapper

    monkeypatch.setattr(steps, "_progress", dying("progress", steps._progress))
    monkeypatch.setattr(queues, "remove", dying("entries", queues.remove))
    monkeypatch.setattr(spool, "remove", dying("file", spool.remove))
    monkeypatch.setattr(Storage, "delete", dying("blobs", Storage.delete))
    monkeypatch.setattr(Storage, "delete_account", dying("rest", Storage.delete_account))
    # When it is killed at each instant once, and resumed each time that its lease has ended
    kills = 0
    while job_row(account).state != "done":
        try:
            run_job(account)
        except Killed:
            kills += 1
            change_jobs(lease_until=None)
        assert kills < 500
    # Then each thing is counted once
    assert kills > 40
    found = receipt(system, account)
    assert {name: amount for name, amount in found["rows"].items() if amount} == before
    assert found["stores"] == in_stores
    assert found["temporary_files"] == temporary
    assert (found["queue_entries"], found["redis_keys"]) == (3, 1)
    assert found["scan"]["empty"]
    assert counts() == {"email_jobs": 1}
    assert blobs(account) == []


def test_a_page_that_was_half_removed_is_counted_once(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = filled(system, address, 5)
    in_stores = stored(account)
    delete(system, account)
    original = Storage.delete

    def half(storage: Storage, names: list[str], kind: StorageType) -> None:
        original(storage, names[:3], kind)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "delete", half)
        with pytest.raises(Killed):
            run_job(account)
    change_jobs(lease_until=None)
    run_job(account)
    assert receipt(system, account)["stores"] == in_stores


def test_a_run_whose_lease_ended_writes_nothing_more(system: System, address: str) -> None:
    # Given a run that was suspended, and another that has the job by now
    account = filled(system, address, 3)
    delete(system, account)
    suspended = steps._take(job_row(account).id)
    assert suspended
    change_jobs(lease_until=None)
    assert steps._take(suspended.id)
    before = counts()
    # When it wakes up
    with pytest.raises(steps.JobTaken):
        steps._delete_messages(suspended)
    with pytest.raises(steps.JobTaken):
        steps._clear(suspended, "queue_entries")
    # Then it has removed nothing, and what the other one does counts
    assert counts() == before
    change_jobs(lease_until=None)
    run_job(account)
    assert receipt(system, account)["rows"]["email_raw_messages"] == 3


def test_what_comes_after_its_place_was_emptied_is_found_and_removed(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a poller that was suspended, and puts a blob and queue entries when all seems gone
    account = filled(system, address, 2)
    row = account_row(account)
    message_id = system.messages(account)[0]["id"]
    delete(system, account)
    late = b"put by somebody who has not heard of the deletion"
    digest = hashlib.sha256(late).hexdigest()
    look = steps._left
    looks = []

    def zombie(job: EmailJob) -> dict[str, int]:
        if not looks:
            blob = NewBlob(blob_key(account, digest), len(late), digest, late)
            runtime.storage().put([blob])
            actors.process_message.send(message_id)
            actors.poll_account.send(row.id)
            spool.new_file(account)
        looks.append(look(job))
        return looks[-1]

    monkeypatch.setattr(steps, "_left", zombie)
    run_job(account)
    # Then the look has found them, they are gone, and they are on the receipt
    kind = runtime.storage().primary_type
    assert looks[0][f"objects_{kind}"] == looks[0]["temporary_files"] == 1
    assert looks[0]["queue_entries"] > 0
    found = receipt(system, account)
    assert (found["state"], found["scan"]["rounds"], found["scan"]["empty"]) == ("done", 2, True)
    assert found["stores"][kind]["objects"] == 4 + 1
    assert found["queue_entries"] == 2
    assert found["temporary_files"] == 1
    assert blobs(account) == []
    assert entries(system) == set()


@pytest.mark.parametrize(
    ("module", "name", "place"),
    [
        (steps, "_delete_account_rows", "email_folders"),
        (queues, "remove", "queue_entries"),
        (spool, "remove", "temporary_files"),
        (Storage, "delete", None),
    ],
)
def test_a_job_that_leaves_something_is_not_done(
    system: System,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    place: str | None,
) -> None:
    # Given a job whose removal of one kind does nothing
    account = filled(system, address, 2)
    leave_things_behind(system, account)
    delete(system, account)

    def forgetful(*arguments: Any) -> None:
        if module is steps:
            steps._progress(arguments[0], "blobs")

    with monkeypatch.context() as patched:
        patched.setattr(module, name, forgetful)
        with pytest.raises((steps.StillThere, StoreUnavailable)):
            run_job(account)
    # Then it is not done, and says what it has found
    found = receipt(system, account)
    assert (found["state"], found["finished_at"]) == ("running", None)
    if place:
        assert found["scan"]["found"][place] > 0
        assert not found["scan"]["empty"]
    # And goes on when it can
    run_job(account)
    found = receipt(system, account)
    assert (found["state"], found["scan"]["empty"]) == ("done", True)


def test_other_accounts_keep_their_part_of_an_entry(system: System, address: str) -> None:
    # Given one entry for the polls of two accounts, and one for each alone
    doomed = account_row(system.add_account(address))
    kept = account_row(system.add_account(f"other-{address}"))
    system.broker.flush_all()
    polls = {str(doomed.id): 1, str(kept.id): 2}
    actors.begin_polls.send_with_options(args=(polls,), delay=3_600_000)
    actors.begin_polls.send_with_options(args=({str(doomed.id): 1},), delay=3_600_000)
    actors.begin_polls.send(polls)
    actors.poll_account.send(kept.id)
    delete(system, doomed.uuid)
    run_job(doomed.uuid)
    # Then what is left is the other's, and can be run
    left = [
        Message.decode(data).args[0]
        for key in (b"mailpoll:poll.msgs", b"mailpoll:poll.DQ.msgs")
        for data in system.broker.client.hvals(key)
    ]
    assert sorted(left, key=repr) == sorted(
        [kept.id, {str(kept.id): 2}, {str(kept.id): 2}], key=repr
    )
    assert receipt(system, doomed.uuid)["queue_entries"] == 3
    system.work_until(lambda: queues.sizes(system.broker)[0].waiting == 0)


def test_a_poll_whose_spooled_message_was_taken_away_ends_without_an_error(
    scripted: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a poll that is downloading a message into a file
    scripted.dovecot.deliver(address, message("large", "x" * 60_000))
    account = scripted.add_account(address)
    row = account_row(account)
    original = spool.new_file

    def and_delete(uuid: str) -> Path:
        path = original(uuid)
        accounts.delete(account)
        run_job(account)
        return path

    # When its account is deleted, file and all
    monkeypatch.setattr(spool, "new_file", and_delete)
    poll(row.id, None)
    # Then it ends, and leaves nothing
    assert job_row(account).state == "done"
    assert counts() == {"email_jobs": 1}
    assert blobs(account) == []
    assert steps._files(account) == []


def test_nothing_of_the_mail_stays_in_any_file(embedded: System, address: str) -> None:
    canary = "canary-of-the-mail-6b1d"
    embedded.dovecot.deliver_many(
        address, [message(f"{canary} {n}", f"{canary} body\r\n") for n in range(40)]
    )
    account = embedded.add_account(address)
    embedded.poll_and_process(account)
    words = (canary.encode(), address.encode())
    directory = embedded.settings.data_dir

    def has_any(path: Path) -> bool:
        return path.is_file() and any(word in path.read_bytes() for word in words)

    assert any(map(has_any, directory.rglob("*")))
    delete(embedded, account)
    run_job(account)
    assert [path for path in directory.rglob("*") if has_any(path)] == []


def test_a_receipt_has_no_hash_of_the_address_unless_it_is_wanted(
    embedded: System, address: str
) -> None:
    account = embedded.add_account(address)
    delete(embedded, account)
    assert receipt(embedded, account)["address_sha256"] is None


@pytest.fixture
def hashing(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    variables = {**_embedded(request, tmp_path), "MAILPOLL_RECEIPT_ADDRESS_HASH": "yes"}
    yield from run_system(variables, tmp_path, dovecot, MAILPOLL_RECEIPT_DAYS="30")


def test_a_receipt_is_found_by_the_address_where_its_hash_is_kept(
    hashing: System, address: str
) -> None:
    account = hashing.add_account(address)
    delete(hashing, account)
    run_job(account)
    found = receipt(hashing, account)
    assert found["address_sha256"] == hashlib.sha256(address.encode()).hexdigest()
    job = receipts.find(address.upper())
    assert job
    assert job.account_uuid == account
    assert receipts.find(f"x{address}") is None
    with database.connected():
        assert address not in repr(list(EmailJob.select().dicts()))


def test_receipts_are_forgotten_when_their_time_is_over(hashing: System, address: str) -> None:
    # Given a deletion that is done and one that is not, both long ago
    done, running = (hashing.add_account(f"{n}-{address}") for n in range(2))
    for account in (done, running):
        delete(hashing, account)
    run_job(done)
    for days, left in ((29, {done, running}), (31, {running})):
        with database.transaction():
            ago = database.now() - timedelta(days=days)
            EmailJob.update(finished_at=ago).where(EmailJob.state == "done").execute()
            EmailJob.update(created_at=ago).execute()
        actors.sweep.fn()
        # Then that which is done goes after its days, and the other stays
        items = hashing.get(URL)["items"]
        assert {item["account_id"] for item in items} == left
    hashing.broker.flush_all()


def test_deletions_come_in_pages_newest_first(embedded: System, address: str) -> None:
    deleted = [embedded.add_account(f"{n}-{address}", test=False) for n in range(5)]
    for account in deleted:
        delete(embedded, account)
    found, cursor = [], {}
    while True:
        page = embedded.get(URL, limit=2, **cursor)
        found += [item["account_id"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert found == deleted[::-1]
    assert embedded.api.simulate_get(URL, params={"cursor": "x"}).status_code == 422


@pytest.mark.parametrize("job", ["1", "00000000-0000-4000-8000-000000000000"])
def test_a_deletion_that_is_not_there(embedded: System, job: str) -> None:
    assert embedded.api.simulate_get(f"{URL}/{job}").status_code == 404


def test_the_command_line_lists_and_shows_receipts(
    embedded: System, address: str, tmp_path: Path
) -> None:
    account = filled(embedded, address, 2)
    waiting = embedded.add_account(f"other-{address}", test=False)
    delete(embedded, account)
    run_job(account)
    delete(embedded, waiting)
    names = ("MAILPOLL_", "REDIS_URL", "DATABASE_URL", "STORAGE_URL")
    variables = {n: v for n, v in os.environ.items() if n.startswith(names)}

    def command(*arguments: str) -> tuple[int, str]:
        done = run("accounts", *arguments, variables=variables, cwd=tmp_path)
        return done.returncode, (done.stdout + done.stderr).decode()

    code, text = command("deletions", "--json")
    listed = [json.loads(line) for line in text.splitlines()]
    assert code == 0
    assert [(one["account_id"], one["state"]) for one in listed] == [
        (waiting, "running"),
        (account, "done"),
    ]
    assert command("deletions")[0] == 0
    code, text = command("receipt", account, "--json")
    assert code == 0
    shown = json.loads(text)
    assert shown["rows"]["email_raw_messages"] == 2
    assert shown["scan"]["empty"]
    code, text = command("receipt", listed[1]["id"])
    assert code == 0
    assert "nothing was left" in text
    assert command("receipt", waiting)[0] == 1
    code, text = command("receipt", address)
    assert (code, text) == (2, f"mailpoll: there is no receipt of {address}\n")


def test_two_jobs_at_once_do_not_disturb_each_other(system: System, address: str) -> None:
    names = [f"{n}-{address}" for n in range(3)]
    for name in names:
        system.dovecot.deliver_many(name, letters(4))
    uuids = []
    for name in names:
        # One by one: at its end, a worker may interrupt another's first poll behind its commit.
        uuids.append(system.add_account(name))
        system.poll_and_process(uuids[-1])
    for uuid in uuids:
        delete(system, uuid)
    system.work_until(lambda: all(job_row(uuid).state == "done" for uuid in uuids))
    found = Counter(receipt(system, uuid)["rows"]["email_raw_messages"] for uuid in uuids)
    assert found == {4: 3}
    wait_until(lambda: counts() == {"email_jobs": 3})
