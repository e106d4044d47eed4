"""``mailpoll messages``: stored mail in lists, one by one, as bytes, and tried again."""

import json
from pathlib import Path

import pytest

from mailpoll.models import MessageStatus
from tests.integration.archived import add_archive, environment, process, upload
from tests.integration.rows import change_messages
from tests.integration.system import System, message
from tests.integration.test_cli import run

INVITED = (
    b"From: Ann <ann@example.org>\r\nTo: bob@example.org\r\nSubject: \x1b[31mplans\r\n"
    b"Message-ID: <plans@example.org>\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\nContent-Type: text/plain\r\n\r\nSee the file.\r\n"
    b"--b\r\nContent-Type: application/pdf\r\n"
    b"Content-Disposition: attachment; filename=plan.pdf\r\n\r\n%PDF\r\n--b--\r\n"
)


def filled(system: System, address: str) -> int:
    """A mailbox with a message that has an attachment, and two others; the id of the first."""
    account = add_archive(system, address)
    for raw in (INVITED, message("second"), message("third")):
        upload(system, account, raw, name="a.eml")
    process(system, account)
    (number,) = (one["id"] for one in system.messages(account) if one["attachment_count"])
    return int(number)


def ask(cwd: Path, *words: str, code: int = 0) -> bytes:
    """What a command prints, on standard error where it fails."""
    result = run("messages", *words, variables=environment(), cwd=cwd)
    assert result.returncode == code, result.stderr
    return result.stderr if code else result.stdout


def test_a_mailbox_is_listed_newest_first_and_filtered(
    embedded: System, address: str, tmp_path: Path
) -> None:
    number = filled(embedded, address)
    listed = [json.loads(line) for line in ask(tmp_path, "list", address, "--json").splitlines()]
    assert [one["id"] for one in listed] == [
        one["id"] for one in embedded.messages(listed[0]["account_id"])
    ]
    assert len(listed) == 3
    (one,) = ask(
        tmp_path, "list", address, "--message-id", "plans@example.org", "--json"
    ).splitlines()
    assert json.loads(one)["id"] == number
    assert len(ask(tmp_path, "list", address, "--limit", "2", "--json").splitlines()) == 2
    assert b"second" in ask(tmp_path, "list", address)
    assert ask(tmp_path, "list", address, "--since", "2999-01-01", "--json") == b""
    assert b"since" in ask(tmp_path, "list", address, "--since", "soon", code=1)
    assert b"follow flags" in ask(tmp_path, "list", address, "--unseen", code=1)
    assert b"no account" in ask(tmp_path, "list", "nobody@example.org", code=1)


def test_a_message_is_shown_without_control_characters(
    embedded: System, address: str, tmp_path: Path
) -> None:
    number = filled(embedded, address)
    shown = ask(tmp_path, "show", str(number)).decode()
    assert "From: Ann <ann@example.org>" in shown
    assert "Attachment 0: plan.pdf, 4 B" in shown
    assert "See the file." in shown
    assert "\x1b" not in shown
    document = json.loads(ask(tmp_path, "show", str(number), "--json"))
    assert document["message_id"] == "plans@example.org"
    assert ask(tmp_path, "show", "999", code=1) == b"mailpoll: there is no message 999\n"


def test_its_bytes_and_its_attachments_come_out_as_they_went_in(
    embedded: System, address: str, tmp_path: Path
) -> None:
    number = str(filled(embedded, address))
    assert ask(tmp_path, "raw", number) == INVITED
    ask(tmp_path, "raw", number, "--output", "mail.eml")
    assert (tmp_path / "mail.eml").read_bytes() == INVITED
    assert ask(tmp_path, "attachment", number, "0") == b"%PDF"
    assert b"has no attachment 1" in ask(tmp_path, "attachment", number, "1", code=1)
    # Nothing is written over, and who took what is in the audit log
    assert b"exists" in ask(tmp_path, "raw", number, "--output", "mail.eml", code=1)
    downloads = [
        (one["action"], one["target"])
        for one in embedded.get("/admin/audit")["items"]
        if one["action"].endswith(".download")
    ]
    assert downloads == [
        ("attachment.download", f"{number}/0"),
        ("message.download", number),
        ("message.download", number),
    ]


def test_what_failed_is_grouped_and_tried_again(
    embedded: System, address: str, tmp_path: Path
) -> None:
    account = add_archive(embedded, address)
    for subject in "abc":
        upload(embedded, account, message(subject), name="a.eml")
    process(embedded, account)
    number = embedded.messages(account)[0]["id"]
    assert b"not failed" in ask(tmp_path, "retry", str(number), code=1)
    change_messages(status=MessageStatus.FAILED, error="it is broken")
    (group,) = map(json.loads, ask(tmp_path, "failed", "--json").splitlines())
    assert (group["messages"], group["error"]) == (3, "it is broken")
    assert ask(tmp_path, "retry", str(number)) == b"1 message enqueued\n"
    again = ask(tmp_path, "retry", "--error", "it is broken", "--json")
    assert json.loads(again) == {"enqueued": 2}
    embedded.work_until(lambda: not embedded.get("/admin/messages", status="stored")["items"])
    assert ask(tmp_path, "failed", "--json") == b""


@pytest.mark.parametrize("words", [[], ["1", "--error", "x"]])
def test_a_retry_says_what_is_to_be_tried(
    embedded: System, tmp_path: Path, words: list[str]
) -> None:
    assert b"--error" in ask(tmp_path, "retry", *words, code=2)
