"""Flags and labels as a server may send them, and ranges of UIDs that it says are gone."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailpoll.imap import flags, responses
from mailpoll.imap.errors import ImapError
from mailpoll.imap.flags import LONGEST, MOST
from mailpoll.sync.flag_rows import indexed
from mailpoll.sync.flags import _pieces, _within


def told(text: bytes) -> responses.Fetched:
    return responses.fetch(responses.tokens([text])[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"(UID 1 FLAGS ())", ()),
        (b"(UID 1 FLAGS (\\Seen \\Answered))", ("\\Answered", "\\Seen")),
        (b"(UID 1 FLAGS (\\seen \\SEEN))", ("\\Seen",)),
        (
            b"(FLAGS (NonJunk $Forwarded \\Flagged \\Recent) UID 1)",
            ("\\Flagged", "$Forwarded", "NonJunk"),
        ),
        (b"(UID 1 FLAGS (work Work WORK))", ("work",)),
        (b"(UID 1 FLAGS (NIL (a) ok))", ("ok",)),
        (b"(UID 1 FLAGS NIL)", None),
        (b"(UID 1 FLAGS \\Seen)", None),
        (b"(UID 1 FLAGS (\\Seen) MODSEQ (12))", ("\\Seen",)),
        (b"(UID 1)", None),
    ],
)
def test_flags_have_one_order_and_one_spelling(
    text: bytes, expected: tuple[str, ...] | None
) -> None:
    assert told(text).flags == expected


def test_labels_are_read_as_people_read_them() -> None:
    text = b'(UID 1 X-GM-LABELS ("\\\\Inbox" Work "Two words" "&AOk-t&AOk-" "&bad" "a\x01b"))'
    assert told(text).labels == ("\\Inbox", "&bad", "Two words", "Work", "été")


@given(st.lists(st.one_of(st.binary(max_size=150), st.none(), st.lists(st.binary())), max_size=200))
def test_whatever_a_server_sends_is_bounded_and_printable(words: list[Any]) -> None:
    for read in (flags.flags, flags.labels):
        found = read(words)
        assert found is not None
        assert len(found) <= MOST
        assert all(0 < len(one) <= LONGEST and one.isprintable() for one in found)
        assert len({one.lower() for one in found}) == len(found) or read is flags.labels


def test_a_place_is_found_by_each_flag_and_label_or_as_unseen() -> None:
    assert indexed(["\\Seen", "Work"], None) == {"\\seen", "work"}
    assert indexed(["Work"], None) == {"work", ""}
    assert indexed([], []) == {""}
    assert indexed(["Work"], ["Two Words", "\\Inbox"]) == {"work", "", " two words", " \\inbox"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"(EARLIER) 1:3,7", [(1, 3), (7, 7)]),
        (b"9:5", [(5, 9)]),
        (b"(EARLIER) 0,x,1:,:2,4294967295", [(1, 1), (4294967295, 4294967295)]),
        (b"(EARLIER)", []),
        (b"", []),
    ],
)
def test_ranges_that_are_none_are_passed_over(text: bytes, expected: list[tuple[int, int]]) -> None:
    assert responses.vanished(responses.tokens([text])) == expected


def test_a_flood_of_ranges_is_cut() -> None:
    text = b",".join(b"%d" % number for number in range(1, responses.RANGES_LIMIT + 1_000))
    assert len(responses.vanished([text])) == responses.RANGES_LIMIT
    with pytest.raises(ImapError):
        responses.tokens([b"(" * 100])


@given(
    st.lists(st.integers(1, 60), unique=True),
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 20)), max_size=8),
)
def test_uids_in_any_of_the_ranges_are_found(
    uids: list[int], starts: list[tuple[int, int]]
) -> None:
    ranges = [(low, low + more) for low, more in starts]
    wanted = [uid for uid in sorted(uids) if any(low <= uid <= high for low, high in ranges)]
    assert _within(sorted(uids), ranges) == wanted


def test_a_sparse_list_is_asked_for_in_its_dense_parts() -> None:
    assert list(_pieces([1, 2, 5_000, 5_001, 9_000_000])) == [[1, 2], [5_000, 5_001], [9_000_000]]
