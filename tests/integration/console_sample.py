"""A mailpoll in which everything that the console shows has happened once."""

from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any

from mailpoll import database
from mailpoll.models import (
    AccountState,
    EmailAccount,
    EmailDamage,
    EmailFetchFailure,
    EmailFolder,
    EmailRawMessage,
    FetchVerdict,
    MessageStatus,
    WebhookEndpoint,
)
from tests.integration.archived import finished
from tests.integration.rows import account_row, change_messages
from tests.integration.system import PASSWORD, System, message
from tests.integration.test_console import ATTACKS, HOSTILE
from tests.integration.test_tasks import make_dead
from tests.security.test_api_keys import new_key
from tests.servers.receiver import Receiver

#: What would be asked of another host, if anything were.
REMOTE = "https://evil.example/seen.gif"
#: More accounts than a page of the list has.
CROWD = 60
PIXEL = b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")


@dataclass(frozen=True, slots=True)
class Sample:
    """Where what has happened is to be seen.

    Parameters:
      account: has mail, attachments, failures of all kinds, a legal hold.
      importing: is in the middle of its first import.
      refused: the server refuses its login.
      message: has HTML that attacks, pictures, attachments, a conversation.
      plain: is text alone, failed and is held.
      hook: has deliveries with each outcome.
      exports: one that is made, and one that is running.
      deletions: one that is done, and one that is running.
      read_key: the token of a key that may only read.
    """

    account: str
    importing: str
    refused: str
    message: int
    plain: int
    thread: int
    hook: str
    exports: tuple[str, str]
    deletions: tuple[str, str]
    read_key: str


@contextmanager
def everything(system: System, address: str) -> Iterator[Sample]:
    """Let it happen; afterwards what belongs to no sound installation is taken away again."""
    account, importing = mailboxes(system, address)
    found = {one["subject"]: one for one in system.messages(account)}
    (attack,) = (one for subject, one in found.items() if subject.startswith("Figures"))
    (plain,) = (one for subject, one in found.items() if subject.startswith("</title>"))
    done, over = export(system, account), deletion(system, f"gone{address}")
    finished(system, done)
    system.work_until(lambda: system.get(f"/admin/delete-jobs/{over}")["state"] == "done")
    make_dead(system, 1, 2)
    hook = webhook(system)
    # Nobody works any more: what begins now goes on
    exports = (done, export(system, account))
    deletions = (over, deletion(system, f"going{address}"))
    refused = crowd(system, account, address)
    holds = [f"/admin/email-accounts/{account}/hold", f"/admin/messages/{plain['id']}/hold"]
    for path in holds:
        system.api.simulate_put(path, json={"reason": "a case with a long name " * 20})
    key = new_key(system, "read", "a key with a long name " * 2)
    troubles(account, plain["id"])
    half_way(importing)
    try:
        yield Sample(
            account=account,
            importing=importing,
            refused=refused,
            message=attack["id"],
            plain=plain["id"],
            thread=attack["thread_id"],
            hook=hook,
            exports=exports,
            deletions=deletions,
            read_key=key["token"],
        )
    finally:
        for path in holds:
            system.api.simulate_delete(path)
        put_right()


def mailboxes(system: System, address: str) -> tuple[str, str]:
    """One with every kind of mail, and one with a single message."""
    first, second = figures(), answer()
    system.dovecot.deliver(address, first)
    system.dovecot.deliver(address, second)
    system.dovecot.deliver(address, message(HOSTILE * 20, "plain words " * 300))
    system.dovecot.deliver(address, message("x" * 300), folder="a/folder/with a long name/" * 3)
    account = system.add_account(address, sync_flags=True)
    system.poll_and_process(account)
    system.dovecot.deliver(f"half{address}", message("the first of many"))
    importing = system.add_account(f"half{address}")
    system.poll_and_process(importing)
    return account, importing


def figures() -> bytes:
    """HTML with all that must not run, a picture of its own, and one from elsewhere."""
    mail = EmailMessage()
    mail["From"], mail["To"] = "Ann Example <ann@example.org>", "team@example.org"
    mail["Subject"], mail["Message-ID"] = "Figures of the quarter", "<figures@example.org>"
    mail["Date"] = "Mon, 23 Nov 2026 10:00:00 +0000"
    mail.set_content("Dear team\n")
    own = "<img src='cid:logo@example.org' alt='logo'>"
    html = f"<p>Dear team {own}</p><img src='{REMOTE}' alt='x'>{''.join(ATTACKS)}"
    mail.add_alternative(html, "html")
    part = mail.get_payload(1)
    part.add_related(PIXEL, "image", "gif", cid="<logo@example.org>", filename="logo.gif")
    mail.add_attachment(b"%PDF-1.4", "application", "pdf", filename="Übersicht " * 12 + ".pdf")
    mail.add_attachment("a,b\n1,2\n", "csv", filename="figures.csv")
    return mail.as_bytes(policy=SMTP)


