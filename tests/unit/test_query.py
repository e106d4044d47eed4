"""What a query means, and where a wrong one goes wrong."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailpoll.search.query import And, Filter, Not, Or, Query, QueryError, Words, parse

NOW = datetime(2026, 11, 25, tzinfo=UTC)


def one(text: str, mark: str = "", prefix: bool = False) -> Words:
    return Words(tuple(text.split()), mark, prefix)


def day(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("invoice", one("invoice")),
        ("INVOICE", one("invoice")),
        ("Gr\u00fc\u00dfe", one("grusse")),
        ("invoi*", one("invoi", prefix=True)),
        ('"Exact Phrase"', one("exact phrase")),
        ('"exact phra"*', one("exact phra", prefix=True)),
        ("ana@example.org", one("ana example org")),
        ("from:Ana", one("ana", "f_")),
        ("FROM:ana", one("ana", "f_")),
        ("to:bob@x.org", one("bob x org", "t_")),
        ('subject:"Q3 report"', one("q3 report", "s_")),
        ("filename:report.pdf", one("report pdf", "n_")),
        ("has:attachment", one("h_attachment")),
        ("is:reply", one("h_reply")),
        ("a b", And((one("a"), one("b")))),
        ("a AND b", And((one("a"), one("b")))),
        ("-draft", Not(one("draft"))),
        ("-from:ana", Not(one("ana", "f_"))),
        ("a OR b", Or((one("a"), one("b")))),
        ("a or b", And((one("a"), one("or"), one("b")))),
        ("a OR b c", And((Or((one("a"), one("b"))), one("c")))),
        ("(a b) OR c", Or((And((one("a"), one("b"))), one("c")))),
        ("-(a OR b)", Not(Or((one("a"), one("b"))))),
        ("tom & jerry", And((one("tom"), one("jerry")))),
        ("https://example.org/x", one("https example org x")),
        ("12:30", one("12 30")),
        ('"12:30 re: you"', one("12 30 re you")),
        ("\u96fb\u5b50\u90f5\u4ef6", one("\u96fb\u5b50 \u5b50\u90f5 \u90f5\u4ef6")),
        ("\u732b", one("\u732b", prefix=True)),
        ("\u6771\u4eac2020", one("\u6771\u4eac \u4eac 2020")),
        ("\ud68c\uc758", one("\ud68c\uc758")),
    ],
)
def test_words_phrases_and_fields(text: str, expected: object) -> None:
    assert parse(text).node == expected
    assert parse(text).filters == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("after:2026-01-31", Filter("after", day(2026, 1, 31))),
        ("after:2026/1/31", Filter("after", day(2026, 1, 31))),
        ("before:2026", Filter("before", day(2026, 1, 1))),
        ("-before:2026-02", Filter("before", day(2026, 2, 1), True)),
        ("newer_than:7d", Filter("after", day(2026, 11, 18))),
        ("older_than:1y", Filter("before", day(2025, 11, 25))),
        ("older_than:99999y", Filter("before", day(1970, 1, 1))),
        ("larger:1M", Filter("larger", 1_000_000)),
        ("larger:10kb", Filter("larger", 10_000)),
        ("smaller:500", Filter("smaller", 500)),
        ("larger:999999999999999999G", Filter("larger", 2**63 - 1)),
        ("in:Archive", Filter("in", "Archive")),
        ('-in:"Sent Mail"', Filter("in", "Sent Mail", True)),
        ("is:imported", Filter("is", "imported")),
        ("-is:expunged", Filter("is", "expunged", True)),
        ("is:unread", Filter("flag", "")),
        ("-is:Flagged", Filter("flag", "\\flagged", True)),
        ('label:"Two words"', Filter("label", "Two words")),
        ("thread:17", Filter("thread", 17)),
    ],
)
def test_conditions(text: str, expected: Filter) -> None:
    assert parse(text, NOW) == Query(None, (expected,))


def test_all_of_it_together() -> None:
    text = (
        "from:ana invoice has:attachment after:2026-01-01 larger:1M -draft "
        '"exact phrase" (a OR b) in:inbox'
    )
    found = parse(text)
    assert [one.name for one in found.filters] == ["after", "larger", "in"]
    assert isinstance(found.node, And)
    assert found.needles() == [
        one("ana", "f_"),
        one("invoice"),
        one("exact phrase"),
        one("a"),
        one("b"),
    ]


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("", 0),
        ("   ", 0),
        ("!!!", 0),
        ('say "hello', 4),
        ('from:"ana', 5),
        ("a (b", 2),
        ("a b)", 3),
        ("a ()", 2),
        ("OR a", 0),
        ("a OR", 2),
        ("a AND", 2),
        ("AND b", 0),
        ("(a OR )", 3),
        ("a OR OR b", 2),
        ("a OR larger:1M", 5),
        ("larger:1M OR a", 0),
        ("a (b larger:1M)", 2),
        ("form:ana", 0),
        ("x from:", 2),
        ("x from:!!", 7),
        ("- a", 0),
        ("x -!!", 2),
        ("x a*", 2),
        ("after:tomorrow", 6),
        ("after:2026-13-01", 6),
        ("after:2026-02-30", 6),
        ("before:0001-01-01", 7),
        ("larger:big", 7),
        ("larger:1T", 7),
        ("newer_than:7", 11),
        ("has:money", 4),
        ("is:nice", 3),
        ("thread:x", 7),
        ("thread:\u0661", 7),
        ("thread:99999999999999999999", 7),
        ("(" * 11 + "a" + ")" * 11, 10),
        ("a " * 51, 100),
        ("in:x " * 51, 250),
        ("a" * 1_001, 1_000),
        ("a\0b", 0),
        ("in:a\0b", 3),
    ],
)
def test_a_wrong_query_says_where(text: str, offset: int) -> None:
    with pytest.raises(QueryError) as caught:
        parse(text)
    assert caught.value.offset == offset, caught.value
    assert caught.value.reason


@given(st.text(alphabet='ab"()-*: \u732b\u0301!OR', max_size=60))
def test_every_text_is_read_or_refused_with_a_place_in_it(text: str) -> None:
    try:
        parse(text)
    except QueryError as error:
        assert 0 <= error.offset <= len(text)
