"""An object store that goes away and comes back while mail arrives."""

import hashlib
import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from mailpoll import actors, database, runtime
from mailpoll.actors import maintain
from mailpoll.actors.poll import poll
from mailpoll.blobs import NewBlob, StorageType, blob_key
from mailpoll.models import EmailAttachment, EmailFolder, EmailJob, EmailRawMessage
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import account_row
from tests.integration.system import System, wait_until
from tests.servers.dovecot import Dovecot
from tests.servers.seaweed import BUCKET, Seaweed

ATTACHED = (
    'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n\r\ntext\r\n--b\r\n'
    'Content-Disposition: attachment; filename="a.bin"\r\n\r\n{0}\r\n--b--\r\n'
)

#: What moves blobs, in a process that is killed at a certain place.
MOVE = """
import os, signal
from mailpoll import actors, database
from mailpoll.blobs.local import LocalFiles
from mailpoll.blobs.s3 import S3

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

{death} = die
actors.drain_fallback.fn()
"""
#: Before which step it dies, and what that step calls.
DEATHS = {
    "the copy": "S3.put",
    "the local copy is removed": "LocalFiles.delete",
    "the rows are committed": "database.transaction",
}


@pytest.fixture
def store(server_directory: Path) -> Iterator[Seaweed]:
    """An object store of the test's own; it does not run yet."""
    server = Seaweed(server_directory)
    yield server
    server.stop()


@pytest.fixture
def system(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, store: Seaweed
) -> Iterator[System]:
    variables = SETS["embedded"](request, tmp_path)
    yield from run_system({**variables, "STORAGE_URL": store.url}, tmp_path, dovecot)


@pytest.fixture
def without_fallback(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, store: Seaweed
) -> Iterator[System]:
    variables = {**SETS["embedded"](request, tmp_path), "STORAGE_URL": store.url}
    yield from run_system(variables, tmp_path, dovecot, MAILPOLL_STORAGE_FALLBACK="no")


def letter(number: int) -> bytes:
    attached = ATTACHED.format(f"attached {number}")
    return f"Subject: number {number}\r\n{attached}".encode()


def blob_of(account: str, raw: bytes) -> NewBlob:
    sha256 = hashlib.sha256(raw).hexdigest()
    return NewBlob(blob_key(account, sha256), len(raw), sha256, raw)


def local_files(system: System) -> list[Path]:
    root = system.settings.data_dir / "blobs"
    return [path for path in root.rglob("*") if path.is_file()]


def pointers() -> list[tuple[str, str, str]]:
    """(key, SHA-256, storage type) of every row that points at a blob."""
    with database.connected():
        return [
            row
            for table in (EmailRawMessage, EmailAttachment)
            for row in table.select(table.storage_key, table.sha256, table.storage_type).tuples()
        ]


def storage_types(system: System) -> dict[str, int]:
    return dict(system.get("/admin/stats")["by_storage_type"])


def served(system: System, account: str, sent: list[bytes]) -> None:
    """Check that the API serves every message and its attachment, byte for byte."""
    items = system.messages(account)
    assert sorted(item["sha256"] for item in items) == sorted(
        hashlib.sha256(raw).hexdigest() for raw in sent
    )
    for item in items:
        url = f"/admin/messages/{item['id']}"
        raw = system.api.simulate_get(f"{url}/raw")
        assert (raw.status_code, hashlib.sha256(raw.content).hexdigest()) == (200, item["sha256"])
        number = item["subject"].split()[-1]
        attached = system.api.simulate_get(f"{url}/attachments/0")
        assert (attached.status_code, attached.content) == (200, f"attached {number}".encode())