def answer() -> bytes:
    mine = {"In_Reply_To": "<figures@example.org>", "References": "<figures@example.org>"}
    return message("Re: Figures of the quarter", "Thank you.\r\n", **mine)


def export(system: System, account: str) -> str:
    """One that begins; its id."""
    return str(system.post("/admin/exports", 202, account_id=account, format="zip")["id"])


def deletion(system: System, address: str) -> str:
    """The job of one that begins."""
    gone = system.add_account(address, test=False)
    system.api.simulate_delete(f"/admin/email-accounts/{gone}")
    return str(system.get("/admin/delete-jobs")["items"][0]["id"])


def webhook(system: System) -> str:
    """One that was delivered to, and whose receiver is away now."""
    with Receiver() as receiver:
        hook = system.post("/admin/webhooks", 201, url=receiver.url + "x" * 80)["id"]
        system.post(f"/admin/webhooks/{hook}/replay", 202, since="2026-01-01T00:00:00Z")
        log = f"/admin/webhooks/{hook}/deliveries"
        system.work_until(lambda: system.get(log, outcome="delivered")["items"])
    event = system.get(log)["items"][0]["event"]
    system.post(f"/admin/webhooks/{hook}/events/{event}/redeliver")
    with database.transaction():
        WebhookEndpoint.update(last_error="the receiver says: " + "no " * 60).execute()
    return str(hook)


def crowd(system: System, account: str, address: str) -> str:
    """Many more accounts, of which one is paused and one refused; its id."""
    place = {"host": "localhost", "port": system.dovecot.imaps_port, "password": PASSWORD}
    rows = [{"address": f"{number:02}{address}", **place} for number in range(CROWD)]
    added = system.post("/admin/email-accounts/import", 200, accounts=rows, dry_run=False)
    added = added["items"]
    paused, refused = (str(one["account_id"]) for one in added[:2])
    system.post(f"/admin/email-accounts/{paused}/pause")
    system.post(f"/admin/email-accounts/{account}/pause")
    system.post(f"/admin/email-accounts/{account}/resume")
    key = new_key(system, "operate")
    system.api.simulate_delete(f"/admin/api-keys/{key['id']}")
    words = {"last_error": "the server says: " + "no " * 60, "last_error_kind": "auth_failed"}
    with database.transaction():
        EmailAccount.update(
            state=AccountState.AUTH_FAILED, last_error_at=database.now(), **words
        ).where(EmailAccount.uuid == refused).execute()
    return refused


def troubles(account: str, plain: int) -> None:
    """Mail that was not fetched, not processed, or was damaged since."""
    row, moment = account_row(account), database.now()
    failed = {"status": MessageStatus.FAILED, "error": "it is broken, " + "and more " * 30}
    with database.transaction():
        folder = EmailFolder.get(EmailFolder.account == row, EmailFolder.name == "INBOX")
        EmailRawMessage.update(failed).where(EmailRawMessage.id == plain).execute()
        for number, verdict in enumerate(FetchVerdict):
            EmailFetchFailure.create(
                folder=folder,
                uidvalidity=folder.uidvalidity,
                generation=folder.generation,
                uid=9_000 + number,
                verdict=verdict,
                reason="the server answers: " + "NO " * 40,
                next_attempt_at=moment + timedelta(hours=1),
                seen_at=moment,
            )
        EmailDamage.create(
            account=row,
            message_id=plain,
            storage_key="x",
            kind="blob_corrupt",
            reason="the stored bytes differ",
            found_at=moment,
            next_attempt_at=moment,
        )


def half_way(account: str) -> None:
    """Let a first import have most of its mail before it."""
    row = account_row(account)
    with database.transaction():
        EmailAccount.update(imported_at=None).where(EmailAccount.id == row.id).execute()
        for folder in EmailFolder.of_account(row.id):
            more: Any = {"proof": {**folder.proof, "to_import": 12_345}}
            EmailFolder.update(more).where(EmailFolder.id == folder.id).execute()


def put_right() -> None:
    change_messages(status=MessageStatus.PROCESSED, error=None)
    with database.transaction():
        for table in (EmailFetchFailure, EmailDamage, WebhookEndpoint):
            table.delete().execute()
