"""Polls of a scripted server, one at a time, and what they leave behind."""

import hashlib
from typing import Any

from mailpoll import accounts, database, runtime
from mailpoll.actors.poll import poll
from mailpoll.models import (
    EmailAccount,
    EmailFetchFailure,
    EmailFolder,
    EmailLocation,
    EmailRawMessage,
)
from tests.servers.scripted_imap import ScriptedImap


def add(server: ScriptedImap, address: str = "someone@example.org", **fields: Any) -> EmailAccount:
    """An account at the server, not yet polled."""
    return accounts.create(
        address=address,
        password="secret",
        host="127.0.0.1",
        port=server.port,
        security="plain",
        test=False,
        **fields,
    )


def polled(account: EmailAccount) -> EmailAccount:
    """The account after one poll."""
    poll(account.id, None)
    with database.connected():
        return EmailAccount.get_by_id(account.id)


def stored() -> list[bytes]:
    """The raw messages, read back from the store, in the order of their rows."""
    with database.connected():
        rows = list(EmailRawMessage.select().order_by(EmailRawMessage.id))
    return [runtime.storage().open(row.storage_key, row.storage_type).read() for row in rows]


def places() -> dict[tuple[str, int, int], str]:
    """(folder, UIDVALIDITY, UID) to SHA-256, as the manifest of a server has it."""
    table = EmailLocation
    with database.connected():
        rows = table.select(table, EmailFolder.wire_name, EmailRawMessage.sha256)
        rows = rows.join(EmailFolder).switch(table).join(EmailRawMessage)
        return {
            (row.folder.wire_name, row.uidvalidity, row.uid): row.message.sha256 for row in rows
        }


def verdicts() -> dict[int, str]:
    """UID to verdict of those without a message."""
    with database.connected():
        return {row.uid: row.verdict for row in EmailFetchFailure.select()}


def folder(name: str = "INBOX") -> EmailFolder:
    with database.connected():
        return EmailFolder.get(EmailFolder.name == name)


def try_again_now() -> None:
    """Let everything that waits for a time be due."""
    with database.transaction():
        EmailFetchFailure.update(next_attempt_at=database.now()).execute()


def expect(server: ScriptedImap, *missing: int, name: bytes = b"INBOX") -> None:
    """What the server has is stored exactly once, save these UIDs; nothing else is stored."""
    mailbox = server.mailbox(name)
    wanted = {
        (name.decode("latin-1"), mailbox.uidvalidity, uid): hashlib.sha256(raw).hexdigest()
        for uid, raw in mailbox.messages.items()
        if uid not in missing
    }
    assert {key: digest for key, digest in places().items() if key[0] == key[0]} == wanted
    assert sorted({hashlib.sha256(raw).hexdigest() for raw in stored()}) == sorted(
        set(wanted.values())
    )
    assert len(stored()) == len(set(wanted.values()))
