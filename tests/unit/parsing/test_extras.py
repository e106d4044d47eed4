"""Replies, previews, calendars, winmail.dat, Authentication-Results: what is read, and how fast."""

import struct
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailpoll.parsing.authentication import Authentication, authentication, read_results
from mailpoll.parsing.calendars import MAX_ATTENDEES, MAX_BYTES, Moment, read_calendar
from mailpoll.parsing.replies import PREVIEW, preview, reply_of
from mailpoll.parsing.tnef import NotTnef, read_tnef

#: Seconds of CPU that hostile input may take.
LIMIT = 1.0


# --- replies


@pytest.mark.parametrize(
    "quoted",
    [
        "On Mon, Nov 23, 2026 at 10:00 AM Bob <bob@example.org> wrote:\n> old\n> older",
        "On Mon, Nov 23, 2026 at 10:00 AM Bob <bob@example.org> wrote:\n\nold",
        "Am Mo., 23. Nov. 2026 um 10:00 Uhr schrieb Bob <bob@example.org>:\n\n> alt",
        "Le lun. 23 nov. 2026 à 10:00, Bob <bob@example.org> a écrit :\n> vieux",
        "Den 23 nov. 2026 10:00 skrev Bob <bob@example.org>:\n> gammal",
        "2026年11月23日(月) 10:00 Bob <bob@example.org>:\n> 古い",
        "On Monday, November 23, 2026 at 10:00:00 AM GMT+1, Robert\nExample <bob@example.org>"
        "\nwrote:\n> old",
        "-----Original Message-----\nFrom: Bob\nold",
        "-------- Weitergeleitete Nachricht --------\nBetreff: alt",
        "________________________________\nFrom: Bob <bob@example.org>\nSent: Monday, November 23,"
        " 2026 10:00 AM\nTo: Ann\nSubject: old\n\nold",
        "Von: Bob <bob@example.org>\nGesendet: Montag, 23. November 2026 10:00\nAn: Ann\n\nalt",
        "*From:* Bob <bob@example.org>\n*Sent:* 23 November 2026 10:00\n*To:* Ann\n\nold",
        "发件人\uff1a Bob\n发送时间\uff1a 2026年11月23日 10:00\n收件人\uff1a Ann\n\n旧",
        "> old\n> older",
        "-- \nAnn Example\n+49 30 123456",
    ],
)
def test_what_was_quoted_is_left_out(quoted: str) -> None:
    assert reply_of(f"Thank you!\n\nSee you.\n\n{quoted}\n") == "Thank you!\n\nSee you."
    assert reply_of(f"Thank you!\r\n\r\nSee you.\r\n\r\n{quoted}") == "Thank you!\n\nSee you."


@pytest.mark.parametrize(
    "text",
    [
        "Name: Ann Example\nEmail: ann@example.org\nMessage: Hello\nPhone: 123",
        "We meet in 2026:\n- in May\n- in June",
        "The following is open:\n\none\ntwo",
        "a --- b --- c",
        "5 > 3",
        "Call me at 10:00:\nthanks",
        "",
    ],
)
def test_what_is_the_senders_own_is_kept(text: str) -> None:
    assert reply_of(text) == text


def test_answers_between_quotations_are_kept() -> None:
    text = "On 23 Nov 2026 at 10:00 Bob <b@x.org> wrote:\n> one?\nYes.\n\n> two?\n\nNo."
    assert reply_of(text) == "Yes.\n\n\nNo."


def test_a_preview_is_the_first_words_on_one_line() -> None:
    assert preview("  Hello,\r\n\r\n\tworld \n> old") == "Hello, world"
    assert preview("x" * 500) == "x" * PREVIEW
    assert preview("> only quoted\n> text") == "> only quoted > text"
    assert preview("") == ""


# --- calendars

