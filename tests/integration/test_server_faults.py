"""What servers do wrong, and what becomes of the account and its mail."""

from datetime import timedelta

import pytest

from mailpoll import database
from mailpoll.models import EmailFetchFailure, EmailRawMessage
from mailpoll.sync import ledger
from tests.integration.scripted import add, polled, stored
from tests.integration.system import System, message
from tests.servers.scripted_imap import CLOSE, Rule, ScriptedImap


def test_answers_about_other_messages_amid_a_fetch_are_ignored(scripted: System) -> None:
    raw = message("asked")
    noise = (
        b"* 7 FETCH (FLAGS (\\Seen))\r\n* 3 FETCH (UID 99 FLAGS (\\Seen))\r\n* 2 EXPUNGE\r\n"
        b"* 5 EXISTS\r\n* 1 FETCH (FLAGS () UID 1 BODY[] {%d}\r\n%b RFC822.SIZE 3)\r\n"
        b"* 1 FETCH (UID 1 FLAGS (\\Recent))\r\n{tag} OK done\r\n" % (len(raw), raw)
    )
    rules = [Rule(r"UID FETCH 1 \(UID BODY", noise)]
    with ScriptedImap(messages={1: raw}, rules=rules) as server:
        polled(add(server))
    assert stored() == [raw]


def leaving_out(server: ScriptedImap, *uids: int) -> Rule:
    """The server lists these messages, and never sends them."""
    whole = server._fetch

    def without() -> bytes:
        kept = dict(server.messages)
        server.messages = {uid: raw for uid, raw in kept.items() if uid not in uids}
        try:
            return whole(server.commands[-1].upper()) + b"{tag} OK\r\n"
        finally:
            server.messages = kept

    return Rule(r"UID FETCH .*BODY\.PEEK", without)


def test_a_message_that_is_listed_but_never_sent_gets_a_verdict_and_blocks_nothing(
    scripted: System,
) -> None:
    # Given a server that leaves out message 2 whenever it is asked for
    mail = {uid: message(f"number {uid}") for uid in (1, 2, 3)}
    with ScriptedImap(messages=mail) as server:
        server.rules = [leaving_out(server, 2)]
        account = polled(add(server))
        # Then the others are stored, and the one left out is waiting, not forgotten
        assert stored() == [mail[1], mail[3]] or stored() == [mail[3], mail[1]]
        with database.connected():
            (failure,) = EmailFetchFailure.select()
        assert (failure.uid, failure.verdict) == (2, "waiting")
        # It is tried again after the first pause, which only another failure would double
        assert failure.next_attempt_at - failure.seen_at == timedelta(seconds=ledger.FETCH_PAUSE)
        # When the server sends it after all, it is stored and no verdict is left
        server.rules = []
        with database.transaction():
            EmailFetchFailure.update(next_attempt_at=database.now()).execute()
        polled(account)
    assert sorted(stored()) == sorted(mail.values())
    with database.connected():
        assert EmailFetchFailure.select().count() == 0


def test_what_comes_late_is_news_only_if_it_arrived_here(scripted: System) -> None:
    # Given two messages that could not be fetched: one from long before, one that has just come
    mail = {uid: message(f"number {uid}") for uid in (1, 2, 3)}
    with ScriptedImap(messages=mail) as server:
        server.inbox.dates = {2: "24-Nov-2020 10:00:00 +0000", 3: "24-Nov-2099 10:00:00 +0000"}
        server.rules = [leaving_out(server, 2, 3)]
        account = polled(add(server))
        assert stored() == [mail[1]]
        # When the server sends them after all
        server.rules = []
        with database.transaction():
            EmailFetchFailure.update(next_attempt_at=database.now()).execute()
        polled(account)
    # Then only the second is told as new mail
    with database.connected():
        rows = list(EmailRawMessage.select(EmailRawMessage.imported, EmailRawMessage.internal_date))
    assert {(row.internal_date.year, row.imported) for row in rows} >= {(2020, True), (2099, False)}


def test_a_message_removed_between_list_and_fetch_is_gone(scripted: System) -> None:
    mail = {1: message("one"), 2: message("two")}
    with ScriptedImap(messages=mail) as server:

        def expunge() -> bytes:
            server.messages.pop(2, None)
            return server._fetch(server.commands[-1].upper()) + b"{tag} OK done\r\n"

        server.rules = [Rule(r"UID FETCH .*BODY", expunge)]
        account = polled(add(server))
    assert stored() == [mail[1]]
    with database.connected():
        (failure,) = EmailFetchFailure.select()
    assert (failure.uid, failure.verdict) == (2, "gone")
    assert account.last_error is None


