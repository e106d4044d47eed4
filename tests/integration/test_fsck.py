"""``mailpoll fsck``: every kind of difference, made by hand, is named and repaired."""

import hashlib
import io
import json
import os
import pty
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import imapclient
import pytest

from mailpoll import accounts, database, events, fsck, runtime
from mailpoll.actors.poll import poll
from mailpoll.actors.process import process
from mailpoll.blobs import NewBlob, StorageType, blob_key, s3
from mailpoll.fsck import Kind, Outcome, Tally, stored
from mailpoll.fsck.server import Mailbox
from mailpoll.imap import ImapError
from mailpoll.models import (
    TABLES,
    AccountState,
    EmailAccount,
    EmailAccountDay,
    EmailAttachment,
    EmailFetchFailure,
    EmailFolder,
    EmailJob,
    EmailLocation,
    EmailRawMessage,
)
from mailpoll.settings import settings
from tests.integration.rows import account_row, change_accounts
from tests.integration.system import PASSWORD, System, wait_until
from tests.integration.test_cli import clean, read_until, run
from tests.servers.seaweed import Seaweed

LETTER = (
    'Subject: {0}\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n\r\ntext {0}\r\n'
    '--b\r\nContent-Disposition: attachment; filename="a{0}.bin"\r\n\r\nattached {0}\r\n--b--\r\n'
)


def letters(*numbers: int) -> list[bytes]:
    return [LETTER.format(number).encode() for number in numbers]


@pytest.fixture
def account(system: System, address: str) -> EmailAccount:
    """An account with three processed messages, each with an attachment."""
    system.dovecot.deliver_many(address, letters(1, 2, 3))
    uuid = system.add_account(address)
    system.broker.flush_all()
    bring_in(account_row(uuid))
    return account_row(uuid)


def bring_in(account: EmailAccount) -> None:
    """Poll an account and process what it has."""
    poll(account.id, None)
    with database.connected():
        waiting = list(EmailRawMessage.select().where(EmailRawMessage.status == "stored"))
    for message in waiting:
        process([message.id])


def check(**options: Any) -> tuple[list[fsck.Difference], Tally]:
    tally = Tally()
    found = list(fsck.check(None, tally, **options))
    assert tally.differences == tally.outcomes.total() - tally.outcomes[Outcome.RECENT]
    return found, tally


def kinds(found: list[fsck.Difference]) -> list[Kind]:
    return [difference.kind for difference in found]


def assert_clean() -> None:
    found, tally = check()
    assert [difference.as_line() for difference in found] == []
    assert (tally.exit_code, tally.unchecked) == (0, [])


def snapshot() -> dict[str, list[Any]]:
    """What is stored of mail, without times."""
    with database.connected():
        return {
            "messages": sorted(EmailRawMessage.select(EmailRawMessage.sha256).tuples()),
            "places": sorted(EmailLocation.select(EmailLocation.uid).tuples()),
            "attachments": sorted(EmailAttachment.select(EmailAttachment.sha256).tuples()),
        }


def repaired(expected: Kind, outcome: Outcome = Outcome.REPAIRED) -> fsck.Difference:
    """Check that there is this difference alone, that a check changes nothing, and repair it."""
    found, tally = check()
    assert kinds(found) == [expected], [one.as_line() for one in found]
    assert tally.exit_code == 1
    again, tally = check(repair=True)
    assert kinds(again) == [expected], [one.as_line() for one in again]
    assert again[0].outcome is outcome, again[0].as_line()
    assert tally.exit_code == (0 if outcome is Outcome.REPAIRED else 1)
    return again[0]


def message_row(uid: int = 1) -> EmailRawMessage:
    """The message with this UID in INBOX."""
    with database.connected():
        place = EmailLocation.select().join(EmailFolder)
        return place.where(EmailLocation.uid == uid, EmailFolder.name == "INBOX").get().message


def attachment_row() -> EmailAttachment:
    with database.connected():
        return EmailAttachment.get(EmailAttachment.message == message_row())


def spoil(system: System, key: str, change: Callable[[bytes], bytes] | None) -> None:
    """Change a blob behind the store's back; ``None`` deletes it."""
    storage = runtime.storage()
    store = storage.stores[storage.primary_type]
    with store.open_stored(key) as stream:
        content = stream.read()
    if change is None:
        store.delete([key])
    elif storage.has_object_store:
        data = change(content)
        store._client.put_object(store._bucket, key, io.BytesIO(data), len(data))
    else:
        store.path(key).write_bytes(change(content))