INVITATION = b"""BEGIN:VCALENDAR\r
METHOD:REQUEST\r
BEGIN:VTIMEZONE\r
TZID:Europe/Berlin\r
BEGIN:STANDARD\r
DTSTART:16010101T030000\r
RRULE:FREQ=SECONDLY\r
END:STANDARD\r
END:VTIMEZONE\r
BEGIN:VEVENT\r
UID:1@example.org\r
SUMMARY:Lunch\\, or\\n dinner\r
LOCATION;LANGUAGE=en:Room 5\r
DTSTART;TZID=Europe/Berlin:20261123T120000\r
DTEND:20261123T120000Z\r
ORGANIZER;CN="Ann; Example":mailto:ann@example.org\r
ATTENDEE;PARTSTAT=ACCEPTED;CN=Bob:mailto:bob@example.\r
 org\r
SEQUENCE:2\r
STATUS:CONFIRMED\r
RRULE:FREQ=WEEKLY;COUNT=3\r
BEGIN:VALARM\r
SUMMARY:not this\r
END:VALARM\r
END:VEVENT\r
END:VCALENDAR\r
"""


def test_an_invitation_is_read() -> None:
    found = read_calendar(INVITATION)
    assert (found.method, found.complete) == ("REQUEST", True)
    (event,) = found.events
    assert (event.uid, event.summary, event.location) == (
        "1@example.org",
        "Lunch, or\n dinner",
        "Room 5",
    )
    assert event.start == Moment("2026-11-23T12:00:00", "Europe/Berlin")
    assert event.end == Moment("2026-11-23T12:00:00Z")
    assert event.organizer
    assert (event.organizer.name, event.organizer.address) == ("Ann; Example", "ann@example.org")
    (guest,) = event.attendees
    assert (guest.address, guest.name, guest.status) == ("bob@example.org", "Bob", "ACCEPTED")
    assert (event.sequence, event.status) == (2, "CONFIRMED")
    assert event.recurrence == "FREQ=WEEKLY;COUNT=3"


def test_a_calendar_is_read_to_its_limits_and_says_so() -> None:
    many = b"BEGIN:VCALENDAR\nBEGIN:VEVENT\n" + b"ATTENDEE:mailto:a@b\n" * 500
    found = read_calendar(many)
    assert (len(found.events[0].attendees), found.complete) == (MAX_ATTENDEES, False)
    events = b"BEGIN:VCALENDAR\n" + b"BEGIN:VEVENT\nEND:VEVENT\n" * 500
    assert (len(read_calendar(events).events), read_calendar(events).complete) == (100, False)
    assert not read_calendar(b"x" * (MAX_BYTES + 1)).complete


# --- winmail.dat


def attribute(level: int, number: int, value: bytes) -> bytes:
    head = struct.pack("<BII", level, number, len(value))
    return head + value + struct.pack("<H", sum(value) & 0xFFFF)


def properties(*rows: tuple[int, int, bytes]) -> bytes:
    made = struct.pack("<I", len(rows))
    for kind, number, value in rows:
        made += struct.pack("<HHII", kind, number, 1, len(value)) + value + bytes(-len(value) % 4)
    return made


def winmail() -> bytes:
    long_name = (0x1F, 0x3707, "Übersicht 2026.pdf\0".encode("utf-16-le"))
    return b"".join(
        [
            struct.pack("<IH", 0x223E9F78, 1),
            attribute(1, 0x00069007, struct.pack("<II", 1252, 0)),
            attribute(1, 0x00018004, b"A subject\0"),
            attribute(1, 0x00069003, properties((0x1E, 0x1000, b"The text\0"))),
            attribute(2, 0x00069002, bytes(14)),
            attribute(2, 0x00018010, b"BERSIC~1.PDF\0"),
            attribute(2, 0x0006800F, b"%PDF content"),
            attribute(2, 0x00069005, properties(long_name)),
            attribute(2, 0x00069002, bytes(14)),
            attribute(2, 0x00018010, b"../../evil\0"),
            attribute(2, 0x0006800F, b"more"),
        ]
    )


def test_the_files_of_a_winmail_are_found() -> None:
    found = read_tnef(winmail())
    assert (found.subject, found.text, found.complete) == ("A subject", "The text", True)
    assert [(one.name, one.safe_name, one.content) for one in found.files] == [
        ("Übersicht 2026.pdf", "Übersicht 2026.pdf", b"%PDF content"),
        ("../../evil", "_.._evil", b"more"),
    ]


