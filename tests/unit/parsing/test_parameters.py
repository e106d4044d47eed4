"""Parameters of Content-Type and Content-Disposition (RFC 2045 5.1, RFC 2183, RFC 2231)."""

import pytest

from mailpoll.parsing.headers import MAX_PARAMETERS, media_type, parameters

from .build import parsed

NAMES = {
    "token": ("filename=a.pdf", "a.pdf"),
    "quoted": ('filename="a b.pdf"', "a b.pdf"),
    "escaped": (r'filename="a\"b\\c.pdf"', r'a"b\c.pdf'),
    "Windows path": (r'filename="C:\dir\a.pdf"', r"C:\dir\a.pdf"),
    "semicolon in it": ('filename="a;b.pdf"', "a;b.pdf"),
    "unquoted blanks": ("filename=a b.pdf", "a b.pdf"),
    "upper case": ("FileName=a.pdf", "a.pdf"),
    "blanks around": ("filename = a.pdf ", "a.pdf"),
    "without end": ('filename="a.pdf', "a.pdf"),
    "RFC 2231": ("filename*=utf-8''%C3%BC.pdf", "ü.pdf"),
    "RFC 2231 with language": ("filename*=iso-8859-1'de'%FC.pdf", "ü.pdf"),
    "RFC 2231 without charset": ("filename*=''%C3%BC.pdf", "ü.pdf"),
    "RFC 2231 bare": ("filename*=%C3%BC.pdf", "ü.pdf"),
    "RFC 2231 wins": ("filename=u.pdf; filename*=utf-8''%C3%BC.pdf", "ü.pdf"),
    "continued": ('filename*0="one "; filename*1="two.pdf"', "one two.pdf"),
    "continued out of order": ("filename*1=b; filename*0=a; filename*2=.pdf", "ab.pdf"),
    "continued and encoded": ("filename*0*=utf-8''%C3%BC; filename*1=%20.pdf", "ü%20.pdf"),
    "a character in two sections": ("filename*0*=utf-8''%C3; filename*1*=%BC.pdf", "ü.pdf"),
    "encoded word": ('filename="=?utf-8?q?=C3=BC?=.pdf"', "ü.pdf"),
    "encoded word, unquoted": ("filename==?utf-8?q?=C3=BC?=.pdf", "ü.pdf"),
    "encoded words, folded": (
        'filename="=?utf-8?b?w7w=?=\r\n =?utf-8?b?w58=?=.pdf"',
        "üß.pdf",
    ),
    "encoded word in sections": (
        'filename*0="=?utf-8?b?w7w"; filename*1="=?=.pdf"',
        "ü.pdf",
    ),
    "raw UTF-8": ('filename="ü.pdf"', "ü.pdf"),
    "twice": ("filename=a.pdf; filename=b.pdf", "a.pdf"),
    "empty": ('filename=""', ""),
    "none": ("size=3", ""),
}


@pytest.mark.parametrize(("value", "wanted"), NAMES.values(), ids=NAMES)
def test_a_file_name_is_read(value: str, wanted: str) -> None:
    (attachment,) = parsed(f"Content-Disposition: attachment; {value}", body="x").attachments
    assert attachment.name == wanted


def test_raw_eight_bit_bytes_in_a_name() -> None:
    (file,) = parsed(b'Content-Disposition: attachment; filename="caf\xe9.pdf"').attachments
    assert file.name == "café.pdf"


def test_the_name_of_the_content_type_is_used_when_the_disposition_has_none() -> None:
    both = parsed(
        "Content-Type: a/b; name=t.pdf", "Content-Disposition: attachment; filename=d.pdf"
    )
    assert both.attachments[0].name == "d.pdf"
    one = parsed("Content-Type: a/b; name=t.pdf", "Content-Disposition: attachment")
    assert one.attachments[0].name == "t.pdf"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("Text/HTML; charset=x", "text/html"),
        ("text/plain", "text/plain"),
        (" image/svg+xml ;", "image/svg+xml"),
        ("text", "text/plain"),
        ("", "text/plain"),
        ("/", "text/plain"),
        ("application/x-foo.bar_baz-1", "application/x-foo.bar_baz-1"),
    ],
)
def test_a_content_type(value: str, wanted: str) -> None:
    assert media_type(value) == wanted


def test_no_more_parameters_than_the_cap() -> None:
    value = "a/b" + "".join(f"; p{number}=1" for number in range(1_000))
    assert len(parameters(value)) == MAX_PARAMETERS
