"""The sample mail of the demo."""

import email
from email import policy

from mailpoll.demo import corpus
from mailpoll.parsing import parse


def test_the_mail_is_the_same_at_every_run() -> None:
    assert corpus.mailbox(3) == corpus.mailbox(3)
    assert corpus.mailbox(3) != corpus.mailbox(4)


def test_every_message_has_crlf_line_ends_and_its_own_message_id() -> None:
    mail = [raw for number in range(corpus.MAILBOXES) for raw in corpus.mailbox(number)]
    assert all(raw.count(b"\n") == raw.count(b"\r\n") for raw in mail)
    ids = {email.message_from_bytes(raw)["Message-ID"] for raw in mail}
    assert len(ids) == len(mail)


def test_all_kinds_of_mail_are_there() -> None:
    mail = [raw for number in range(corpus.MAILBOXES) for raw in corpus.mailbox(number)]
    types: set[str] = set()
    charsets: set[str] = set()
    for raw in mail:
        for part in email.message_from_bytes(raw, policy=policy.default).walk():
            types.add(part.get_content_type())
            charsets.add(str(part.get_content_charset("")))
    assert types >= {
        *("text/plain", "text/html", "text/calendar", "multipart/related", "message/rfc822"),
        *("message/delivery-status", "image/png", "application/zip"),
    }
    assert charsets >= {name for name, _ in corpus.TEXTS if name != "windows-1252"}


def test_mailpoll_reads_what_the_sample_says() -> None:
    for raw in corpus.mailbox(0):
        parsed = parse(raw)
        wanted = email.message_from_bytes(raw, policy=policy.default)
        assert parsed.subject == (wanted["Subject"] or "").strip()
        assert parsed.to[0].address == corpus.address_of(0)
        body = wanted.get_body(("plain",))
        assert parsed.text.splitlines() == body.get_content().splitlines()
