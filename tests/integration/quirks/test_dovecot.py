"""What other clients and the server's own files do to a real mailbox between and during polls."""

import hashlib
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imapclient

from mailpoll.actors.poll import poll
from tests.integration.rows import account_row
from tests.integration.scripted import folder, places, stored
from tests.integration.system import PASSWORD, System, message


@contextmanager
def client(system: System, address: str) -> Iterator[imapclient.IMAPClient]:
    """Another client of the same mailbox."""
    context = ssl.create_default_context(cafile=str(system.dovecot.ca_file))
    other = imapclient.IMAPClient(
        "localhost", port=system.dovecot.imaps_port, ssl=True, ssl_context=context
    )
    other.login(address, PASSWORD)
    yield other
    other.logout()


def polled(system: System, account: str) -> None:
    poll(account_row(account).id, None)


def mail(count: int) -> list[bytes]:
    return [message(f"number {number}") for number in range(count)]


def digests(raws: list[bytes]) -> list[str]:
    return sorted(hashlib.sha256(raw).hexdigest() for raw in raws)


def test_flags_that_change_during_a_fetch_bend_nothing(system: System, address: str) -> None:
    sent = mail(300)
    system.dovecot.deliver_many(address, sent)
    account = system.add_account(address)
    stop = threading.Event()
    with client(system, address) as other:
        other.select_folder("INBOX")
        uids = other.search()
        changes = 0

        def restless() -> None:
            nonlocal changes
            while not stop.is_set():
                other.add_flags(uids, [imapclient.FLAGGED])
                other.remove_flags(uids, [imapclient.FLAGGED])
                changes += 1

        thread = threading.Thread(target=restless)
        thread.start()
        try:
            polled(system, account)
        finally:
            stop.set()
            thread.join()
    assert changes > 0
    assert digests(stored()) == digests(sent)
    assert folder().complete


def test_mail_that_others_remove_and_add_during_polls_is_accounted_for(
    system: System, address: str
) -> None:
    system.dovecot.deliver_many(address, mail(60))
    account = system.add_account(address)
    polled(system, account)
    with client(system, address) as other:
        other.select_folder("INBOX")
        for _ in range(5):
            uids = other.search()
            other.delete_messages(uids[:5])
            other.expunge()
            system.dovecot.deliver_many(address, [message(f"more {len(stored())}")])
            polled(system, account)
    proof = folder().proof
    assert proof["server"] == 60 - 25 + 5
    assert len(stored()) == 65
    system.post(f"/admin/email-accounts/{account}/reconcile", 202)
    polled(system, account)
    proof = folder().proof
    assert (proof["stored"], proof["expunged"], proof["missing"]) == (40, 25, 0)
    assert folder().complete


def test_a_folder_that_is_renamed_and_made_again_keeps_everything(
    system: System, address: str
) -> None:
    sent = mail(10)
    system.dovecot.deliver_many(address, sent, folder="Project")
    account = system.add_account(address)
    polled(system, account)
    with client(system, address) as other:
        other.rename_folder("Project", "Project old")
        other.create_folder("Project")
    new = message("in the new folder")
    system.dovecot.deliver(address, new, folder="Project")
    polled(system, account)
    assert digests(stored()) == digests([*sent, new])
    assert folder("Project old").complete
    assert folder("Project").complete


def test_a_message_that_is_moved_is_not_stored_again(system: System, address: str) -> None:
    sent = mail(3)
    system.dovecot.deliver_many(address, sent)
    account = system.add_account(address)
    polled(system, account)
    with client(system, address) as other:
        other.create_folder("Archive")
        other.select_folder("INBOX")
        other.move(other.search()[:2], "Archive")
    polled(system, account)
    assert digests(stored()) == digests(sent)
    assert sum(key[0] == "Archive" for key in places()) == 2


def rebuild(maildir: Path) -> None:
    for name in ("dovecot-uidlist", "dovecot.index", "dovecot.index.log", "dovecot.index.cache"):
        (maildir / name).unlink(missing_ok=True)
    for stale in maildir.glob("dovecot-uidvalidity*"):
        stale.unlink()


def test_a_rebuilt_index_with_new_uids_doubles_nothing(system: System, address: str) -> None:
    sent = mail(20)
    system.dovecot.deliver_many(address, sent)
    account = system.add_account(address)
    polled(system, account)
    before = folder().uidvalidity
    system.dovecot.deliver(address, message("after the rebuild"))
    for _ in range(10):
        # Dovecot's UIDVALIDITY is the second, and the session of a poll has its files for a moment
        time.sleep(2)
        rebuild(system.dovecot._maildir(address, "INBOX"))
        polled(system, account)
        if folder().uidvalidity != before:
            break
    assert folder().uidvalidity != before
    assert len(stored()) == 21
    assert folder().complete


def test_a_message_whose_size_the_server_has_wrong_arrives_in_the_end(
    system: System, address: str
) -> None:
    # Given a file that is shorter than its name says, on which Dovecot breaks off once
    sent = mail(5)
    system.dovecot.deliver_many(address, sent)
    account = system.add_account(address)
    with client(system, address) as other:
        other.select_folder("INBOX", readonly=True)
        other.fetch(other.search(), ["RFC822.SIZE"])
    maildir = system.dovecot._maildir(address, "INBOX")
    broken = sorted([*(maildir / "cur").iterdir(), *(maildir / "new").iterdir()])[2]
    shorter = broken.read_bytes()[:-9]
    broken.write_bytes(shorter)
    for _ in range(3):
        polled(system, account)
    kept = [raw for raw in sent if not raw.startswith(shorter)]
    assert digests([raw for raw in stored() if raw != shorter]) == digests(kept)
    assert shorter in stored() or folder().proof["waiting"] == 1
