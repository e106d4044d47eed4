"""Blobs at rest: compressed, sealed when that is switched on, and exact for who downloads them."""

import base64
import hashlib
import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mailpoll import accounts, actors, database, fsck, runtime
from mailpoll.actors.poll import poll
from mailpoll.actors.process import process
from mailpoll.blobs import BlobCorrupt, Form, StorageType
from mailpoll.blobs.form import SEALED
from mailpoll.crypto import DataKeyError
from mailpoll.fsck import Kind, Outcome, Tally
from mailpoll.models import EmailAccount, EmailAttachment, EmailRawMessage
from mailpoll.settings import new_key, settings
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import account_row, counts
from tests.integration.system import KEY, System, wait_until
from tests.integration.test_cli import run
from tests.servers.dovecot import Dovecot
from tests.servers.seaweed import Seaweed

LETTER = (
    'Subject: number {0}\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n\r\n'
    'the secret of {0}\r\n--b\r\nContent-Disposition: attachment; filename="a{0}.bin"\r\n\r\n'
    "attached {0}\r\n--b--\r\n"
)


def letters(*numbers: int) -> list[bytes]:
    return [LETTER.format(number).encode() for number in numbers]


@pytest.fixture(params=list(SETS))
def sealed(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    """A system on each backing set that encrypts blobs."""
    variables = SETS[request.param](request, tmp_path)
    yield from run_system(variables, tmp_path, dovecot, MAILPOLL_BLOB_ENCRYPTION="true")


def configure(**changed: str) -> None:
    """Go on as a process that was started with other variables."""
    os.environ.update(changed)
    for cached in (settings, runtime.storage, runtime.keyring, runtime.data_keys):
        cached.cache_clear()


def bring_in(system: System, address: str, sent: list[bytes], account: str = "") -> str:
    """Deliver mail, poll and process it; the account's id."""
    system.dovecot.deliver_many(address, sent)
    account = account or system.add_account(address)
    system.broker.flush_all()
    poll(account_row(account).id, None)
    for row in rows():
        if row.status == "stored":
            process([row.id])
    return account


def rows() -> list[EmailRawMessage]:
    with database.connected():
        return list(EmailRawMessage.select().order_by(EmailRawMessage.id))


def pointers() -> list[tuple[str, str]]:
    with database.connected():
        return [
            pointer
            for table in (EmailRawMessage, EmailAttachment)
            for pointer in table.select(table.storage_key, table.storage_type).tuples()
        ]


def stored_bytes(key: str, store_type: str) -> bytes:
    with runtime.storage().stores[StorageType(store_type)].open_stored(key) as stream:
        return stream.read()


def replace_stored(key: str, content: bytes) -> None:
    storage = runtime.storage()
    store: Any = storage.stores[storage.primary_type]
    if storage.has_object_store:
        store._client.put_object(store._bucket, key, io.BytesIO(content), len(content))
    else:
        store.path(key).write_bytes(content)


def downloads(system: System, account: str) -> list[bytes]:
    """Every raw message, in the order of ids, with its attachment compared on the way."""
    found = []
    for item in sorted(system.messages(account), key=lambda item: item["id"]):
        raw = system.api.simulate_get(f"/admin/messages/{item['id']}/raw")
        assert raw.headers["content-length"] == str(len(raw.content))
        attached = system.api.simulate_get(f"/admin/messages/{item['id']}/attachments/0")
        number = item["subject"].split()[-1]
        assert attached.content == f"attached {number}".encode()
        found.append(raw.content)
    return found


def differences() -> list[tuple[Kind, str | None]]:
    tally = Tally()
    found = [(one.kind, one.key) for one in fsck.check(None, tally, offline=True)]
    assert tally.unchecked == []
    return found


# --- exact


def signed(body: bytes) -> tuple[bytes, bytes]:
    """A message with a DKIM signature, and the text of the DNS record that its key is in."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    message = b"From: ann@example.org\r\nTo: team@example.org\r\nSubject: signed\r\n\r\n" + body
    header = dkim.sign(message, b"mail", b"example.org", private, include_headers=[b"from"])
    return header + message, b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)


@pytest.mark.parametrize("encryption", ["false", "true"])
def test_a_dkim_signature_holds_on_what_is_downloaded(
    system: System, address: str, encryption: str
) -> None:
    configure(MAILPOLL_BLOB_ENCRYPTION=encryption)
    message, record = signed(b"To whom it may concern:  \r\n\r\n\ttrailing space \r\n\xff\xfe\r\n")
    account = bring_in(system, address, [message])
    (item,) = system.messages(account)
    raw = system.api.simulate_get(f"/admin/messages/{item['id']}/raw").content
    assert dkim.verify(raw, dnsfunc=lambda name, timeout=5: record)
    # And no other message would do
    assert not dkim.verify(raw.replace(b"concern", b"concerns"), dnsfunc=lambda *_, **__: record)


# --- at rest


def test_blobs_are_compressed_and_a_local_one_needs_the_zstd_program_alone(
    embedded: System, address: str
) -> None:
    sent = [b"Subject: long\r\n\r\n" + b"the same line again and again\r\n" * 2_000]
    bring_in(embedded, address, sent)
    (row,) = rows()
    path = embedded.settings.data_dir / "blobs" / row.storage_key
    assert path.stat().st_size < len(sent[0]) / 20
    unpacked = subprocess.run(["zstd", "-dc", str(path)], capture_output=True, check=True)
    assert unpacked.stdout == sent[0]
    assert hashlib.sha256(unpacked.stdout).hexdigest() == row.sha256


def test_sealed_blobs_show_nothing_and_are_served_exactly(sealed: System, address: str) -> None:
    sent = letters(1, 2, 3)
    account = bring_in(sealed, address, sent)
    assert downloads(sealed, account) == sent
    found = pointers()
    assert len(found) == 6
    for key, store_type in found:
        stored = stored_bytes(key, store_type)
        assert stored.startswith(SEALED)
        assert b"secret" not in stored
        assert b"attached" not in stored
    assert differences() == []


def test_the_command_writes_a_blob_as_it_was(sealed: System, address: str, tmp_path: Path) -> None:
    (content,) = sent = letters(1)
    bring_in(sealed, address, sent)
    (row,) = rows()
    names = ("MAILPOLL_", "REDIS_URL", "DATABASE_URL", "STORAGE_URL")
    environ = {name: value for name, value in os.environ.items() if name.startswith(names)}
    result = run("blob", row.storage_key, variables=environ, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, content, b"")
    for key, said in (("x", "not a blob key"), (missing_key(row.storage_key), "in no store")):
        result = run("blob", key, variables=environ, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (1, b"")
        assert said in result.stderr.decode()


def missing_key(key: str) -> str:
    account, _, _ = key.split("/")
    return f"{account}/00/{'0' * 64}"


# --- switched on and off


def test_encryption_can_be_switched_on_and_off_again(system: System, address: str) -> None:
    account = bring_in(system, address, letters(1))
    configure(MAILPOLL_BLOB_ENCRYPTION="true")
    bring_in(system, address, letters(2), account)
    configure(MAILPOLL_BLOB_ENCRYPTION="false")
    bring_in(system, address, letters(3), account)
    forms = [stored_bytes(row.storage_key, row.storage_type).startswith(SEALED) for row in rows()]
    assert forms == [False, True, False]
    assert downloads(system, account) == letters(1, 2, 3)
    assert differences() == []


def test_each_account_has_a_key_of_its_own_from_the_beginning(system: System, address: str) -> None:
    first, second = system.add_account(address), system.add_account(f"other-{address}")
    keys = {runtime.data_key(uuid) for uuid in (first, second)}
    assert len(keys) == 2
    for uuid in (first, second):
        kept = account_row(uuid).data_key
        assert kept.startswith("v1.")
        assert base64.urlsafe_b64encode(runtime.data_key(uuid)).decode() not in kept


def test_a_key_that_was_copied_to_another_account_does_not_open(
    system: System, address: str
) -> None:
    first, second = system.add_account(address), system.add_account(f"other-{address}")
    with database.transaction():
        EmailAccount.update(data_key=account_row(first).data_key).where(
            EmailAccount.uuid == second
        ).execute()
    with pytest.raises(DataKeyError, match="MAILPOLL_SECRET_KEY"):
        runtime.data_key(second)


# --- without the key


def test_nothing_is_lost_when_the_secret_key_is_away_and_all_goes_on_when_it_is_back(
    sealed: System, address: str
) -> None:
    # Given mail of which some is processed and some is not
    account = bring_in(sealed, address, letters(1))
    number = account_row(account).id
    sealed.dovecot.deliver_many(address, letters(2))
    poll(number, None)
    waiting = rows()[1]
    # When a process comes with another key
    configure(MAILPOLL_SECRET_KEY=new_key())
    # Then a download says that the file cannot be had now
    answer = sealed.api.simulate_get(f"/admin/messages/{waiting.id}/raw")
    assert (answer.status_code, answer.json["detail"]) == (
        503,
        "the key of the stored file is not available now",
    )
    # And a message waits, without a failed attempt
    with pytest.raises(DataKeyError, match="MAILPOLL_SECRET_KEY"):
        process([waiting.id])
    assert (rows()[1].status, rows()[1].attempts) == ("stored", 0)
    # And a check says what it could not look at, and calls nothing damaged
    tally = Tally()
    assert list(fsck.check(None, tally, offline=True)) == []
    assert tally.exit_code == 2
    assert "MAILPOLL_SECRET_KEY" in tally.unchecked[0]
    # When the key is back, together with the new one
    configure(MAILPOLL_SECRET_KEY=f"{new_key()},{KEY}")
    process([waiting.id])
    assert downloads(sealed, account) == letters(1, 2)


def test_a_poll_whose_data_key_does_not_open_says_so_and_goes_on_later(
    sealed: System, address: str
) -> None:
    # Given an account whose data key was damaged, while its password opens
    account = sealed.add_account(address)
    sealed.broker.flush_all()
    kept = account_row(account).data_key
    sealed.dovecot.deliver_many(address, letters(1))
    with database.transaction():
        EmailAccount.update(data_key=f"{kept[:-4]}AAAA").execute()
    # When it is polled
    poll(account_row(account).id, None)
    # Then nothing is stored, in no form, and the account says why
    assert rows() == []
    assert (
        list(runtime.storage().stores[runtime.storage().primary_type].list_account(account)) == []
    )
    shown = sealed.get(f"/admin/email-accounts/{account}")
    assert shown["last_error_kind"] == "data_key_unreadable"
    assert "MAILPOLL_SECRET_KEY" in shown["last_error"]
    # When the key is as it was
    with database.transaction():
        EmailAccount.update(data_key=kept).execute()
    bring_in(sealed, address, [], account)
    assert downloads(sealed, account) == letters(1)


# --- damage


def test_blobs_that_were_exchanged_between_accounts_or_names_do_not_open(
    sealed: System, address: str
) -> None:
    # Given two accounts with the same letter, and another letter
    first = bring_in(sealed, address, letters(1, 2))
    second = bring_in(sealed, f"other-{address}", letters(1))
    one, two = (row for row in rows() if row.storage_key.startswith(first))
    (other,) = (row for row in rows() if row.storage_key.startswith(second))
    contents = {row.id: stored_bytes(row.storage_key, row.storage_type) for row in rows()}
    for target, source in ((one, other), (one, two), (other, one)):
        replace_stored(target.storage_key, contents[source.id])
        # Then it is damage, by name, and never served
        assert differences() == [(Kind.BLOB_CORRUPT, target.storage_key)]
        answer = sealed.api.simulate_get(f"/admin/messages/{target.id}/raw")
        assert answer.status_code == 503
        # And it is fetched again
        tally = Tally()
        assert [one.outcome for one in fsck.check(None, tally, repair=True)] == [Outcome.REPAIRED]
        assert differences() == []
        contents[target.id] = stored_bytes(target.storage_key, target.storage_type)


# --- the fall-back


@pytest.fixture
def store(server_directory: Path) -> Iterator[Seaweed]:
    server = Seaweed(server_directory)
    yield server
    server.stop()


@pytest.fixture
def without_store(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, store: Seaweed
) -> Iterator[System]:
    """An object store that is away at first."""
    variables = {**SETS["embedded"](request, tmp_path), "STORAGE_URL": store.url}
    yield from run_system(variables, tmp_path, dovecot)


def test_what_fell_back_before_encryption_was_switched_on_is_sealed_on_its_way(
    without_store: System, store: Seaweed, address: str
) -> None:
    system = without_store
    account = bring_in(system, address, letters(1))
    configure(MAILPOLL_BLOB_ENCRYPTION="true")
    bring_in(system, address, letters(2), account)
    assert {store_type for _, store_type in pointers()} == {"local"}
    local = [stored_bytes(row.storage_key, "local") for row in rows()]
    assert [stored.startswith(SEALED) for stored in local] == [False, True]
    store.start()
    wait_until(lambda: actors.drain_fallback.fn() or {t for _, t in pointers()} == {"oss"})
    for key, store_type in pointers():
        assert stored_bytes(key, store_type).startswith(SEALED)
    assert downloads(system, account) == letters(1, 2)
    assert differences() == []


# --- deletion


def test_with_its_account_a_key_is_gone_and_what_a_copy_of_the_store_holds_is_noise(
    sealed: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = bring_in(sealed, address, letters(1))
    (row,) = rows()
    copy = stored_bytes(row.storage_key, row.storage_type)
    # When the deletion is asked for, before anything else was done
    job = accounts.delete(account)
    assert job is not None
    # Then there is no key any more, and a minute later no process has it in its memory
    assert account_row(account).data_key == ""
    monkeypatch.setattr(runtime, "KEPT", 1e-6)
    with pytest.raises(DataKeyError, match="gone"):
        runtime.storage().open(row.storage_key, StorageType(row.storage_type))
    # And in the end there is no row
    actors.delete_account.fn(job.id)
    assert counts() == {"email_jobs": 1}
    # And another account's key, even under the same name, opens nothing of it
    other = runtime.data_key(sealed.add_account(f"{uuid4().hex}@example.org"))
    with pytest.raises(BlobCorrupt):
        Form(data_key=lambda _: other).decode(row.storage_key, io.BytesIO(copy))