def test_mail_is_kept_in_files_during_an_outage_and_moved_after_it(
    system: System, store: Seaweed, address: str
) -> None:
    # Given an account whose mail goes to the object store
    store.start()
    sent = [letter(n) for n in range(12)]
    system.dovecot.deliver_many(address, sent[:4])
    account = system.add_account(address)
    system.poll_and_process(account)
    assert storage_types(system) == {"local": 0, "oss": 8}
    # When the store goes away while mail comes in
    store.stop()
    system.dovecot.deliver_many(address, sent[4:])
    system.poll_and_process(account)
    # Then the new mail and its attachments are in local files, and every row says so
    assert storage_types(system) == {"local": 16, "oss": 8}
    assert len(local_files(system)) == 16
    fallen = [item for item in system.messages(account) if item["storage_type"] == "local"]
    assert len(fallen) == 8
    for item in fallen:
        url = f"/admin/messages/{item['id']}"
        raw = system.api.simulate_get(f"{url}/raw").content
        assert hashlib.sha256(raw).hexdigest() == item["sha256"]
        assert system.api.simulate_get(f"{url}/attachments/0").status_code == 200
    # And figures and readiness tell of the outage, whereas the account is fine
    assert system.get("/admin/stats")["storage_circuit_open"] is True
    assert system.get(f"/admin/email-accounts/{account}")["last_error"] is None
    # And moving them does no harm meanwhile
    actors.drain_fallback.fn()
    assert storage_types(system)["local"] == 16

    # When the store is back
    store.start()
    wait_until(lambda: actors.drain_fallback.fn() or storage_types(system)["local"] == 0)
    # Then no blob is left in local files
    assert storage_types(system) == {"local": 0, "oss": 24}
    assert local_files(system) == []
    # And what the store has is what its rows say, and what was sent
    client = store.client()
    for key, sha256, storage_type in pointers():
        assert storage_type == StorageType.OSS
        with client.get_object(BUCKET, key) as answer:
            content = zstandard.decompress(answer.read())
        assert hashlib.sha256(content).hexdigest() == sha256
    served(system, account, sent)


