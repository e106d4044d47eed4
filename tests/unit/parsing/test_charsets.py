"""Charsets of bodies: what is declared, what is meant, what cannot be."""

import pytest

from mailpoll.parsing import charsets

from .build import multipart, parsed, part

FITTING = {
    "utf-8": "Grüße 🚚",
    "us-ascii": "plain",
    "iso-8859-1": "café",
    "iso-8859-2": "Příští týden",
    "iso-8859-5": "Добрый день",
    "iso-8859-7": "Καλημέρα",
    "iso-8859-8": "שלום",
    "iso-8859-9": "İstanbul",
    "iso-8859-15": "120 €",
    "windows-1250": "Příští „týden“",
    "windows-1251": "Счёт № 5",
    "windows-1252": "“120 €”",
    "windows-1253": "Καλημέρα",
    "windows-1254": "İstanbul",
    "windows-1255": "שלום",
    "windows-1256": "مرحبا",
    "windows-1257": "Labdien, ģ",
    "windows-1258": "Viê",
    "koi8-r": "Добрый",
    "koi8-u": "Привіт, їжак",
    "gb2312": "您好",
    "gbk": "您好鎔",
    "gb18030": "您好𠀀",
    "big5": "您好",
    "euc-kr": "안녕하세요",
    "euc-jp": "会議",
    "shift_jis": "会議",
    "iso-2022-jp": "会議の資料",
    "iso-2022-kr": "안녕",
    "hz-gb-2312": "您好",
    "utf-16": "Grüße",
    "utf-16le": "Grüße",
    "utf-32": "Grüße",
    "utf-7": "Grüße",
    "cp437": "café",
    "macintosh": "café",
    "tis-620": "สวัสดี",
}


@pytest.mark.parametrize(("charset", "text"), FITTING.items(), ids=FITTING)
def test_text_in_its_declared_charset_is_read(charset: str, text: str) -> None:
    codec = {"hz-gb-2312": "hz", "macintosh": "mac_roman"}.get(charset, charset)
    message = parsed(f"Content-Type: text/plain; charset={charset}", body=text.encode(codec))
    assert (message.text, message.defects) == (text, [])


@pytest.mark.parametrize(
    ("declared", "data", "text"),
    [
        ("iso-8859-1", b"\x93quoted\x94 \x80", "“quoted” €"),  # WHATWG: latin-1 means cp1252
        ("us-ascii", "Grüße".encode(), "Grüße"),
        ("us-ascii", b"caf\xe9", "café"),
        ("utf-8", b"caf\xe9", "café"),
        ("iso-2022-jp", "Grüße".encode(), "Grüße"),
        ("gb2312", "鎔€".encode("gb18030"), "鎔€"),
        ("ks_c_5601-1987", "안녕 똠".encode("cp949"), "안녕 똠"),
        ("", "Grüße".encode(), "Grüße"),
        ("", b"caf\xe9", "café"),
        ("utf8", "Grüße".encode(), "Grüße"),
        ("UTF-8", "Grüße".encode(), "Grüße"),
        ('"utf-8"', "Grüße".encode(), "Grüße"),
        ("unicode-1-1-utf-7", b"Gr+APwA3w-e", "Grüße"),
        ("utf-16", b"\xff\xfeH\0i\0!", "Hi\ufffd"),  # cut in a character
    ],
)
def test_text_in_another_charset_than_declared(declared: str, data: bytes, text: str) -> None:
    assert parsed(f"Content-Type: text/plain; charset={declared}", body=data).text == text


@pytest.mark.parametrize(
    "charset",
    [
        *("no-such", "zlib", "hex", "base64", "rot13", "idna", "punycode", "undefined", "mbcs"),
        *("unicode_escape", "raw_unicode_escape", "bz2", "x" * 10_000, "../../etc", "\udcff", "é"),
    ],
)
def test_a_name_that_is_no_charset_of_text_does_no_harm(charset: str) -> None:
    assert charsets.decode("Grüße".encode(), charset) == "Grüße"
    assert charsets.decode(b"78da", charset) == "78da"
    assert not charsets.read("Grüße".encode(), charset)[1]


def test_a_text_in_another_charset_than_declared_is_told() -> None:
    message = parsed("Content-Type: text/plain; charset=utf-8", body=b"caf\xe9")
    assert (message.text, message.defects) == ("café", ["charset"])


def test_unknown_names_are_not_remembered() -> None:
    # The codec registry keeps each name it was asked for, for ever.
    found = {charsets.decode(b"\xff", f"no-such-{number}") for number in range(1_000)}
    assert found == {"ÿ"}


@pytest.mark.parametrize(
    "subject",
    [
        "a =?utf-8?q?=EF=BF=BD?=",
        "=?UTF-8?B?77+9YQ==?=",
        "=?utf-8*en?q?=EF=BF?= =?utf-8*en?q?=BD?=",
    ],
)
def test_a_sign_of_replacement_that_the_sender_wrote_is_no_defect(subject: str) -> None:
    message = parsed(f"Subject: {subject}")
    assert "\ufffd" in message.subject
    assert message.defects == []


def test_a_replaced_character_is_told_beside_one_that_the_sender_wrote() -> None:
    message = parsed("Subject: =?utf-8?q?=EF=BF=BD=00?=")
    assert message.subject == "\ufffd\ufffd"
    assert message.defects == ["replaced-characters"]


def test_what_databases_refuse_is_replaced() -> None:
    message = parsed("Subject: a\0b", "Content-Type: text/plain; charset=utf-8", body=b"c\0d")
    assert (message.subject, message.text) == ("a\ufffdb", "c\ufffdd")
    assert message.defects == ["charset", "replaced-characters"]
    # UTF-7 and UTF-16 can spell a lone surrogate.
    assert parsed("Content-Type: text/plain; charset=utf-7", body=b"+2AA-").text == "\ufffd"
    assert charsets.storable("\ud800x\udfff") == "\ufffdx\ufffd"


def test_a_charset_as_rfc_2231_writes_it() -> None:
    message = parsed("Content-Type: text/plain; charset*=us-ascii'en'koi8-r", body=b"\xc4")
    assert (message.text, message.defects) == ("д", [])


def test_each_part_has_its_own_charset() -> None:
    raw = multipart(
        "mixed",
        part("text/plain; charset=koi8-r", "Добрый".encode("koi8-r")),
        part("text/plain; charset=shift_jis", "会議".encode("shift_jis")),
    )
    head, _, body = raw.partition(b"\r\n\r\n")
    assert parsed(head, body=body).text.split() == ["Добрый", "会議"]
