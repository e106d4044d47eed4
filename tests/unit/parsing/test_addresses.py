"""Address fields (RFC 5322 3.4), as the grammar has them and as they come."""

import pytest

from mailpoll.parsing import Address
from mailpoll.parsing.addresses import MAX_ADDRESSES, parse_addresses

from .build import parsed

CASES = {
    "bare": ("ann@example.org", [("", "ann@example.org")]),
    "name": ("Ann Lee <ann@example.org>", [("Ann Lee", "ann@example.org")]),
    "quoted name": ('"Lee, Ann" <ann@example.org>', [("Lee, Ann", "ann@example.org")]),
    "escaped quotes": (r'"Ann \"A\" Lee" <ann@example.org>', [('Ann "A" Lee', "ann@example.org")]),
    "several": ("a@b.c, D <d@e.f>,g@h.i", [("", "a@b.c"), ("D", "d@e.f"), ("", "g@h.i")]),
    "empty ones": ("a@b.c,, ,d@e.f,", [("", "a@b.c"), ("", "d@e.f")]),
    "comment as name": ("ann@example.org (Ann Lee)", [("Ann Lee", "ann@example.org")]),
    "nested comment": ("a@b.c (one (two) three)", [("one (two) three", "a@b.c")]),
    "group": ("Team: a@b.c, D <d@e.f>;, g@h.i", [("", "a@b.c"), ("D", "d@e.f"), ("", "g@h.i")]),
    "empty group": ("undisclosed-recipients:;", []),
    "source route": ("<@a.b,@c.d:user@host>", [("", "user@host")]),
    "domain literal": ("root@[192.0.2.1]", [("", "root@[192.0.2.1]")]),
    "IPv6 literal": ("root@[IPv6:2001:db8::1]", [("", "root@[IPv6:2001:db8::1]")]),
    "quoted local part": ('"a b"@example.org', [("", '"a b"@example.org')]),
    "quoted local part in brackets": ('A <"a b"@example.org>', [("A", '"a b"@example.org')]),
    "blanks around dots": ("ann . lee @ example . org", [("", "ann.lee@example.org")]),
    "unquoted dot in name": ("Ann B. Lee <ann@example.org>", [("Ann B. Lee", "ann@example.org")]),
    "bracket without end": ("Ann <ann@example.org", [("Ann", "ann@example.org")]),
    "quote without end": ('"Ann <ann@example.org>', [("Ann", "ann@example.org")]),
    "semicolons between": ("a@b.c; d@e.f", [("", "a@b.c"), ("", "d@e.f")]),
    "name without address": ("Mailing List", [("Mailing List", "")]),
    "encoded word": ("=?utf-8?q?J=C3=BCrgen?= <j@example.org>", [("Jürgen", "j@example.org")]),
    "encoded word in quotes": ('"=?utf-8?q?J=C3=BCrgen?=" <j@b.c>', [("Jürgen", "j@b.c")]),
    "encoded comma": ("=?utf-8?q?Lee=2C_Ann?= <ann@b.c>", [("Lee, Ann", "ann@b.c")]),
    "international": ("用户 <用户@例子.测试>", [("用户", "用户@例子.测试")]),  # RFC 6532
    "nothing": ("", []),
    "only brackets": ("<>", []),
}


@pytest.mark.parametrize(("value", "wanted"), CASES.values(), ids=CASES)
def test_a_field_gives_its_mailboxes(value: str, wanted: list[tuple[str, str]]) -> None:
    assert parse_addresses(value) == [Address(*one) for one in wanted]


def test_an_address_in_the_name_is_no_sender() -> None:
    # CVE-2023-27043: parsers that answer alice@good.example let bob pass for her.
    (sender,) = parse_addresses("alice@good.example <bob@evil.example>")
    assert sender == Address("alice@good.example", "bob@evil.example")


def test_of_two_from_fields_the_first_counts_and_the_doubt_is_told() -> None:
    message = parsed("From: a@b.c", "From: d@e.f")
    assert message.from_ == [Address("", "a@b.c")]
    assert "ambiguous-from" in message.defects
    assert [value for _, value in message.headers] == ["a@b.c", "d@e.f"]


def test_recipients_of_repeated_fields_are_all_kept() -> None:
    message = parsed("To: a@b.c", "To: d@e.f", "CC: g@h.i", "bcc: j@k.l", "Reply-To: m@n.o")
    assert [one.address for one in message.to] == ["a@b.c", "d@e.f"]
    assert (message.cc[0].address, message.bcc[0].address) == ("g@h.i", "j@k.l")
    assert message.reply_to[0].address == "m@n.o"


def test_the_sender_is_told_apart_from_the_author() -> None:
    message = parsed("From: a@b.c", "Sender: list@example.org")
    assert (message.from_[0].address, message.sender[0].address) == ("a@b.c", "list@example.org")


def test_no_more_mailboxes_than_the_cap() -> None:
    message = parsed("To: " + ", ".join(f"u{number}@b.c" for number in range(3_000)))
    assert len(message.to) == MAX_ADDRESSES
    assert message.to[-1].address == f"u{MAX_ADDRESSES - 1}@b.c"
    assert "too-many-addresses" in message.defects
