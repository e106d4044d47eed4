"""Encoded words (RFC 2047), and text in header fields without them (RFC 6532)."""

import pytest

from .build import parsed

CASES = {
    "Q": ("=?iso-8859-1?Q?caf=E9_au_lait?=", "café au lait"),
    "B": ("=?utf-8?B?R3LDvMOfZQ==?=", "Grüße"),
    "lower case": ("=?UTF-8?b?R3LDvMOfZQ==?=", "Grüße"),
    "without padding": ("=?utf-8?B?R3LDvMOfZQ?=", "Grüße"),
    "two": ("=?utf-8?q?Gr=C3=BC?= =?utf-8?q?=C3=9Fe?=", "Grüße"),
    "two, folded": ("=?utf-8?q?Gr=C3=BC?=\r\n\t=?utf-8?q?=C3=9Fe?=", "Grüße"),
    "two charsets": ("=?iso-8859-1?q?=FC?= =?koi8-r?q?=C4?=", "üд"),
    "a character in two words": ("=?utf-8?q?Gr=C3?= =?utf-8?q?=BC?=", "Grü"),
    "a character in two words of base64": ("=?utf-8?b?R3LD?= =?utf-8?b?vA==?=", "Grü"),
    "between words": ("Re: =?utf-8?q?=C3=BC?= and =?utf-8?q?=C3=9F?= .", "Re: ü and ß ."),
    "blank kept as underscore": ("=?utf-8?q?a_?= =?utf-8?q?b?=", "a b"),
    "blank in it": ("=?utf-8?q?a b?=", "a b"),
    "inside a word": ("x=?utf-8?q?=C3=BC?=y", "xüy"),
    "language": ("=?utf-8*de?q?=C3=BC?=", "ü"),  # RFC 2231 5
    "question mark in Q": ("=?utf-8?q?why??=", "why?"),
    "empty": ("=?utf-8?q??=", ""),
    "unknown charset": ("=?no-such?q?=C3=BC?=", "ü"),
    "wrong charset": ("=?us-ascii?q?=E9?=", "é"),
    "unknown encoding": ("=?utf-8?x?abc?=", "=?utf-8?x?abc?="),
    "without end": ("=?utf-8?q?abc", "=?utf-8?q?abc"),
    "iso-2022-jp": ("=?iso-2022-jp?B?GyRCMnE1RBsoQg==?=", "会議"),
    "gb2312 that is gb18030": ("=?gb2312?B?5oQ=?=", "鎰"),
    "raw UTF-8": ("Grüße 🚚", "Grüße 🚚"),
    "only blanks": ("  \t ", ""),
    "no value": ("", ""),
}


@pytest.mark.parametrize(("value", "wanted"), CASES.values(), ids=CASES)
def test_a_subject_is_decoded(value: str, wanted: str) -> None:
    assert parsed(f"Subject: {value}").subject == wanted


def test_raw_eight_bit_bytes_are_read_in_the_likeliest_charset() -> None:
    assert parsed(b"Subject: caf\xe9").subject == "café"


def test_folded_lines_are_one_value() -> None:
    assert parsed("Subject: one\r\n two\r\n\tthree").subject == "one two three"


def test_all_fields_are_kept_decoded_in_their_order() -> None:
    message = parsed("X-B: =?utf-8?q?=C3=BC?=", "Subject: s", "x-b: 2", "X-A:3", "X-Empty:")
    wanted = [("X-B", "ü"), ("Subject", "s"), ("x-b", "2"), ("X-A", "3"), ("X-Empty", "")]
    assert message.headers == wanted


def test_encoded_line_ends_stay_data() -> None:
    message = parsed("Subject: =?utf-8?q?a=0D=0AX-Evil:_1?=")
    assert message.subject == "a\r\nX-Evil: 1"
    assert [name for name, _ in message.headers] == ["Subject"]