def flip(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


DAMAGE = {
    "bit flip": (flip, Kind.BLOB_CORRUPT),
    "cut": (lambda content: content[:-1], Kind.BLOB_CORRUPT),
    "empty": (lambda content: b"", Kind.BLOB_CORRUPT),
    "deleted": (None, Kind.BLOB_MISSING),
}


# --- a system without differences


def test_a_clean_system_is_clean_and_the_figures_say_what_was_checked(
    system: System, account: EmailAccount
) -> None:
    found, tally = check(contents=True)
    assert found == []
    assert (tally.exit_code, tally.unchecked) == (0, [])
    assert (tally.accounts, tally.messages, tally.attachments, tally.blobs) == (1, 3, 3, 6)
    assert tally.folders == len(
        system.get(f"/admin/email-accounts/{account.uuid}/stats")["folders"]
    )
    with database.connected():
        sizes = [row.size for table in (EmailRawMessage, EmailAttachment) for row in table.select()]
    assert tally.bytes == sum(sizes)


def test_mail_that_has_just_come_is_no_difference(system: System, account: EmailAccount) -> None:
    system.dovecot.deliver_many(account.address, letters(4, 5))
    found, tally = check()
    assert (found, tally.newer, tally.exit_code) == ([], 2, 0)


# --- blobs


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_raw_message_is_named_and_fetched_again(
    system: System, account: EmailAccount, damage: str
) -> None:
    change, kind = DAMAGE[damage]
    row = message_row(2)
    spoil(system, row.storage_key, change)
    difference = repaired(kind)
    assert (difference.key, difference.folder, difference.uid) == (row.storage_key, "INBOX", 2)
    assert difference.account is not None
    assert difference.account.uuid == account.uuid
    assert difference.reason == "fetched again from the server"
    assert_clean()


def test_what_is_not_mended_is_told_and_what_is_mended_is_not(
    system: System, account: EmailAccount
) -> None:
    change, kind = DAMAGE["deleted"]
    spoil(system, message_row(2).storage_key, change)

    def told() -> list[Any]:
        found = events.read(0, 100, ["fsck.difference"])
        return [(event.account_id, event.data) for event in found]

    check(offline=True)
    assert told() == [(account.id, {"kind": str(kind), "count": 1})]
    check(repair=True)
    assert len(told()) == 1


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_attachment_is_named_and_taken_from_its_message_again(
    system: System, account: EmailAccount, damage: str
) -> None:
    change, kind = DAMAGE[damage]
    row = attachment_row()
    spoil(system, row.storage_key, change)
    difference = repaired(kind)
    assert (difference.key, difference.folder) == (row.storage_key, "INBOX")
    assert "a1.bin" in difference.detail
    assert_clean()


def test_a_message_and_its_attachment_are_repaired_together(
    system: System, account: EmailAccount
) -> None:
    spoil(system, message_row().storage_key, flip)
    spoil(system, attachment_row().storage_key, None)
    found, tally = check(repair=True)
    assert sorted(kinds(found)) == [Kind.BLOB_CORRUPT, Kind.BLOB_MISSING]
    assert tally.exit_code == 0
    assert_clean()


def rot(row: EmailRawMessage, seaweed: Seaweed) -> None:
    """Damage a blob on the disk of the store, or put something unreadable in its place."""
    storage = runtime.storage()
    with storage.stores[storage.primary_type].open_stored(row.storage_key) as stream:
        content = stream.read()
    if storage.has_object_store:
        # Its bucket's volumes alone: those of other tests come and go meanwhile
        bucket = urlsplit(settings().storage).path.strip("/")
        for path in (seaweed.directory / "data").glob(f"{bucket}_*.dat"):
            offset = path.read_bytes().find(content)
            if offset >= 0:
                with path.open("r+b") as file:
                    file.seek(offset)
                    file.write(flip(content[:1]))
                return
        raise AssertionError("the content is in no volume")
    path = storage.stores[StorageType.LOCAL].path(row.storage_key)
    path.unlink()
    path.symlink_to("/etc/hostname")


def test_a_blob_that_the_store_itself_cannot_read_is_named_and_fetched_again(
    system: System, address: str, seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store that falls silent over what it cannot read, as SeaweedFS does
    monkeypatch.setattr(s3, "READ_TIMEOUT", 3)
    runtime.storage.cache_clear()
    # And a blob that is nowhere else in the store, and that a store does not compress again
    noise = os.urandom(2_000).translate(None, b"\0\r\n")
    system.dovecot.deliver(address, b"Subject: noise\r\n\r\n" + noise + b"\r\n")
    uuid = system.add_account(address)
    bring_in(account_row(uuid))
    rot(message_row(), seaweed)
    # Then it alone is damaged, and the check goes on behind it
    assert repaired(Kind.BLOB_UNREADABLE).reason == "fetched again from the server"
    assert_clean()


@pytest.mark.leaves_damage
def test_a_message_that_the_server_has_no_more_is_named_as_lost(
    system: System, account: EmailAccount
) -> None:
    row = message_row()
    expunge(system, account, 1)
    spoil(system, row.storage_key, None)
    found, tally = check(repair=True)
    lost = next(one for one in found if one.kind is Kind.BLOB_MISSING)
    assert (lost.outcome, lost.key, lost.uid) == (Outcome.LOST, row.storage_key, 1)
    assert "has the message no more" in lost.reason
    assert tally.exit_code == 1
    # And its row stays as it was
    with database.connected():
        assert EmailRawMessage.get_by_id(row.id).status == "processed"


@pytest.mark.leaves_damage
def test_offline_nothing_is_fetched(system: System, account: EmailAccount) -> None:
    spoil(system, message_row().storage_key, None)
    found, _ = check(repair=True, offline=True)
    assert [(one.outcome, one.reason) for one in found] == [
        (Outcome.LEFT, "the server was not asked")
    ]


def test_an_attachment_that_the_parser_takes_out_otherwise_is_processed_anew(
    system: System, account: EmailAccount
) -> None:
    # Given an attachment as another version took it out of the message
    row, content = attachment_row(), b"another decoding"
    digest = hashlib.sha256(content).hexdigest()
    with database.transaction():
        EmailAttachment.update(
            sha256=digest, size=row.size, storage_key=blob_key(account.uuid, digest)
        ).where(EmailAttachment.id == row.id).execute()
    runtime.storage().delete([row.storage_key], StorageType(row.storage_type))
    repaired(Kind.BLOB_MISSING, Outcome.ASKED)
    # When the sweep has it processed
    process([row.message_id])
    # Then all is as it was
    assert attachment_row().sha256 != digest
    assert_clean()
    assert len(snapshot()["attachments"]) == 3


def test_a_row_that_names_another_blob_is_corrected(system: System, account: EmailAccount) -> None:
    row = message_row()
    with database.transaction():
        EmailRawMessage.update(storage_key=message_row(2).storage_key).where(
            EmailRawMessage.id == row.id
        ).execute()
    repaired(Kind.KEY_WRONG)
    assert message_row().storage_key == row.storage_key
    assert_clean()


def fall_back(key: str, content: bytes) -> None:
    digest = key.rpartition("/")[2]
    local = runtime.storage().stores[StorageType.LOCAL]
    local.put([NewBlob(key, len(content), digest, content)])


def content_of(row: EmailRawMessage) -> bytes:
    with runtime.storage().open(row.storage_key, StorageType(row.storage_type)) as stream:
        return stream.read()


#: Only there are two stores.
two_stores = pytest.mark.parametrize("system", ["production"], indirect=True)


@two_stores
def test_a_blob_in_the_other_store_is_found_there(system: System, account: EmailAccount) -> None:
    row = message_row()
    fall_back(row.storage_key, content_of(row))
    spoil(system, row.storage_key, None)
    repaired(Kind.BLOB_MISPLACED)
    assert message_row().storage_type == "local"
    assert_clean()


@two_stores
def test_a_whole_copy_in_the_other_store_repairs_a_corrupt_one(
    system: System, account: EmailAccount
) -> None:
    row = message_row()
    fall_back(row.storage_key, content_of(row))
    spoil(system, row.storage_key, flip)
    found, tally = check(repair=True, offline=True)
    assert kinds(found)[0] is Kind.BLOB_CORRUPT
    assert tally.exit_code == 0
    assert_clean()


@two_stores
@pytest.mark.parametrize("row_says", ["oss", "local"])
def test_a_blob_in_two_stores_is_kept_in_the_object_store(
    system: System, account: EmailAccount, row_says: str
) -> None:
    row = message_row()
    fall_back(row.storage_key, content_of(row))
    with database.transaction():
        EmailRawMessage.update(storage_type=row_says).where(EmailRawMessage.id == row.id).execute()
    repaired(Kind.BLOB_DOUBLED)
    assert message_row().storage_type == "oss"
    assert not runtime.storage().stores[StorageType.LOCAL].exists(row.storage_key)
    assert_clean()


def put_orphan(account: EmailAccount) -> str:
    content = uuid4().bytes
    digest = hashlib.sha256(content).hexdigest()
    key = blob_key(account.uuid, digest)
    runtime.storage().put([NewBlob(key, len(content), digest, content)])
    return key


def test_a_young_blob_without_a_row_is_named_and_kept(
    system: System, account: EmailAccount
) -> None:
    key = put_orphan(account)
    for repair in (False, True):
        found, tally = check(repair=repair)
        assert [(one.kind, one.key, one.outcome) for one in found] == [
            (Kind.ORPHAN, key, Outcome.RECENT)
        ]
        assert (tally.differences, tally.exit_code) == (0, 0)


def test_an_old_blob_without_a_row_is_deleted(
    system: System, account: EmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = put_orphan(account)
    monkeypatch.setattr(stored, "ORPHAN_AGE", timedelta(0))
    assert repaired(Kind.ORPHAN).key == key
    assert_clean()


def test_no_blob_is_deleted_while_a_message_waits_to_be_processed(
    system: System, account: EmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = put_orphan(account)
    monkeypatch.setattr(stored, "ORPHAN_AGE", timedelta(0))
    system.dovecot.deliver_many(account.address, letters(4))
    poll(account.id, None)
    found, _ = check(repair=True)
    assert [(one.key, one.outcome) for one in found] == [(key, Outcome.LEFT)]
    process([message_row(4).id])
    check(repair=True)
    assert_clean()


def test_a_blob_that_is_put_again_counts_as_young(
    system: System, account: EmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it could be deleted between its second put and the row that names it."""
    content = b"put by a poll that died, and then by one that did not"
    digest = hashlib.sha256(content).hexdigest()
    blob = NewBlob(blob_key(account.uuid, digest), len(content), digest, content)
    storage = runtime.storage()
    storage.put([blob])
    if not storage.has_object_store:
        path = storage.stores[StorageType.LOCAL].path(blob.key)
        os.utime(path, (0, 0))
    storage.put([blob])
    found, _ = check(repair=True)
    assert [(one.key, one.outcome) for one in found] == [(blob.key, Outcome.RECENT)]


def test_what_a_deletion_left_is_deleted_and_other_strangers_are_kept(
    system: System, account: EmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given blobs of an account that was deleted, and of one that nobody knows
    monkeypatch.setattr(stored, "ORPHAN_AGE", timedelta(0))
    deleted, stranger = str(uuid4()), str(uuid4())
    moment = database.now()
    with database.transaction():
        EmailJob.create(
            uuid=str(uuid4()),
            kind="delete_account",
            account_uuid=deleted,
            account_id=999_999,
            state="done",
            step="done",
            created_at=moment,
            updated_at=moment,
        )
    keys = [put_orphan(EmailAccount(uuid=uuid)) for uuid in (deleted, stranger)]
    # When it is repaired
    found, tally = check(repair=True)
    outcomes = {one.key: one.outcome for one in found if one.kind is Kind.ORPHAN_ACCOUNT}
    mine = {key: outcomes[key] for key in (f"{deleted}/", f"{stranger}/")}
    # Then only what is known to be waste is gone
    assert mine == {f"{deleted}/": Outcome.REPAIRED, f"{stranger}/": Outcome.FOUND}
    assert tally.exit_code == 1
    there = [runtime.storage().exists(key, runtime.storage().primary_type) for key in keys]
    assert there == [False, True]
    runtime.storage().delete_account(stranger)
    assert_clean()


def test_spool_files_of_the_dead_are_removed(system: System, account: EmailAccount) -> None:
    spool = system.settings.spool_dir
    spool.mkdir(parents=True, exist_ok=True)
    old, young = spool / "old", spool / "young"
    old.mkdir()
    young.touch()
    os.utime(old, (0, 0))
    assert repaired(Kind.LEFTOVER).key == str(old)
    assert [path.name for path in spool.iterdir()] == ["young"]
    young.unlink()


# --- rows


def change_folder(**columns: Any) -> None:
    with database.transaction():
        EmailFolder.update(**columns).where(EmailFolder.name == "INBOX").execute()


@pytest.mark.parametrize("column", ["messages", "bytes", "expunged"])
def test_wrong_counters_of_a_folder_are_counted_anew(
    system: System, account: EmailAccount, column: str
) -> None:
    change_folder(**{column: getattr(EmailFolder, column) + 5})
    difference = repaired(Kind.COUNTERS)
    assert (difference.folder, column in difference.detail) == ("INBOX", True)
    assert_clean()
    poll(account.id, None)
    figures = system.get(f"/admin/email-accounts/{account.uuid}/stats")
    inbox = next(one for one in figures["folders"] if one["name"] == "INBOX")
    assert inbox["proof"]["stored"] == 3


@pytest.mark.parametrize("column", ["messages", "bytes", "attachments", "attachment_bytes"])
@pytest.mark.parametrize("by", [7, -1])
def test_wrong_counters_of_a_day_are_counted_anew(
    system: System, account: EmailAccount, column: str, by: int
) -> None:
    before = system.get("/admin/stats")
    with database.transaction():
        EmailAccountDay.update(**{column: getattr(EmailAccountDay, column) + by}).execute()
    difference = repaired(Kind.DAY)
    assert f"{column} {by:+}" in difference.detail
    assert_clean()
    assert system.get("/admin/stats")["messages"] == before["messages"]


def test_a_day_that_is_not_there_is_counted_anew(system: System, account: EmailAccount) -> None:
    with database.transaction():
        EmailAccountDay.delete().execute()
    repaired(Kind.DAY)
    assert_clean()


def without_foreign_keys(statement: str, *parameters: Any) -> None:
    """Do what only a damaged database can hold."""
    with database.connected():
        if database.is_sqlite():
            database.proxy.execute_sql("PRAGMA foreign_keys = OFF")
        else:
            database.proxy.execute_sql("SET session_replication_role = replica")
        try:
            database.Statement(statement).run(*parameters)
        finally:
            if database.is_sqlite():
                database.proxy.execute_sql("PRAGMA foreign_keys = ON")
            else:
                database.proxy.execute_sql("SET session_replication_role = DEFAULT")


def test_a_place_without_its_message_is_fetched_again(
    system: System, account: EmailAccount
) -> None:
    # Given a message whose row alone is gone
    before = snapshot()
    row = message_row()
    without_foreign_keys("DELETE FROM email_attachments WHERE message_id = ?", row.id)
    without_foreign_keys("DELETE FROM email_raw_messages WHERE id = ?", row.id)
    found, _ = check()
    assert Kind.PLACE_WITHOUT_MESSAGE in kinds(found)
    # When it is repaired, and the account is polled
    check(repair=True)
    bring_in(account)
    # Then all is as it was
    assert snapshot() == before
    check(repair=True)
    assert_clean()


def test_a_message_without_a_place_finds_it_again(system: System, account: EmailAccount) -> None:
    with database.transaction():
        EmailLocation.delete().where(EmailLocation.message == message_row().id).execute()
    found, _ = check(repair=True)
    assert set(kinds(found)) == {Kind.MESSAGE_WITHOUT_PLACE, Kind.COUNTERS, Kind.MISSING}
    bring_in(account)
    assert_clean()
    assert len(snapshot()["places"]) == 3


def test_a_reason_beside_a_message_is_forgotten(system: System, account: EmailAccount) -> None:
    with database.transaction():
        place = EmailLocation.select().order_by(EmailLocation.id).get()
        EmailFetchFailure.create(
            folder=place.folder_id,
            uidvalidity=place.uidvalidity,
            generation=place.generation,
            uid=place.uid,
            verdict="waiting",
            reason="by hand",
            seen_at=database.now(),
        )
    assert repaired(Kind.VERDICT_TWICE).uid == place.uid
    assert_clean()


def test_attachments_of_an_unprocessed_message_are_removed(
    system: System, account: EmailAccount
) -> None:
    row = message_row()
    with database.transaction():
        EmailRawMessage.update(status="stored", next_attempt_at=database.now()).where(
            EmailRawMessage.id == row.id
        ).execute()
    found, _ = check(repair=True)
    assert set(kinds(found)) == {Kind.ATTACHMENTS_EARLY, Kind.DAY, Kind.ORPHAN}
    process([row.id])
    assert_clean()
    assert len(snapshot()["attachments"]) == 3


def test_a_message_with_another_number_of_attachments_is_processed_anew(
    system: System, account: EmailAccount
) -> None:
    with database.transaction():
        EmailRawMessage.update(attachment_count=2).where(
            EmailRawMessage.id == message_row().id
        ).execute()
    found, _ = check(repair=True)
    assert [one.outcome for one in found if one.kind is Kind.ATTACHMENTS_COUNT] == [Outcome.ASKED]
    process([message_row().id])
    assert_clean()


@pytest.mark.parametrize("lost", [None, timedelta(days=1)])
def test_a_message_that_nobody_works_on_is_made_due(
    system: System, account: EmailAccount, lost: timedelta | None
) -> None:
    system.dovecot.deliver_many(account.address, letters(4))
    poll(account.id, None)
    row = message_row(4)
    due = None if lost is None else database.now() - lost
    with database.transaction():
        EmailRawMessage.update(
            next_attempt_at=due, stored_at=database.now() - timedelta(days=2)
        ).where(EmailRawMessage.id == row.id).execute()
    assert repaired(Kind.STUCK).key == row.storage_key
    assert [found.id for found in EmailRawMessage.lost(9, imported=False)] == [row.id]
    process([row.id])
    assert_clean()


def test_leases_that_ended_long_ago_are_given_back(system: System, account: EmailAccount) -> None:
    change_accounts(lease_until=database.now() - timedelta(hours=2))
    repaired(Kind.LEASE_ENDED)
    assert account_row(account.uuid).lease_until is None
    assert_clean()


def test_a_deletion_that_nobody_works_on_is_named(system: System, account: EmailAccount) -> None:
    job = accounts.delete(account.uuid)
    assert job is not None
    with database.transaction():
        EmailJob.update(lease_until=database.now() - timedelta(hours=2)).execute()
    found, _ = check(repair=True)
    assert [(one.kind, account.uuid in one.detail) for one in found] == [(Kind.LEASE_ENDED, True)]
    assert_clean()


@pytest.mark.leaves_damage
def test_doubled_rows_are_named(system: System, account: EmailAccount) -> None:
    if database.is_sqlite():
        drop_sqlite_constraint()
    else:
        with database.connected():
            database.proxy.execute_sql(
                "ALTER TABLE email_raw_messages "
                "DROP CONSTRAINT email_raw_messages_account_id_sha256_key"
            )
    row = message_row()
    with database.transaction():
        row.id = None
        row.save(force_insert=True)
    found, tally = check(repair=True, offline=True)
    assert Kind.DUPLICATE in kinds(found)
    assert tally.exit_code == 1


def drop_sqlite_constraint() -> None:
    """Rebuild the table without its unique key, as a restore that went wrong may have it."""
    with database.connected():
        (sql,) = database.proxy.execute_sql(
            "SELECT sql FROM sqlite_master WHERE name = 'email_raw_messages'"
        ).fetchone()
        other = sql.replace("UNIQUE (account_id, sha256)", "CHECK (1)")
        other = other.replace("CREATE TABLE email_raw_messages", "CREATE TABLE other", 1)
        assert "CHECK (1)" in other
        for statement in (
            "PRAGMA foreign_keys = OFF",
            other,
            "INSERT INTO other SELECT * FROM email_raw_messages",
            "DROP TABLE email_raw_messages",
            "PRAGMA legacy_alter_table = ON",
            "ALTER TABLE other RENAME TO email_raw_messages",
            "PRAGMA foreign_keys = ON",
        ):
            database.proxy.execute_sql(statement)


# --- servers


def log_in(system: System, account: EmailAccount) -> imapclient.IMAPClient:
    client = imapclient.IMAPClient("127.0.0.1", system.dovecot.imap_port, ssl=False)
    client.login(account.address, PASSWORD)
    return client


def expunge(system: System, account: EmailAccount, uid: int) -> None:
    with log_in(system, account) as client:
        client.select_folder("INBOX")
        client.delete_messages([uid])
        client.expunge()


def test_a_message_that_was_forgotten_here_is_missing_and_comes_with_the_next_poll(
    system: System, account: EmailAccount
) -> None:
    before = snapshot()
    row = message_row(2)
    with database.transaction():
        for table in (EmailAttachment, EmailLocation):
            table.delete().where(table.message == row.id).execute()
        EmailRawMessage.delete().where(EmailRawMessage.id == row.id).execute()
    found, tally = check(repair=True)
    missing = next(one for one in found if one.kind is Kind.MISSING)
    assert (missing.folder, missing.uid, missing.outcome) == ("INBOX", 2, Outcome.ASKED)
    assert tally.exit_code == 1
    bring_in(account)
    assert_clean()
    assert snapshot() == before


def test_a_message_that_left_the_server_is_absent_until_it_is_written_down(
    system: System, account: EmailAccount
) -> None:
    expunge(system, account, 2)
    difference = repaired(Kind.ABSENT, Outcome.ASKED)
    assert (difference.folder, difference.uid) == ("INBOX", 2)
    bring_in(account)
    assert_clean()
    assert len(snapshot()["messages"]) == 3


def test_a_message_that_is_written_down_as_gone_and_is_there_has_returned(
    system: System, account: EmailAccount
) -> None:
    with database.transaction():
        EmailLocation.update(expunged_at=database.now()).where(EmailLocation.uid == 3).execute()
        EmailFolder.update(expunged=1).where(EmailFolder.name == "INBOX").execute()
    assert repaired(Kind.RETURNED, Outcome.ASKED).uid == 3
    bring_in(account)
    assert_clean()


def test_a_folder_that_was_begun_anew_at_the_server_is_named(
    system: System, account: EmailAccount
) -> None:
    before = snapshot()
    change_folder(uidvalidity=1)
    with database.transaction():
        EmailLocation.update(uidvalidity=1).execute()
    assert repaired(Kind.RENUMBERED, Outcome.ASKED).folder == "INBOX"
    bring_in(account)
    assert_clean()
    assert snapshot()["messages"] == before["messages"]


def test_a_folder_that_is_gone_at_the_server_is_named(
    system: System, account: EmailAccount
) -> None:
    with log_in(system, account) as client:
        client.create_folder("Passing")
    bring_in(account)
    with log_in(system, account) as client:
        client.delete_folder("Passing")
    assert repaired(Kind.FOLDER_GONE, Outcome.ASKED).folder == "Passing"
    bring_in(account)
    assert_clean()


def test_a_paused_account_is_checked_and_says_why_polls_do_not_repair_it(
    system: System, account: EmailAccount
) -> None:
    expunge(system, account, 2)
    accounts.pause(account)
    assert repaired(Kind.ABSENT, Outcome.LEFT).reason == (
        "the account is paused, and polls repair this"
    )


def test_bytes_that_changed_at_the_server_are_named_when_asked_for(
    system: System, account: EmailAccount
) -> None:
    maildir = system.dovecot.directory / "mail" / account.address / "Maildir"
    (path,) = (one for one in maildir.glob("*/*S=*") if b"attached 2" in one.read_bytes())
    path.write_bytes(path.read_bytes().replace(b"attached 2", b"attached X"))
    assert_clean()
    found, tally = check(contents=True, repair=True)
    assert [(one.kind, one.uid) for one in found] == [(Kind.CHANGED, 2)]
    assert tally.exit_code == 1


def test_a_server_that_cannot_be_asked_is_told(system: System, account: EmailAccount) -> None:
    change_accounts(port=1)
    found, tally = check()
    assert (found, tally.exit_code, len(tally.unchecked)) == ([], 2, 1)
    # And no login is tried where logins are refused: providers lock accounts that go on
    change_accounts(state=AccountState.AUTH_FAILED, port=account.port)
    _, tally = check()
    assert "refused" in tally.unchecked[0]
    assert tally.exit_code == 2


def test_a_login_that_fails_is_not_tried_for_every_message(
    system: System, account: EmailAccount
) -> None:
    """Or a check of a damaged store would lock the account."""
    mailbox = Mailbox(account)
    mailbox.account.port = 1
    with pytest.raises(ImapError) as first:
        _ = mailbox.session
    mailbox.account.port = system.dovecot.imaps_port
    with pytest.raises(ImapError) as second:
        _ = mailbox.session
    assert first.value is second.value


# --- while others work, and after a restore


def test_repairs_wait_for_a_poll_and_leave_the_account_to_the_next(
    system: System, account: EmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsck, "PATIENCE", 0)
    spoil(system, message_row().storage_key, flip)
    poller = EmailAccount.lease(account.id, None, 60)
    assert poller is not None
    found, _ = check(repair=True)
    assert [(one.outcome, one.reason) for one in found] == [
        (Outcome.LEFT, "a poll is running; try again")
    ]
    poller.release()
    assert check(repair=True)[1].exit_code == 0
    row = account_row(account.uuid)
    assert (row.lease_until, row.queued_until) == (None, None)


def test_checks_and_repairs_beside_pollers_and_workers_see_no_ghosts(
    system: System, account: EmailAccount
) -> None:
    system.dovecot.deliver_many(account.address, letters(*range(10, 130)))
    with system.workers():
        system.post(f"/admin/email-accounts/{account.uuid}/poll", 202)
        for _ in range(6):
            found, _ = check(repair=True)
            assert [one.as_line() for one in found if one.outcome is not Outcome.RECENT] == []
        wait_until(lambda: messages_by_status() == {"processed": 123})
    assert_clean()


def messages_by_status() -> dict[str, int]:
    with database.connected():
        statuses = EmailRawMessage.select(EmailRawMessage.status).tuples()
        return Counter(status for (status,) in statuses)


def rows_of_all_tables() -> dict[Any, list[dict[str, Any]]]:
    with database.connected():
        return {table: list(table.select().dicts()) for table in TABLES}


def test_after_a_restore_of_an_older_database_all_is_found_again_once(
    system: System, account: EmailAccount
) -> None:
    # Given a backup, after which mail came in and was moved
    backup = rows_of_all_tables()
    system.dovecot.deliver_many(account.address, letters(4, 5, 6))
    system.dovecot.deliver_many(account.address, letters(2), "Copies")
    bring_in(account)
    later = snapshot()
    # When the database is restored, and the store is not
    with database.transaction():
        for table in reversed(TABLES):
            table.delete().execute()
        for table in TABLES:
            for row in backup[table]:
                table.insert(row).execute()
    # Then the blobs that it does not know are named, and kept
    found, tally = check(repair=True)
    assert set(kinds(found)) == {Kind.ORPHAN}
    assert {one.outcome for one in found} == {Outcome.RECENT}
    assert len(found) == 6
    assert tally.newer == 4
    # And one poll brings all back, nothing twice
    change_accounts(lease_until=None)
    bring_in(account)
    assert snapshot() == later
    assert_clean()


# --- the command


@pytest.fixture
def variables(system: System) -> dict[str, str]:
    names = ("MAILPOLL_", "REDIS_URL", "DATABASE_URL", "STORAGE_URL")
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(names) and not name.startswith("MAILPOLL_TEST")
    }


def test_the_command_names_repairs_and_sums_up(
    system: System, account: EmailAccount, variables: dict[str, str], tmp_path: Path
) -> None:
    result = run("fsck", variables=variables, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"blobs read back: 6 (" in result.stdout
    assert b"differences: 0" in result.stdout
    row = message_row()
    spoil(system, row.storage_key, flip)
    result = run("fsck", "--json", "--account", account.address, variables=variables, cwd=tmp_path)
    found, summary = map(json.loads, result.stdout.splitlines())
    assert (result.returncode, found["kind"], found["key"]) == (1, "blob_corrupt", row.storage_key)
    assert (found["account"], found["folder"], found["uid"]) == (account.uuid, "INBOX", 1)
    assert (summary["kind"], summary["differences"]) == ("summary", 1)
    result = run("fsck", "--repair", variables=variables, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    line = result.stdout.decode().splitlines()[0]
    assert line.startswith(f"{account.address} INBOX UID 1 {row.storage_key}: the blob's bytes")
    assert "repaired: fetched again from the server" in line
    assert b"differences: 1 (1 repaired)" in result.stdout


def test_on_a_terminal_it_shows_how_far_it_is(
    system: System, account: EmailAccount, variables: dict[str, str], tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mailpoll", "fsck"],
        cwd=tmp_path,
        env=clean({**variables, "TERM": "xterm"}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = read_until(ours, b"blobs read back: ")
    assert process.wait(60) == 0
    os.close(ours)
    assert b"differences: " in shown.partition(b"blobs read back")[0]


@pytest.mark.parametrize(
    ("arguments", "variable", "said"),
    [
        (["--account", "nobody@example.org"], {}, "there is no account nobody@example.org"),
        (["--offline", "--bytes"], {}, "--bytes"),
        ([], {"STORAGE_URL": "ftp://x"}, "STORAGE_URL"),
        ([], {"DATABASE_URL": "postgresql://u:canary@127.0.0.1:1/x"}, "DATABASE_URL"),
    ],
)
def test_what_cannot_be_checked_ends_with_2(
    system: System,
    variables: dict[str, str],
    tmp_path: Path,
    arguments: list[str],
    variable: dict[str, str],
    said: str,
) -> None:
    result = run("fsck", *arguments, variables={**variables, **variable}, cwd=tmp_path)
    assert result.returncode == 2, result.stdout
    (line,) = result.stderr.decode().splitlines()
    assert said in line
    assert "canary" not in line
