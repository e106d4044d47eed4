"""The check at the end of every test is one that can fail."""

import pytest

from mailpoll import database, queues, runtime
from mailpoll.actors import delete
from mailpoll.blobs import Storage
from mailpoll.models import EmailAccountDay, EmailFolder, EmailJob
from tests.integration import oracle
from tests.integration.rows import account_row, change_jobs
from tests.integration.system import System, message
from tests.integration.test_fsck import change_folder


@pytest.fixture
def account(system: System, address: str) -> str:
    system.dovecot.deliver(address, message("one"))
    account = system.add_account(address)
    system.poll_and_process(account)
    return account


@pytest.mark.leaves_damage
def test_damage_is_found(system: System, account: str) -> None:
    oracle.assert_sound()
    change_folder(messages=EmailFolder.messages + 1)
    with pytest.raises(AssertionError, match="the folder's counters differ"):
        oracle.assert_sound()


def test_a_row_that_deletion_forgets_is_found(
    system: System, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a deletion that forgets something, and does not see it when it looks at its end
    with monkeypatch.context() as forgetful:
        forgetful.setattr(
            delete, "_delete_account_rows", lambda job: delete._progress(job, "blobs")
        )
        forgetful.setattr(delete, "_left", lambda job: {})
        with pytest.raises(AssertionError, match=EmailAccountDay._meta.table_name):
            oracle.assert_all_can_be_deleted(system)
    change_jobs(state="running", lease_until=None)
    with database.connected():
        job = EmailJob.get()
    delete._delete_account_rows(job)


def test_a_blob_that_deletion_forgets_is_found(
    system: System, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as forgetful:
        forgetful.setattr(Storage, "list_account", lambda *_: [])
        forgetful.setattr(Storage, "delete_account", lambda *_: 0)
        with pytest.raises(AssertionError, match=account):
            oracle.assert_all_can_be_deleted(system)
    runtime.storage().delete_account(account)


@pytest.mark.parametrize("named", ["address", "uuid"])
def test_a_key_that_names_the_account_is_found(system: System, account: str, named: str) -> None:
    system.broker.client.set("mailpoll:limit:slots:x", getattr(account_row(account), named))
    with pytest.raises(AssertionError, match="limit:slots:x"):
        oracle.assert_all_can_be_deleted(system)
    system.broker.client.delete("mailpoll:limit:slots:x")


def test_a_queue_entry_that_deletion_forgets_is_found(
    system: System, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mailpoll.actors import poll_account

    poll_account.send(account_row(account).id)
    with monkeypatch.context() as forgetful:
        forgetful.setattr(queues, "entries", lambda *_: iter(()))
        with pytest.raises(AssertionError, match="poll_account"):
            oracle.assert_all_can_be_deleted(system)
    system.broker.flush_all()


def test_a_file_in_the_spool_is_found(system: System, account: str) -> None:
    spool = system.settings.spool_dir
    spool.mkdir(exist_ok=True)
    (spool / "forgotten").touch()
    with pytest.raises(AssertionError, match="forgotten"):
        oracle.assert_all_can_be_deleted(system)
    (spool / "forgotten").unlink()
