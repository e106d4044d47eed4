"""Large messages, read from their file by way of a reduced one."""

import hashlib
from pathlib import Path

import pytest

from mailpoll.parsing import parse
from mailpoll.parsing.content import CHUNK
from mailpoll.parsing.outline import MAX_TEXT, outline
from mailpoll.parsing.parser import MAX_WHOLE

from .build import mail, multipart, part

ATTACHED = "Content-Disposition: attachment"


def large(tmp_path: Path, raw: bytes) -> Path:
    """`raw` as a file that is too large to be read whole, by an epilogue or a last line."""
    path = tmp_path / "mail"
    path.write_bytes(raw + b"\r\n" * (MAX_WHOLE // 2))
    return path


def test_a_large_message_reads_as_a_small_one_does(tmp_path: Path) -> None:
    inner = mail("Subject: inner", body=b"caf\xe9")
    raw = multipart(
        "mixed",
        multipart("alternative", part("text/plain", "t"), part("text/html", "<p>h"), boundary="i"),
        part("a/b; name=small", "small", ATTACHED),
        part("a/b; name=large", b"large" * 100_000, ATTACHED),
        part("message/rfc822", inner),
    )
    small, big = parse(raw), parse(large(tmp_path, raw))
    assert (big.text, big.html, big.attachments) == (small.text, small.html, small.attachments)
    assert [b"".join(one.chunks()) for one in big.attachments][2] == inner


def test_a_text_over_the_cap_is_a_file_and_that_is_told(tmp_path: Path) -> None:
    body = b"x" * (MAX_TEXT + 1)
    path = tmp_path / "mail"
    path.write_bytes(mail("Subject: s", body=body))
    message = parse(path)
    assert (message.subject, message.text) == ("s", "")
    assert "text-too-large" in message.defects
    assert message.attachments[0].sha256 == hashlib.sha256(body).hexdigest()


def test_texts_share_one_cap(tmp_path: Path) -> None:
    half = b"x" * (MAX_TEXT * 2 // 3)
    path = tmp_path / "mail"
    path.write_bytes(multipart("mixed", part("text/plain", half), part("text/plain", half)))
    message = parse(path)
    assert (len(message.text), message.attachments[0].size) == (len(half), len(half))


def test_fields_that_look_like_our_own_mark_are_none(tmp_path: Path) -> None:
    raw = multipart("mixed", part("text/plain", "t", f"X-Outline-{'0' * 32}: 0"))
    assert parse(large(tmp_path, raw)).text == "t"


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
@pytest.mark.parametrize("off", range(-6, 7))
def test_a_boundary_is_seen_wherever_a_chunk_ends(line_end: bytes, off: int) -> None:
    # given a part that ends just before or after the end of a chunk, in one long line
    head = multipart("mixed", part("a/b", b"")).partition(b"\r\n--=-=--")[0]
    filling = b"x" * (CHUNK - len(head) + off)
    raw = multipart("mixed", part("a/b", filling), part("a/b", b"end")).replace(b"\r\n", line_end)
    # when it is reduced so much that each part is left out
    reduced = outline(raw, max_leaf=0)
    # then what was left out is exactly the parts
    assert [content.read() for content in reduced.cuts.values()] == [filling, b"end"]


@pytest.mark.parametrize("off", range(-3, 4))
def test_an_empty_line_is_seen_wherever_a_chunk_ends(off: int) -> None:
    head = b"X: " + b"x" * (CHUNK - 3 + off)
    assert outline(head + b"\r\n\r\nbody\r\n").message.endswith(b"\r\nbody\r\n")
    assert outline(head + b"\n\nbody\n").message.endswith(b"\nbody\n")


@pytest.mark.parametrize("raw", [b"\r", b"a\n\r", b"a: b\r", b"a\xa1\r\nb\r", b"A: b\nc\r\r"])
def test_a_carriage_return_at_the_very_end(raw: bytes) -> None:
    assert outline(raw).head is not None
    parse(raw)