def test_blobs_of_several_accounts_are_moved_in_any_number_of_pages(
    system: System, store: Seaweed, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two accounts with the same mail and the same attachment twice, in more than one page
    sent = [letter(n) for n in range(5)] + [letter(0) + b"\r\n"]
    for name in (address, f"other-{address}"):
        system.dovecot.deliver_many(name, sent)
        system.poll_and_process(system.add_account(name))
    assert storage_types(system) == {"local": 24, "oss": 0}
    monkeypatch.setattr(maintain, "PAGE", 2)
    # When the store is there
    store.start()
    wait_until(lambda: actors.drain_fallback.fn() or storage_types(system)["local"] == 0)
    # Then no blob is left in local files
    assert storage_types(system) == {"local": 0, "oss": 24}
    assert local_files(system) == []


@pytest.mark.parametrize("before", list(DEATHS))
def test_a_process_that_dies_while_it_moves_blobs_leaves_them_readable_and_none_behind(
    system: System, store: Seaweed, address: str, before: str
) -> None:
    # Given mail that came in while the store was away, and is moved when it is there
    sent = [letter(n) for n in range(3)]
    system.dovecot.deliver_many(address, sent)
    account = system.add_account(address)
    system.poll_and_process(account)
    assert storage_types(system) == {"local": 6, "oss": 0}
    store.start()
    # When the process that moves it dies before one of the steps
    died = subprocess.run([sys.executable, "-c", MOVE.format(death=DEATHS[before])], check=False)
    assert died.returncode == -signal.SIGKILL
    # Then everything can be read
    wait_until(lambda: not runtime.storage().circuit_open)
    served(system, account, sent)
    # And the next pass leaves nothing behind
    wait_until(lambda: actors.drain_fallback.fn() or storage_types(system)["local"] == 0)
    served(system, account, sent)
    assert storage_types(system) == {"local": 0, "oss": 6}
    assert local_files(system) == []


def test_copies_of_a_poll_that_died_after_its_fall_back_are_removed(
    system: System, store: Seaweed, address: str
) -> None:
    # Given blobs that a poll put into local files before it died, and its mail that came again
    sent = [letter(n) for n in range(3)]
    account = system.add_account(address)
    never_named = b"mail that was expunged before it came again"
    copies = [blob_of(account, raw) for raw in (*sent, never_named)]
    assert runtime.storage().put(copies) == StorageType.LOCAL
    store.start()
    wait_until(lambda: not runtime.storage().circuit_open)
    system.dovecot.deliver_many(address, sent)
    system.poll_and_process(account)
    assert storage_types(system) == {"local": 0, "oss": 6}
    assert len(local_files(system)) == 4
    # And one whose object is damaged, so that the copy is the only whole one
    damaged = copies[0]
    store.client().put_object(BUCKET, damaged.key, io.BytesIO(b"damaged"), 7)
    # When the copies are cleared
    actors.clear_fallback.fn()
    # Then that one is what its row names, and the others are gone, but for what no row names
    assert storage_types(system) == {"local": 1, "oss": 5}
    assert {path.name for path in local_files(system)} == {damaged.sha256, copies[3].sha256}
    served(system, account, sent)
    # And it is moved as all are that fell back
    wait_until(lambda: actors.drain_fallback.fn() or storage_types(system)["local"] == 0)
    served(system, account, sent)
    assert {path.name for path in local_files(system)} == {copies[3].sha256}


def test_what_another_machine_has_of_a_deleted_account_goes_when_that_looks_for_it(
    system: System, store: Seaweed, address: str
) -> None:
    # Given accounts of which a machine has blobs in its own files
    account, other = system.add_account(address), system.add_account(f"other-{address}")
    for uuid in (account, other):
        assert runtime.storage().put([blob_of(uuid, letter(1))]) == StorageType.LOCAL
    store.start()
    wait_until(lambda: not runtime.storage().circuit_open)
    # And the deletion of one of them, on a machine that has none of these files
    aside = system.settings.data_dir / "blobs" / account
    aside = aside.rename(system.settings.data_dir / "another machine")
    system.api.simulate_delete(f"/admin/email-accounts/{account}")
    with database.connected():
        job = EmailJob.get(EmailJob.account_uuid == account)
    actors.empty_deleted.fn()
    actors.delete_account.fn(job.id)
    # When the first machine looks for what it has of deleted accounts
    aside.rename(system.settings.data_dir / "blobs" / account)
    actors.clear_fallback.fn()
    assert len(local_files(system)) == 2
    actors.empty_deleted.fn()
    # Then those of the deleted account are gone, and no others
    assert {path.parts[-3] for path in local_files(system)} == {other}


def test_without_fallback_mail_waits_at_its_server(
    without_fallback: System, store: Seaweed, address: str
) -> None:
    # Given an account, and a store that is away
    system = without_fallback
    sent = [letter(n) for n in range(3)]
    system.dovecot.deliver_many(address, sent)
    account = system.add_account(address)
    row = account_row(account)
    # When it is polled
    poll(row.id, None)
    # Then nothing is stored anywhere, and the cursor has not moved
    assert system.messages(account) == []
    assert not (system.settings.data_dir / "blobs").exists()
    with database.connected():
        (inbox,) = EmailFolder.select().where(EmailFolder.name == "INBOX")
    assert (inbox.high, inbox.low) == (3, 4)
    # And the account says what is the matter and when it is tried again
    shown = system.get(f"/admin/email-accounts/{account}")
    assert shown["state"] == "active"
    assert shown["last_error_kind"] == "storage_unavailable"
    assert "object store" in shown["last_error"]
    assert shown["next_poll_at"] is not None
    # When the store is back
    store.start()
    wait_until(lambda: not runtime.storage().circuit_open)
    system.poll_and_process(account)
    # Then the mail comes
    served(system, account, sent)
    assert storage_types(system) == {"local": 0, "oss": 6}
    assert system.get(f"/admin/email-accounts/{account}")["last_error"] is None