@pytest.mark.parametrize("sent", [0, 1, 20])
def test_a_connection_that_ends_inside_a_message_stores_no_part_of_it(
    scripted: System, sent: int
) -> None:
    raw = message("whole")
    cut = b"* 1 FETCH (UID 1 BODY[] {%d}\r\n%b" % (len(raw), raw[:sent]) + CLOSE
    with ScriptedImap(messages={1: raw}, rules=[Rule(r"UID FETCH .*BODY", cut, times=1)]) as server:
        # The same poll connects again and gets it whole
        account = polled(add(server))
    assert stored() == [raw]
    assert (account.failures, account.last_error) == (0, None)


def test_a_message_that_always_breaks_the_connection_holds_back_no_other(scripted: System) -> None:
    mail = {uid: message(f"number {uid}") for uid in range(1, 6)}

    with ScriptedImap(messages=mail) as server:

        def poison() -> bytes:
            verb = server.commands[-1].upper()
            answer = server._fetch(verb)
            return (
                answer.partition(b"Subject: number 3")[0] + CLOSE
                if b"number 3" in answer
                else (answer + b"{tag} OK done\r\n")
            )

        server.rules = [Rule(r"UID FETCH .*BODY", poison)]
        account = add(server)
        for _ in range(4):
            account = polled(account)
            with database.transaction():
                EmailFetchFailure.update(next_attempt_at=database.now()).execute()
    assert sorted(stored()) == sorted(raw for uid, raw in mail.items() if uid != 3)
    with database.connected():
        (failure,) = EmailFetchFailure.select()
    assert failure.uid == 3


def test_a_changed_uidvalidity_stores_nothing_twice(scripted: System) -> None:
    mail = {1: message("one"), 2: message("two")}
    with ScriptedImap(messages=mail) as server:
        account = polled(add(server))
        server.uidvalidity = 2
        server.messages = {10: mail[1], 11: mail[2], 12: message("three")}
        polled(account)
    assert len(stored()) == 3
    with database.connected():
        from mailpoll.models import EmailLocation

        assert EmailLocation.select().count() == 5


def test_a_server_without_uidnext_is_polled_all_the_same(scripted: System) -> None:
    mail = {5: message("five")}
    bare = b"* 1 EXISTS\r\n* OK [UIDVALIDITY 1] ok\r\n{tag} OK done\r\n"
    rules = [Rule("EXAMINE", bare), Rule("STATUS", b"* STATUS INBOX ()\r\n{tag} OK done\r\n")]
    with ScriptedImap(messages=mail, rules=rules) as server:
        account = polled(add(server))
        server.messages[9] = message("nine")
        polled(account)
    assert sorted(stored()) == sorted(server.messages.values())


def test_a_sparse_mailbox_with_huge_uids_is_imported_in_few_commands(scripted: System) -> None:
    mail = {uid: message(f"number {uid}") for uid in (3, 70_000, 4_294_967_290)}
    with ScriptedImap(messages=mail) as server:
        polled(add(server))
    assert sorted(stored()) == sorted(mail.values())
    assert len(server.commands) < 40


def test_the_identity_is_sent_before_a_folder_is_opened(scripted: System) -> None:
    with ScriptedImap(messages={1: message("one")}, capabilities=b"IMAP4rev1 ID") as server:
        polled(add(server))
    names = [command.split()[0].upper() for command in server.commands]
    assert names.index("ID") < names.index("EXAMINE")


def test_nothing_but_reading_commands_is_ever_sent(scripted: System) -> None:
    with ScriptedImap(messages={1: message("one"), 2: message("x" * 30_000)}) as server:
        polled(add(server))
    verbs = {command.split()[0].upper() for command in server.commands}
    assert verbs <= {"CAPABILITY", "LOGIN", "LIST", "STATUS", "EXAMINE", "UID", "LOGOUT"}
    fetches = [command for command in server.commands if command.startswith("UID FETCH")]
    assert all("BODY[" not in command for command in fetches)


@pytest.mark.parametrize(
    "answer",
    [
        b"* 1 FETCH (UID 1 BODY[] {107374182400}\r\n",
        b"* " + b"x" * 17_000_000 + b"\r\n",
        b"* 1 FETCH " + b"(" * 100_000 + b"\r\n",
        b"* OK still here\r\n" * 250_000,
    ],
    ids=["literal", "line", "depth", "lines"],
)
def test_an_answer_without_end_is_refused(scripted: System, answer: bytes) -> None:
    with ScriptedImap(messages={1: message("one")}, rules=[Rule("UID FETCH", answer)]) as server:
        account = polled(add(server))
    assert account.last_error_kind == "protocol_error"
    assert stored() == []


def test_a_silent_server_frees_the_poller_after_the_time_out(scripted: System) -> None:
    with ScriptedImap(rules=[Rule("LIST", b"")]) as server:
        account = polled(add(server))
    assert account.last_error_kind == "timed_out"
