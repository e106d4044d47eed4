"""Messages as odd programs write them: line ends, missing headers, mbox, nothing at all."""

from pathlib import Path

import pytest

from mailpoll.parsing import parse

from .build import mail, multipart, part

MESSAGE = multipart(
    "mixed",
    part("text/plain", "one\r\ntwo"),
    part("a/b; name=f", "AAEC", "Content-Transfer-Encoding: base64"),
)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_any_line_end_will_do(line_end: bytes) -> None:
    message = parse(
        mail("Subject: s", body=b"").removesuffix(b"\r\n") + MESSAGE.replace(b"\r\n", b"\r\n")
    )
    again = parse((b"Subject: s\r\n" + MESSAGE).replace(b"\r\n", line_end))
    assert (again.subject, again.text.split()) == ("s", ["one", "two"])
    assert [one.sha256 for one in again.attachments] == [one.sha256 for one in message.attachments]


def test_a_message_of_nothing() -> None:
    message = parse(b"")
    assert (message.subject, message.text, message.headers, message.attachments) == ("", "", [], [])


@pytest.mark.parametrize("raw", [b"\r\nHello", b"\nHello"])
def test_a_message_without_a_header(raw: bytes) -> None:
    assert (parse(raw).text, parse(raw).headers) == ("Hello", [])


def test_a_text_where_the_header_should_be_is_the_text() -> None:
    message = parse(b"Hello, world\r\nhow are you?\r\n")
    assert (message.text, message.defects) == ("Hello, world\r\nhow are you?\r\n", ["header-end"])


def test_a_header_without_a_body() -> None:
    assert parse(b"Subject: s\r\n").subject == "s"
    assert parse(b"Subject: s").subject == "s"
    assert parse(b"Subject: s\r\n\r\n").text == ""


def test_a_forgotten_empty_line_loses_no_text() -> None:
    message = parse(b"Subject: s\r\nHello there\r\n")
    assert (message.subject, message.text.strip()) == ("s", "Hello there")
    assert "header-end" in message.defects


def test_a_line_that_is_no_field_hides_none_of_the_others() -> None:
    message = parse(b"Subject: s\r\nno field\r\nTo: a@b.c\r\n\r\nt")
    assert (message.to[0].address, message.text) == ("a@b.c", "t")
    assert "header-garbage" in message.defects


@pytest.mark.parametrize("line", [b"From a@b.c Mon Nov 23 10:00:00 2026\n", b">From a@b.c x\r\n"])
def test_the_line_that_mbox_adds_is_no_field(line: bytes) -> None:
    message = parse(line + mail("Subject: s", body="t"))
    assert (message.subject, message.text, message.defects) == ("s", "t", [])


def test_a_blank_before_the_colon_is_forgiven() -> None:
    assert parse(b"Subject : s\r\n\r\n").subject == "s"


def test_nul_bytes_are_kept_in_files_and_replaced_in_texts() -> None:
    raw = multipart("mixed", part("text/plain", b"a\0b"), part("a/b", b"a\0b"))
    message = parse(raw)
    assert message.text == "a\ufffdb"
    assert b"".join(message.attachments[0].chunks()) == b"a\0b"


def test_a_file_reads_as_the_same_bytes_do(tmp_path: Path) -> None:
    path = tmp_path / "mail"
    path.write_bytes(MESSAGE)
    assert parse(path) == parse(MESSAGE)
