"""``GET /admin/stats`` and ``GET /admin/email-accounts/{id}/stats``."""

from datetime import timedelta
from email.message import EmailMessage
from email.policy import SMTP
from typing import NoReturn

import pytest

from mailpoll import accounts, actors, database
from mailpoll.blobs import Storage, StoreUnavailable
from mailpoll.models import EmailAccount
from tests.integration.rows import change_accounts, change_messages
from tests.integration.scripted import add, polled
from tests.integration.system import System, message
from tests.servers.scripted_imap import RESET, Rule, ScriptedImap

URL = "/admin/email-accounts"
#: 14 November 2023, 22:13:20 UTC, in seconds since 1970.
START = 1_700_000_000


def with_attachment() -> bytes:
    mail = EmailMessage(policy=SMTP)
    mail["Subject"] = "attached"
    mail.set_content("text\n")
    mail.add_attachment(b"12345", maintype="application", subtype="pdf", filename="a.pdf")
    return mail.as_bytes()


def test_an_empty_installation_has_zeros(system: System) -> None:
    found = system.get("/admin/stats")
    assert found["accounts"] == {"active": 0, "paused": 0, "auth_failed": 0, "deleting": 0}
    assert (found["messages"], found["bytes"], found["days"]) == (0, 0, [])
    assert found["by_status"] == {"stored": 0, "processed": 0, "failed": 0}
    assert found["late_accounts"] == 0


def test_the_figures_are_those_of_the_mail(system: System, address: str) -> None:
    raws = [message("a"), message("b"), with_attachment()]
    system.dovecot.deliver(address, raws[0], received_at=START)
    system.dovecot.deliver(address, raws[1], received_at=START + 86_400)
    system.dovecot.deliver(address, raws[2], folder="Files", received_at=START + 86_400)
    account = system.add_account(address)
    system.poll_and_process(account)
    found = system.get(f"{URL}/{account}/stats")
    size = sum(map(len, raws))
    assert (found["messages"], found["bytes"]) == (3, size)
    assert (found["attachments"], found["attachment_bytes"]) == (1, 5)
    assert found["by_status"] == {"stored": 0, "processed": 3, "failed": 0}
    kind = system.get("/admin/stats")["storage"]
    assert found["by_storage_type"] == {"local": 0, "oss": 0, kind: 4}
    folders = {folder["name"]: folder for folder in found["folders"]}
    assert (folders["INBOX"]["messages"], folders["Files"]["messages"]) == (2, 1)
    assert folders["INBOX"]["bytes"] == len(raws[0]) + len(raws[1])
    assert folders["INBOX"]["server_messages"] == 2
    assert folders["INBOX"]["imported"] is True
    days = {day["day"]: day for day in found["days"]}
    assert days["2023-11-14"]["messages"] == 1
    assert days["2023-11-15"]["messages"] == 2
    assert days["2023-11-15"]["attachments"] == 1
    assert found["last_error"] is None
    assert found["poll_duration_ms"] is not None
    overall = system.get("/admin/stats")
    for name in ("messages", "bytes", "attachments", "attachment_bytes", "by_status", "days"):
        assert overall[name] == found[name]


def test_all_accounts_are_summed(system: System, address: str) -> None:
    for name in (address, f"other-{address}"):
        system.dovecot.deliver(name, message(name))
        system.poll_and_process(system.add_account(name))
    paused = system.add_account(f"third-{address}")
    system.post(f"{URL}/{paused}/pause")
    found = system.get("/admin/stats")
    assert found["messages"] == 2
    assert found["accounts"] == {"active": 2, "paused": 1, "auth_failed": 0, "deleting": 0}


def test_what_is_deleted_counts_no_more(system: System, address: str) -> None:
    # Given accounts whose mail came in on the same days
    names = [f"{n}-{address}" for n in range(9)]
    for name in names:
        for day in range(2):
            system.dovecot.deliver(name, message(name), received_at=START + day * 86_400)
        system.poll_and_process(system.add_account(name))
    assert [day["messages"] for day in system.get("/admin/stats")["days"]] == [9]
    # When all but two of them are deleted
    for account in system.get(URL)["items"][2:]:
        job = accounts.delete(account["id"])
        assert job is not None
        actors.delete_account.fn(job.id)
    # Then the days are those of the others
    found = system.get("/admin/stats")
    assert [day["messages"] for day in found["days"]] == [2]
    assert (found["messages"], found["bytes"]) == (2, sum(len(message(n)) for n in names[:2]))


def test_what_is_late_or_failed_shows(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("x"))
    account = system.add_account(address)
    system.poll_and_process(account)
    earlier = database.now() - timedelta(minutes=10)
    change_accounts(next_poll_at=earlier, last_error="broken", last_error_kind="unreachable")
    change_messages(status="failed", stored_at=earlier)
    found = system.get("/admin/stats")
    assert found["late_accounts"] == 1
    assert found["by_status"] == {"stored": 0, "processed": 0, "failed": 1}
    change_messages(status="stored")
    assert system.get("/admin/stats")["oldest_pending_seconds"] >= 600
    assert system.get(f"{URL}/{account}/stats")["last_error"] == "broken"


def test_how_late_polls_are_is_the_nearest_rank_among_active_accounts(
    system: System, address: str
) -> None:
    assert system.get("/admin/stats")["lateness_p95_ms"] is None
    # Given 21 accounts with known delays, and two that tell nothing: paused, and not polled yet
    uuids = [system.add_account(f"{number}.{address}", test=False) for number in range(23)]
    paused, never, *others = uuids
    delays = {paused: 10_000, never: None}
    delays |= {uuid: 10 * number for number, uuid in enumerate(others, 1)}
    with database.transaction():
        for uuid, delay in delays.items():
            chosen = EmailAccount.uuid == uuid
            EmailAccount.update(last_lateness_ms=delay).where(chosen).execute()
        EmailAccount.update(state="paused").where(EmailAccount.uuid == paused).execute()
    # Then it is the 20th of the 21
    assert system.get("/admin/stats")["lateness_p95_ms"] == 200


def test_a_failed_login_shows_its_reason(system: System, address: str) -> None:
    account = system.add_account(address, password="wrong", test=False)
    url = f"{URL}/{account}/stats"
    system.work_until(lambda: system.get(url)["last_error"])
    assert system.get(url)["last_error_kind"] == "auth_failed"


NO = {
    "password": Rule("LOGIN", b"{tag} NO [AUTHENTICATIONFAILED] no\r\n"),
    "limit": Rule("LOGIN", b"{tag} NO [LIMIT] too many\r\n"),
    "lost": Rule("LIST", RESET),
    "store": None,
}


@pytest.mark.parametrize("fault", NO)
def test_a_poll_that_fails_is_never_shown_as_success(
    scripted: System, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an account whose mail came in, and new mail
    with ScriptedImap(messages={1: message("a")}) as server:
        account = polled(add(server))
        server.messages[2] = message("b")
        # When the next poll fails, at whatever it is
        if (rule := NO[fault]) is not None:
            server.rules = [rule]
        else:
            monkeypatch.setattr(Storage, "put", away)
        after = polled(account)
    # Then it says so, and nothing else has changed
    assert account.last_success_at is not None
    assert after.last_success_at == account.last_success_at
    assert (account.last_error, account.failures) == (None, 0)
    assert after.last_error
    assert after.failures == 1
    figures = scripted.get(f"{URL}/{account.uuid}/stats")
    assert (figures["messages"], figures["last_error"]) == (1, after.last_error)


def away(*_: object) -> NoReturn:
    raise StoreUnavailable("away")
