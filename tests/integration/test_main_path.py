"""The path of a message, from the mailbox to the API."""

import hashlib

import pytest

from tests.integration.system import System, message

pytestmark = pytest.mark.queue


def test_every_message_of_every_folder_arrives_once_and_exact(system: System, address: str) -> None:
    # Given a mailbox with mail in three folders
    sent = [message(f"number {n}", f"body {n}\r\n") for n in range(40)]
    system.dovecot.deliver_many(address, sent[:30])
    system.dovecot.deliver_many(address, sent[30:35], folder="Archive/2024")
    system.dovecot.deliver_many(address, sent[35:], folder="Entwürfe & Ideen")
    # When it is added
    account = system.add_account(address)
    system.poll_and_process(account)
    # Then the store has exactly what was sent, and the API serves the same bytes
    found = system.messages(account)
    assert sorted(item["sha256"] for item in found) == sorted(
        hashlib.sha256(raw).hexdigest() for raw in sent
    )
    assert {item["status"] for item in found} == {"processed"}
    raw = system.api.simulate_get(f"/admin/messages/{found[0]['id']}/raw")
    assert hashlib.sha256(raw.content).hexdigest() == found[0]["sha256"]
    folders = {
        f["name"]: f for f in system.get(f"/admin/email-accounts/{account}/stats")["folders"]
    }
    assert folders["INBOX"]["messages"] == 30
    assert folders["Archive/2024"]["messages"] == 5
    assert folders["Entwürfe & Ideen"]["messages"] == 5


def test_new_mail_arrives_at_the_next_poll(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("old"))
    account = system.add_account(address)
    system.poll_and_process(account)
    system.dovecot.deliver(address, message("new"))
    system.poll_and_process(account)
    assert [item["subject"] for item in system.messages(account)].count("new") == 1
    assert len(system.messages(account)) == 2


def test_a_message_in_two_folders_is_stored_once_with_two_places(
    system: System, address: str
) -> None:
    raw = message("twice")
    system.dovecot.deliver(address, raw)
    system.dovecot.deliver(address, raw, folder="Copy")
    account = system.add_account(address)
    system.poll_and_process(account)
    (item,) = system.messages(account)
    places = system.get(f"/admin/messages/{item['id']}")["locations"]
    assert {place["folder"] for place in places} == {"INBOX", "Copy"}


@pytest.mark.parametrize("size", [999_999, 1_000_000, 1_000_001, 3_500_000])
def test_large_messages_are_fetched_in_parts_and_exact(
    system: System, address: str, size: int
) -> None:
    raw = message("large", "x" * 70 + "\r\n")
    raw += (b"0123456789" * 7 + b"\r\n") * ((size - len(raw)) // 72)
    raw += b"y" * (size - len(raw))
    system.dovecot.deliver(address, raw)
    account = system.add_account(address)
    system.poll_and_process(account)
    (item,) = system.messages(account)
    assert item["size"] == len(raw)
    assert item["sha256"] == hashlib.sha256(raw).hexdigest()
    content = system.api.simulate_get(f"/admin/messages/{item['id']}/raw").content
    assert content == raw
