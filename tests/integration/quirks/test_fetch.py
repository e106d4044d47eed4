"""FETCH answers as servers really give them: every message whole and once, or a reason."""

import hashlib
import re
from collections.abc import Callable

import pytest

from tests.integration.scripted import (
    add,
    expect,
    folder,
    places,
    polled,
    stored,
    try_again_now,
    verdicts,
)
from tests.integration.system import System, message
from tests.servers.scripted_imap import CLOSE, HANG, RESET, Mailbox, Rule, ScriptedImap

BODY = r"UID FETCH .*BODY"
DONE = b"{tag} OK done\r\n"


def mail(count: int) -> dict[int, bytes]:
    return {uid: message(f"number {uid}") for uid in range(1, count + 1)}


def whole(uid: int, raw: bytes) -> bytes:
    return b"* %d FETCH (UID %d BODY[] {%d}\r\n%b)\r\n" % (uid, uid, len(raw), raw)


# --- mixed, split and odd answers that still hold the message


RAW = message("asked")
N = len(RAW)
FORMS = {
    "flags before": b"* 1 FETCH (FLAGS (\\Seen) UID 1 BODY[] {%d}\r\n%b)\r\n" % (N, RAW),
    "flags between": b"* 1 FETCH (UID 1 FLAGS () BODY[] {%d}\r\n%b)\r\n" % (N, RAW),
    "flags after": b"* 1 FETCH (UID 1 BODY[] {%d}\r\n%b FLAGS (\\Seen) MODSEQ (7))\r\n" % (N, RAW),
    "uid after": b"* 1 FETCH (BODY[] {%d}\r\n%b UID 1)\r\n" % (N, RAW),
    "lower case": b"* 1 fetch (uid 1 body[] {%d}\r\n%b)\r\n" % (N, RAW),
    "in two lines": b"* 1 FETCH (UID 1 RFC822.SIZE 10)\r\n" + whole(1, RAW),
    "other messages around": (
        b"* 7 FETCH (FLAGS (\\Seen))\r\n* 9 FETCH (UID 99 BODY[] {3}\r\nabc)\r\n"
        + whole(1, RAW)
        + b"* 2 EXPUNGE\r\n* 9999 EXPUNGE\r\n* 0 EXISTS\r\n* 1 RECENT\r\n"
    ),
    "doubled": whole(1, RAW) + b"* 1 FETCH (UID 1 BODY[] {3}\r\nabc)\r\n",
    "items behind the bracket": whole(1, RAW) + b" FLAGS (\\Seen) RFC822.SIZE 7\r\n",
    "literal8": b"* 1 FETCH (UID 1 BODY[] ~{%d}\r\n%b)\r\n" % (N, RAW),
    "literal plus": b"* 1 FETCH (UID 1 BODY[] {%d+}\r\n%b)\r\n" % (N, RAW),
    "empty line after the literal": b"* 1 FETCH (UID 1 BODY[] {%d}\r\n%b\r\n)\r\n" % (N, RAW),
    "line feeds only": b"* 1 FETCH (UID 1 BODY[] {%d}\n%b)\n" % (N, RAW),
    "untagged OK without text": b"* OK\r\n" + whole(1, RAW) + b"* OK [HIGHESTMODSEQ 7]\r\n",
    "UIDONLY": b"* 1 UIDFETCH (BODY[] {%d}\r\n%b)\r\n" % (N, RAW),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_message_is_read_from_any_form_of_answer(scripted: System, form: str) -> None:
    rules = [Rule(BODY, FORMS[form] + DONE)]
    with ScriptedImap(messages={1: RAW}, rules=rules) as server:
        account = polled(add(server))
    assert stored() == [RAW]
    assert account.last_error is None


def test_an_ok_without_text_ends_a_command(scripted: System) -> None:
    rules = [
        Rule("LOGIN", b"{tag} OK\r\n"),
        Rule(BODY, whole(1, RAW) + b"{tag} OK\r\n"),
        Rule("LIST", b'* LIST () "/" INBOX\r\n{tag} OK\r\n'),
    ]
    with ScriptedImap(messages={1: RAW}, rules=rules) as server:
        account = polled(add(server))
    assert stored() == [RAW]
    assert account.last_error is None


def test_text_that_looks_like_protocol_is_kept_exact(scripted: System) -> None:
    body = ")\r\n* BYE\r\nA1 OK done\r\n* 1 FETCH (UID 2 BODY[] {3}\r\nX-Spam-Flag: NO\r\n{9}\r\n"
    with ScriptedImap(messages={1: message("one", body), 2: message("two")}) as server:
        polled(add(server))
        expect(server)


@pytest.mark.parametrize(
    ("value", "raw"), [(b'""', b""), (b'"short \\"quoted\\" mail"', b'short "quoted" mail')]
)
def test_a_quoted_body_is_a_body(scripted: System, value: bytes, raw: bytes) -> None:
    answer = b"* 1 FETCH (UID 1 BODY[] %b)\r\n" % value + DONE
    with ScriptedImap(messages={1: RAW}, rules=[Rule(BODY, answer)]) as server:
        polled(add(server))
    assert stored() == [raw]


# --- sizes that are not true


@pytest.mark.parametrize(
    "size",
    [0, 1, N - 29, N * 3, 4_294_967_296, 9_999_999_999_999_999_999, -1],
    ids=["0", "1", "less", "more", "huge", "beyond 64 bits", "negative"],
)
def test_the_literal_counts_and_not_the_announced_size(scripted: System, size: int) -> None:
    line = b'* 1 FETCH (UID 1 RFC822.SIZE %d INTERNALDATE "23-Nov-2026 10:00:00 +0000")\r\n' % size
    with ScriptedImap(messages={1: RAW}, rules=[Rule("UID FETCH .*SIZE", line + DONE)]) as server:
        account = polled(add(server))
    assert (stored(), verdicts(), account.last_error) == ([RAW], {}, None)


def test_a_message_over_the_limit_is_recorded_and_not_fetched(scripted: System) -> None:
    size = 300_000_000
    line = b'* 1 FETCH (UID 1 RFC822.SIZE %d INTERNALDATE "23-Nov-2026 10:00:00 +0000")\r\n' % size
    rules = [
        Rule("UID FETCH .*SIZE", line + DONE),
        Rule(BODY + r".*\[\]", b"* 1 FETCH (UID 1 BODY[]<256000000> {1}\r\nx)\r\n" + DONE),
    ]
    with ScriptedImap(messages={1: RAW}, rules=rules) as server:
        account = polled(add(server))
    assert (stored(), verdicts()) == ([], {1: "too_large"})
    # And it can be seen what it is
    figures = scripted.get(f"/admin/email-accounts/{account.uuid}/stats")
    (unfetched,) = figures["unfetched"]
    assert (unfetched["subject"], unfetched["size"]) == ("asked", size)
    assert unfetched["from"] == [{"name": "Ann Example", "address": "ann@example.org"}]
    assert folder().proof["too_large"] == 1
    assert folder().complete


def test_a_large_message_that_is_announced_as_small_arrives_whole(scripted: System) -> None:
    # Given a message of 95,000 bytes, where parts have 10,000, that is announced with 10
    raw = message("large", "x" * 70 + "\r\n") + b"0123456789" * 9_490
    small = b'* 1 FETCH (UID 1 RFC822.SIZE 10 INTERNALDATE "23-Nov-2026 10:00:00 +0000")\r\n' + DONE
    with ScriptedImap(messages={1: raw}, rules=[Rule("UID FETCH .*SIZE", small)]) as server:
        account = add(server)
        for _ in range(3):
            polled(account)
            try_again_now()
    assert stored() == [raw]


def test_a_server_that_ignores_parts_is_read_whole(scripted: System) -> None:
    raw = message("large", "x" * 25_000)
    rules = [Rule(r"UID FETCH 1 \(UID BODY.PEEK\[\]<0", whole(1, raw) + DONE)]
    with ScriptedImap(messages={1: raw}, rules=rules) as server:
        polled(add(server))
    assert stored() == [raw]


def test_a_server_that_answers_with_another_part_stores_nothing_wrong(scripted: System) -> None:
    raw = message("large", "x" * 25_000)
    wrong = b"* 1 FETCH (UID 1 BODY[]<0> {10000}\r\n%b)\r\n" % raw[:10_000] + DONE
    with ScriptedImap(messages={1: raw, 2: RAW}, rules=[Rule(BODY + r".*<[1-9]", wrong)]) as server:
        account = polled(add(server))
        expect(server, 1)
        assert verdicts() == {1: "waiting"}
        server.rules = []
        try_again_now()
        polled(account)
        expect(server)


# --- bodies that do not come


@pytest.mark.parametrize(
    "answer",
    [
        b"* 2 FETCH (UID 2 BODY[] NIL)\r\n{tag} OK done\r\n",
        b"* 2 FETCH (UID 2)\r\n{tag} OK done\r\n",
        b"{tag} OK FETCH completed\r\n",
        b"{tag} NO [UNAVAILABLE] UID FETCH Server error\r\n",
        b"{tag} BAD unknown\r\n",
    ],
    ids=["nil", "no body", "no answer", "unavailable", "bad"],
)
def test_a_message_without_a_body_gets_a_verdict_and_comes_later(
    scripted: System, answer: bytes
) -> None:
    # Given a server that never sends message 2, alone or among others
    with ScriptedImap(messages=mail(4)) as server:

        def partly() -> bytes:
            command = server.commands[-1]
            asked = server._uids(command.split()[2], server.mailbox(b"INBOX"))
            if 2 not in asked:
                return server.answer(command)
            others = b"".join(whole(uid, server.messages[uid]) for uid in asked if uid != 2)
            return others + answer

        server.rules = [Rule(BODY, partly)]
        account = polled(add(server))
        # Then the others are stored, and it is waiting
        expect(server, 2)
        assert verdicts() == {2: "waiting"}
        assert account.last_error is None
        # After three polls it counts as unreadable, and the proof adds up
        for _ in range(2):
            try_again_now()
            polled(account)
        assert verdicts() == {2: "unreadable"}
        server.messages[5] = message("new")
        polled(account)
        proof = folder().proof
        assert (proof["server"], proof["stored"], proof["unreadable"]) == (5, 4, 1)
        assert folder().complete
        # And it is still stored when the server sends it after all
        server.rules = []
        try_again_now()
        polled(account)
        expect(server)
        assert verdicts() == {}


CUTS: dict[str, Callable[[bytes], bytes]] = {
    "closed at 0": lambda raw: CLOSE,
    "closed at 1": lambda raw: raw[:1] + CLOSE,
    "closed in the middle": lambda raw: raw[: len(raw) // 2] + CLOSE,
    "closed before the last byte": lambda raw: raw[:-1] + CLOSE,
    "closed before the bracket": lambda raw: raw + CLOSE,
    "reset at 0": lambda raw: RESET,
    "reset in the middle": lambda raw: raw[: len(raw) // 2] + RESET,
    "reset before the last byte": lambda raw: raw[:-1] + RESET,
    "fewer bytes than announced": lambda raw: raw[:-20] + b")\r\n{tag} OK done\r\n" + HANG,
    "more bytes than announced": lambda raw: raw + b"and more\r\n)\r\n{tag} OK done\r\n",
    "bye in the middle": lambda raw: raw[:10] + b"\r\n* BYE\r\n" + CLOSE,
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_message_is_never_stored_and_holds_back_no_other(scripted: System, cut: str) -> None:
    # Given a server that breaks off whenever it sends message 2
    with ScriptedImap(messages=mail(3)) as server:
        broken = server.messages[2]

        def partly() -> bytes:
            command = server.commands[-1]
            asked = server._uids(command.split()[2], server.mailbox(b"INBOX"))
            before = b"".join(whole(uid, server.messages[uid]) for uid in asked if uid < 2)
            if 2 not in asked:
                return server.answer(command)
            head = b"* 2 FETCH (UID 2 BODY[] {%d}\r\n" % len(broken)
            return before + head + CUTS[cut](broken)

        server.rules = [Rule(BODY, partly)]
        account = polled(add(server))
        for _ in range(2):
            account = polled(account)
        # Then it is not stored, the others are, and it waits with a reason
        expect(server, 2)
        assert verdicts() == {2: "waiting"}
        # When the server recovers, it is stored
        server.rules = []
        try_again_now()
        polled(account)
        expect(server)


def test_a_message_that_is_expunged_between_list_and_fetch_is_gone(scripted: System) -> None:
    with ScriptedImap(messages=mail(3)) as server:

        def expunge() -> bytes:
            server.messages.pop(2, None)
            return b"* 2 EXPUNGE\r\n" + server.answer(server.commands[-1])

        server.rules = [Rule(BODY, expunge)]
        polled(add(server))
        expect(server)
    assert verdicts() == {2: "gone"}
    assert folder().proof["gone"] == 1


def test_a_refusal_of_many_because_of_one_stores_the_others(scripted: System) -> None:
    # Given a server that answers some and then NO whenever message 5 is among them
    with ScriptedImap(messages=mail(10)) as server:

        def refuse() -> bytes:
            command = server.commands[-1]
            asked = server._uids(command.split()[2], server.mailbox(b"INBOX"))
            if 5 not in asked:
                return server.answer(command)
            some = b"".join(whole(uid, server.messages[uid]) for uid in asked[:4] if uid != 5)
            return some + b"{tag} NO some of the messages no longer exist\r\n"

        server.rules = [Rule(BODY, refuse)]
        polled(add(server))
        expect(server, 5)
    assert verdicts() == {5: "waiting"}


def test_bytes_that_change_at_the_server_give_no_second_message(scripted: System) -> None:
    with ScriptedImap(messages=mail(2)) as server:
        account = polled(add(server))
        first = dict(places())
        server.messages[2] += b"X-Added: later\r\n"
        server.messages[3] = message("new")
        polled(account)
        assert {key: value for key, value in places().items() if key[2] != 3} == first
        assert places()["INBOX", 1, 3] == hashlib.sha256(server.messages[3]).hexdigest()


def test_dates_that_are_none_do_not_lose_the_message(scripted: System) -> None:
    odd = {1: " 1-Jan-2026 10:00:00 +0000", 2: "00-Jan-0000 00:00:00 +0000", 3: "", 4: "NIL"}
    with ScriptedImap(messages=mail(5)) as server:
        server.inbox.dates = {**odd, 5: "23-Nov-2026 10:00:00 +9999"}
        server.rules = [
            Rule(
                "UID FETCH .*INTERNALDATE",
                lambda: re.sub(
                    rb'INTERNALDATE "(NIL)?"',
                    b"INTERNALDATE NIL",
                    server.answer(server.commands[-1]),
                ),
            )
        ]
        polled(add(server))
        expect(server)


def test_a_servers_complaint_in_place_of_a_message_is_flagged(scripted: System) -> None:
    subject = "Retrieval using the IMAP4 protocol failed for the following message: 7"
    with ScriptedImap(messages={7: message(subject)}) as server:
        account = polled(add(server))
    (item,) = scripted.messages(account.uuid)
    scripted.work_until(lambda: scripted.messages(account.uuid)[0]["status"] == "processed")
    assert scripted.get(f"/admin/messages/{item['id']}")["defects"] == ["server-placeholder"]


@pytest.mark.parametrize("ending", [b"{tag} NO [SERVERBUG] oops\r\n", CLOSE])
def test_a_server_that_breaks_over_sizes_is_read_without_them(
    scripted: System, ending: bytes
) -> None:
    rules = [Rule("UID FETCH .*SIZE", ending)]
    with ScriptedImap(messages=mail(5), rules=rules) as server:
        account = polled(add(server))
        expect(server)
        assert account.last_error is None


def test_a_folder_that_cannot_be_listed_holds_back_no_other(scripted: System) -> None:
    with ScriptedImap(messages=mail(2)) as server:
        server.folders[b"Broken"] = Mailbox(mail(3))
        server.folders[b"Other"] = Mailbox({1: message("in the other")})

        def refuse() -> bytes:
            if server.latest.folder == b"Broken":
                return b"{tag} NO [SERVERBUG] oops\r\n"
            return server.answer(server.commands[-1], server.latest)

        server.rules = [Rule("UID FETCH", refuse)]
        account = polled(add(server))
        assert account.last_error is None
        assert len(stored()) == 3
        assert "oops" in folder("Broken").last_error
        server.rules = []
        polled(account)
        assert folder("Broken").last_error is None
        assert folder("Broken").complete
