"""Text to words: case, accents, and scripts without blanks."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailpoll.search.document import (
    GAP,
    MAX_BYTES,
    MAX_PLACES,
    MAX_WORDS,
    Content,
    document,
)
from mailpoll.search.excerpts import Excerpts
from mailpoll.search.query import parse
from mailpoll.words import fold, sought, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World! don't", "hello world don t"),
        ("ana.b@example.org", "ana b example org"),
        ("snake_case", "snake case"),
        ("Caf\u00e9 Cafe\u0301 \u00c5ngstr\u00f6m", "cafe cafe angstrom"),
        ("Stra\u00dfe \u0141\u00f3d\u017a S\u00f8ren \u00c6on", "strasse lodz soren aeon"),
        (
            "\u0391\u03b8\u03ae\u03bd\u03b1 \u041c\u043e\u0441\u043a\u0432\u0430",
            "\u03b1\u03b8\u03b7\u03bd\u03b1 \u043c\u043e\u0441\u043a\u0432\u0430",
        ),
        ("\u0130stanbul \u0131rmak", "istanbul irmak"),
        ("\uff21\uff22\uff23 \ufb01ne \u210cello", "abc fine hello"),
        ("\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f", "\u0645\u062d\u0645\u062f"),
        # Each character of a run begins a word.
        ("\u96fb\u5b50\u90f5\u4ef6", "\u96fb\u5b50 \u5b50\u90f5 \u90f5\u4ef6 \u4ef6"),
        ("iPhone\u7528\u306e", "iphone \u7528\u306e \u306e"),
        ("\ud68c\uc758\ub97c \uc7a1\ub2e4", "\ud68c\uc758 \uc758\ub97c \ub97c \uc7a1\ub2e4 \ub2e4"),
        # Decomposed Hangul and voiced kana are what they look like; half-width kana too.
        ("\u1112\u116c\u110b\u1174", "\ud68c\uc758 \uc758"),
        (
            "\u30cf\u3099\u30b9 \u30d0\u30b9 \u30cf\u30b9",
            "\u30d0\u30b9 \u30b9 \u30d0\u30b9 \u30b9 \u30cf\u30b9 \u30b9",
        ),
        ("\uff8a\uff9e\uff7d", "\u30d0\u30b9 \u30b9"),
        ("\u0e2a\u0e27\u0e31\u0e2a", "\u0e2a\u0e27 \u0e27\u0e31 \u0e31\u0e2a \u0e2a"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert " ".join(words(text)) == expected


@given(st.text(max_size=80))
def test_words_are_letters_and_digits_whatever_the_text(text: str) -> None:
    for word in words(text):
        assert word
        assert not any(c.isspace() or c in "_'\"\\\0" for c in word)
        assert word.isascii() <= word.isalnum()


@given(st.text(max_size=40), st.text(max_size=20), st.text(max_size=40))
def test_a_text_has_the_words_of_each_part_of_it(before: str, part: str, after: str) -> None:
    """A part that begins and ends at blanks is found: its words stand there one after the other."""
    found, going_on = sought(part)
    there = words(f"{before} {part} {after}")
    if found:
        *whole, last = found
        assert any(
            there[at : at + len(whole)] == whole
            and (there[at + len(whole)].startswith(last) if going_on else True)
            for at in range(len(there) - len(whole))
        )


NOW = datetime(2026, 11, 25, tzinfo=UTC)


def content(**fields: object) -> Content:
    nothing = {
        "subject": "",
        "senders": [],
        "recipients": [],
        "others": [],
        "files": [],
        "text": "",
        "attached": False,
        "reply": False,
    }
    return Content(**nothing | fields)  # type: ignore[arg-type]


def test_a_document_has_the_words_of_fields_twice_and_the_text_once() -> None:
    made = document(
        7, NOW, content(subject="Big News", senders=["Ana ana@x"], text="big text"), 100
    )
    assert made.text == "x_ a_7 m_202611 big news s_big s_news ana ana x f_ana f_ana f_x _ big text"
    assert made.head == " s_big s_news f_ana f_x "


def test_a_document_is_never_larger_than_a_database_takes() -> None:
    many = document(1, NOW, content(text=" ".join(f"w{n}" for n in range(50_000))), 1_000_000)
    assert len(many.words) == MAX_WORDS
    wide = document(
        1,
        NOW,
        content(text=" ".join(f"{n}{chr(0x1E900 + n % 30) * 39}" for n in range(15_000))),
        1_000_000,
    )
    assert len(wide.text.encode()) <= MAX_BYTES + len(wide.words)
    assert len(wide.vector.encode()) < 2**20
    same = document(1, NOW, content(text="na " * 5_000), 100_000)
    assert same.words.count("na") == MAX_PLACES
    assert same.words[-1] == GAP
    cut = document(1, NOW, content(text="one two three"), 7)
    assert cut.words[-2:] == ["one", "two"]


def test_no_word_is_longer_than_what_is_asked_for_by_it() -> None:
    long = "x" * 100
    assert words(long) == sought(long)[0] == ["x" * 40, "x" * 40, "x" * 20]


def shown(query: str, text: str) -> str:
    pieces = Excerpts(parse(query).needles(), 100_000).best(text)
    return "".join(f"[{one.text}]" if one.match else one.text for one in pieces)


@pytest.mark.parametrize(
    ("query", "text", "expected"),
    [
        ("invoice", "Your Invoice.", "Your [Invoice]."),
        ("invoi*", "Your invoices", "Your [invoices]"),
        ("invoice", "Your invoices", "Your invoices"),
        ("cafe", "Das Caf\u00e9 hier", "Das [Caf\u00e9] hier"),
        ("cafe", "Das Cafe\u0301 hier", "Das [Cafe]\u0301 hier"),
        ("strasse", "Die Stra\u00dfe", "Die [Stra\u00dfe]"),
        ("fine", "so \ufb01ne", "so [\ufb01ne]"),
        ("\u5b50\u90f5", "\u96fb\u5b50\u90f5\u4ef6", "\u96fb[\u5b50\u90f5]\u4ef6"),
        ("\u90f5", "\u96fb\u5b50\u90f5\u4ef6", "\u96fb\u5b50[\u90f5]\u4ef6"),
        (
            "\u96fb\u5b50\u90f5\u4ef6",
            "\u96fb\u5b50\u90f5\u4ef6\u3002",
            "[\u96fb\u5b50\u90f5\u4ef6]\u3002",
        ),
        ("\ud68c\uc758", "\ud68c\uc758\ub97c", "[\ud68c\uc758]\ub97c"),
        ("a -b", "a b", "[a] b"),
        ("from:ana", "ana", "ana"),
        ("x", "<b>x</b>", "<b>[x]</b>"),
        ("nothing", "of that", "of that"),
        ("a", "line\n\n  a \t b", "line [a] b"),
    ],
)
def test_an_excerpt_marks_what_was_asked_for(query: str, text: str, expected: str) -> None:
    assert shown(query, text) == expected


def test_an_excerpt_is_where_most_of_the_words_are() -> None:
    text = "alpha " + "filler " * 200 + "alpha beta gamma " + "filler " * 200
    found = shown("alpha beta gamma", text)
    assert found.startswith("… ") and found.endswith(" …")
    assert "[alpha] [beta] [gamma]" in found
    assert len(found) < 300


@given(st.text(max_size=300), st.text(alphabet="ab\u00e9\u732b ", min_size=1, max_size=10))
def test_the_pieces_are_the_text(text: str, query: str) -> None:
    if not query.strip():
        return
    pieces = Excerpts(parse(query).needles(), 100_000).whole(text, "s_")
    assert "".join(one.text for one in pieces) == text
    assert all(fold(one.text) for one in pieces if one.match)
