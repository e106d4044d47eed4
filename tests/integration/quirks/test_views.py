"""Servers that show a part of a mailbox, or the same message in many folders."""

import re

import pytest

from tests.integration.scripted import add, folder, places, polled, stored, try_again_now
from tests.integration.system import System, message
from tests.servers.scripted_imap import Mailbox, Rule, ScriptedImap
from tests.servers.yahoo import Yahoo


def test_a_whole_yahoo_mailbox_is_stored_and_not_only_its_newest_part(scripted: System) -> None:
    # Given 83,640 messages, which hold the same few bytes so that the test is quick
    raw = message("the same everywhere")
    with Yahoo(messages=dict.fromkeys(range(1, 83_641), raw)) as server:
        account = add(server)
        for _ in range(60):
            account = polled(account)
            if account.imported_at:
                break
        proof = folder().proof
        assert (proof["server"], proof["stored"], proof["withheld"]) == (83_640, 83_640, 0)
        assert folder().complete
        assert len(places()) == 83_640


def test_a_view_that_stays_limited_is_told_and_loses_nothing_of_it(scripted: System) -> None:
    raw = message("the same everywhere")
    plain = b"IMAP4rev1 ID MESSAGELIMIT=1000"
    with Yahoo(messages=dict.fromkeys(range(1, 12_001), raw), capabilities=plain) as server:
        account = add(server)
        for _ in range(20):
            account = polled(account)
            if account.imported_at:
                break
        proof = folder().proof
    assert (proof["server"], proof["stored"], proof["withheld"]) == (12_000, 10_000, 2_000)


@pytest.mark.parametrize("capability", [b"OBJECTID", b"X-GM-EXT-1"])
def test_a_message_in_many_folders_is_downloaded_once(scripted: System, capability: bytes) -> None:
    mail = {uid: message(f"number {uid}") for uid in range(1, 31)}
    with ScriptedImap(messages=mail, capabilities=b"IMAP4rev1 " + capability) as server:
        server.folders[b"[Gmail]/All Mail"] = Mailbox({uid + 100: raw for uid, raw in mail.items()})
        server.folders[b"[Gmail]/All Mail"].messages[200] = message("archived only")
        server.folders[b"Work"] = Mailbox({5: mail[7]})
        account = polled(add(server))
        assert len(stored()) == 31
        assert len(places()) == 30 + 31 + 1
        assert all(folder(name).complete for name in ("INBOX", "[Gmail]/All Mail", "Work"))
        # Each content went over the wire once
        assert len(server.manifest) == 31
        # And a message that gets a label later is not fetched again either
        server.folders[b"Work"].messages[6] = mail[8]
        polled(account)
        assert folder("Work").messages == 2
        assert len(server.manifest) == 31


def test_a_server_that_claims_names_and_gives_none_loses_nothing(scripted: System) -> None:
    mail = {uid: message(f"number {uid}") for uid in range(1, 4)}
    with ScriptedImap(messages=mail, capabilities=b"IMAP4rev1 OBJECTID") as server:

        def without() -> bytes:
            answer = server.answer(server.commands[-1])
            return re.sub(rb"EMAILID \(\w+\)", b"EMAILID NIL", answer)

        server.rules = [Rule("UID FETCH .*EMAILID", without)]
        polled(add(server))
        try_again_now()
    assert sorted(stored()) == sorted(mail.values())


def test_names_that_do_not_tell_contents_apart_lose_nothing(scripted: System) -> None:
    # Given a server that calls every message the same, some of them of one size
    def same_name() -> bytes:
        answer = server.answer(server.commands[-1], server.latest)
        return re.sub(rb"EMAILID \(\w+\)", b"EMAILID (M1)", answer)

    subjects = ("longer by far than the first", "a", "b", "c", "d")
    with ScriptedImap(messages={1: message("first")}, capabilities=b"IMAP4rev1 OBJECTID") as server:
        server.rules = [Rule("UID FETCH .*EMAILID", same_name)]
        account = polled(add(server))
        # When more comes, poll by poll
        for uid, subject in enumerate(subjects, 2):
            server.messages[uid] = message(subject)
            account = polled(account)
        # Then each is stored
        assert sorted(stored()) == sorted(server.messages.values())
