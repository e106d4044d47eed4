"""Transfer encodings (RFC 2045 6): undone leniently, and never a reason to refuse a part."""

import base64
import binascii
import random

import pytest

from mailpoll.parsing.content import CHUNK, Content

from .build import parsed

DATA = random.Random(1).randbytes(200_000)

QUOTED = {
    "escapes": (b"caf=E9=3D", b"caf\xe9="),
    "lower case": (b"caf=e9", b"caf\xe9"),
    "soft line break": (b"one=\r\ntwo=\nthree", b"onetwothree"),
    "soft line break with blanks": (b"one= \t\r\ntwo", b"onetwo"),
    "trailing blanks": (b"one \t\r\ntwo ", b"one\r\ntwo"),
    "no escape": (b"a=b=", b"a=b"),
    "raw eight bit": (b"caf\xe9", b"caf\xe9"),
    "underscore": (b"a_b", b"a_b"),
}
BASE64 = {
    "whole": (b"AAEC", b"\0\1\2"),
    "lines": (b"AA\r\nEC\r\n", b"\0\1\2"),
    "without padding": (b"AAE", b"\0\1"),
    "junk": (b"A*A-E C!", b"\0\1\2"),
    "padding inside": (b"AA==AAEC", b"\0\0\1\2"),
    "six bits": (b"AAECA", b"\0\1\2"),
    "text after": (b"AAEC\r\n--\r\n", b"\0\1\2"),
    "empty": (b"", b""),
}


@pytest.mark.parametrize(("data", "wanted"), QUOTED.values(), ids=QUOTED)
def test_quoted_printable(data: bytes, wanted: bytes) -> None:
    assert Content(data, 0, len(data), "quoted-printable").read() == wanted


@pytest.mark.parametrize(("data", "wanted"), BASE64.values(), ids=BASE64)
def test_base64(data: bytes, wanted: bytes) -> None:
    assert Content(data, 0, len(data), "base64").read() == wanted


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", ""])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_large_content_comes_whole_and_in_small_pieces(encoding: str, line_end: bytes) -> None:
    encoded = {
        "base64": base64.encodebytes(DATA),
        "quoted-printable": binascii.b2a_qp(DATA, istext=False),
        "": DATA,
    }[encoding]
    if encoding:
        encoded = encoded.replace(b"\n", line_end)
    chunks = list(Content(encoded, 0, len(encoded), encoding).chunks())
    assert b"".join(chunks) == DATA
    assert max(map(len, chunks)) <= CHUNK


@pytest.mark.parametrize("size", [1, 2, 3, 75, CHUNK - 1, CHUNK, CHUNK + 1])
def test_a_line_without_an_end_is_decoded_whole(size: int) -> None:
    encoded = b"=E9" * size
    assert Content(encoded, 0, len(encoded), "quoted-printable").read() == b"\xe9" * size
    encoded = base64.b64encode(DATA[:size])
    assert Content(encoded, 0, len(encoded), "base64").read() == DATA[:size]


@pytest.mark.parametrize(
    ("field", "body", "wanted"),
    [
        ("base64", b"AAEC", b"\0\1\2"),
        ("BASE64;", b"AAEC", b"\0\1\2"),
        (" 'base64' ", b"AAEC", b"\0\1\2"),
        ("quoted-printable (x)", b"=00", b"\0"),
        ("7bit", b"AAEC", b"AAEC"),
        ("binary", b"\xff\n", b"\xff\n"),
        ("x-uuencode", b"#0V%T", b"#0V%T"),
        ("no-such", b"AAEC", b"AAEC"),
        ("", b"AAEC", b"AAEC"),
    ],
)
def test_the_field_names_the_encoding(field: str, body: bytes, wanted: bytes) -> None:
    message = parsed("Content-Type: a/b", f"Content-Transfer-Encoding: {field}", body=body)
    assert b"".join(message.attachments[0].chunks()) == wanted