def test_what_is_none_is_refused_and_a_part_is_read_as_far_as_it_goes() -> None:
    with pytest.raises(NotTnef):
        read_tnef(b"no tnef at all")
    whole = winmail()
    for length in range(6, len(whole)):
        read_tnef(whole[:length])
    cut = read_tnef(whole[:-6])
    assert len(cut.files) == 2
    assert not cut.complete


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8))
@settings(max_examples=300, deadline=None)
def test_a_damaged_winmail_is_no_crash(changes: list[tuple[int, int]]) -> None:
    data = bytearray(winmail())
    for place, byte in changes:
        data[6 + place % (len(data) - 6)] = byte
    read_tnef(bytes(data))


# --- Authentication-Results


def test_the_results_of_a_server_are_read() -> None:
    value = (
        'mx.example.org 1; spf=pass (sender IP is 1.2.3.4; "x") smtp.mailfrom=ann@example.net;'
        ' dkim=fail reason="bad; key" header.d=example.net header.i=@example.net;'
        " dmarc = none (p=NONE sp=(nested) NONE) header.from=example.net; arc=pass"
    )
    found = read_results(value)
    assert found.server == "mx.example.org"
    assert [(one.method, one.result, one.reason, one.properties) for one in found.results] == [
        ("spf", "pass", "", {"smtp.mailfrom": "ann@example.net"}),
        ("dkim", "fail", "bad; key", {"header.d": "example.net", "header.i": "@example.net"}),
        ("dmarc", "none", "", {"header.from": "example.net"}),
        ("arc", "pass", "", {}),
    ]


def test_only_the_topmost_field_counts() -> None:
    headers = [
        ("Received", "x"),
        ("authentication-results", "mine; spf=fail"),
        ("Authentication-Results", "mine; spf=pass"),
    ]
    found = authentication(headers)
    assert found
    assert [one.result for one in found.results] == ["fail"]
    assert authentication([("Subject", "x")]) is None
    assert read_results("") == Authentication("")
    assert read_results("mine; none").results == []


# --- time

HOSTILE: dict[str, tuple[Callable[[str], object], str]] = {}
for shape in (
    "x",
    " ",
    ">",
    "-",
    "_",
    ":",
    "(",
    '"',
    ";",
    "=",
    "\\",
    "\n",
    ">\n",
    "a:\n",
    "1",
    "2026 ",
):
    HOSTILE[f"reply {shape!r}"] = (reply_of, shape * (1_000_000 // len(shape)))
    HOSTILE[f"preview {shape!r}"] = (preview, shape * (1_000_000 // len(shape)))
    HOSTILE[f"results {shape!r}"] = (read_results, shape * (1_000_000 // len(shape)))
    HOSTILE[f"calendar {shape!r}"] = (
        lambda text: read_calendar(b"BEGIN:VCALENDAR\nBEGIN:VEVENT\n" + text.encode()),
        shape * (1_000_000 // len(shape)),
    )
for shape in (
    "a: 2026 10:00\n",
    "On 2026 10:00 x@y:\n> z\n",
    "-----a-----",
    "_____\n",
    "wrote 2026 @:\n\n",
):
    HOSTILE[f"reply {shape!r}"] = (reply_of, shape * (1_000_000 // len(shape)))


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_makes_it_slow(name: str) -> None:
    read, text = HOSTILE[name]
    began = time.process_time()
    read(text)
    assert time.process_time() - began < LIMIT


@pytest.mark.parametrize(
    "body",
    [
        bytes(4_000_000),
        attribute(2, 0x00069002, b"") * 200_000,
        attribute(1, 0x00069003, struct.pack("<I", 0xFFFFFFFF) + bytes(1_000_000)),
        attribute(1, 0x00069003, properties(*[(0x3, 0x5000, b"")] * 50_000)),
        attribute(1, 0x00069003, struct.pack("<IHHI", 1, 0x1102, 5, 0xFFFFFFFF) + bytes(4_000_000)),
    ],
)
def test_no_winmail_makes_it_slow(body: bytes) -> None:
    began = time.process_time()
    read_tnef(struct.pack("<IH", 0x223E9F78, 1) + body)
    assert time.process_time() - began < 3 * LIMIT
