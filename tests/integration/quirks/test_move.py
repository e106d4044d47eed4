"""A mailbox that moves to another server: what is stored stays, and is not fetched again."""

from mailpoll import accounts
from tests.integration.scripted import add, folder, polled, stored
from tests.integration.system import System, message
from tests.servers.scripted_imap import Mailbox, ScriptedImap


def received(number: int, body: str = "the body is the same length\r\n") -> bytes:
    """Mail as it lies in a mailbox, with what the receiving server wrote above it."""
    trace = f"from mx{number:04}.example.net by mail.example.org with ESMTPS id {number:08x}"
    return b"Received: " + trace.encode() + b"\r\n" + message("a subject of theirs", body)


def test_a_move_fetches_only_what_is_new(scripted: System) -> None:
    # Given an account whose mail is stored
    mail = {uid: received(uid) for uid in range(1, 41)}
    with ScriptedImap(messages=mail) as old:
        old.folders[b"Archive"] = Mailbox({uid: received(uid + 100) for uid in range(1, 11)})
        account = polled(add(old))
        assert account.imported_at is not None
        # When it moves to a server with other UIDs, where a message more has arrived
        moved = {uid * 7: raw for uid, raw in enumerate(mail.values(), 1)}
        with ScriptedImap(messages=moved, uidvalidity=77) as new:
            new.folders[b"Archive"] = Mailbox(dict(old.folders[b"Archive"].messages), uidvalidity=9)
            new.messages[500] = received(999)
            account = accounts.change(account, {"port": new.port}, test=False)
            polled(account)
            # Then everything is in its place there, and one body went over the wire
            assert folder().proof["stored"] == 41
            assert folder().complete
            assert folder("Archive").complete
            assert len(new.manifest) == 1
    assert len(stored()) == 51


def test_a_renamed_folder_is_not_fetched_again(scripted: System) -> None:
    with ScriptedImap(messages={1: received(1)}) as server:
        server.folders[b"Before"] = Mailbox({uid: received(uid + 10) for uid in range(1, 9)})
        account = polled(add(server))
        fetched = len(server.manifest)
        server.folders[b"After"] = server.folders.pop(b"Before")
        polled(account)
        assert folder("After").complete
        assert len(server.manifest) == fetched
    assert len(stored()) == 9


def test_messages_that_differ_only_in_their_bodies_are_told_apart(scripted: System) -> None:
    # Given two with the same header and size, which the header cannot tell apart
    first = received(1, "one\r\n")
    second = first.replace(b"\r\n\r\none", b"\r\n\r\ntwo")
    with ScriptedImap(messages={1: first, 2: second}) as server:
        account = polled(add(server))
        server.uidvalidity = 5
        polled(account)
        assert folder().proof["stored"] == 2
        # Then both are fetched and compared by their bytes
        assert {key for key in server.manifest if key[1] == 5} == {("INBOX", 5, 1), ("INBOX", 5, 2)}
    assert sorted(stored()) == sorted((first, second))


def test_a_header_of_few_bytes_is_not_trusted(scripted: System) -> None:
    with ScriptedImap(messages={1: b"Subject: x\r\n\r\nabc"}) as server:
        account = polled(add(server))
        server.uidvalidity = 5
        server.messages[1] = b"Subject: x\r\n\r\nxyz"
        polled(account)
    assert stored() == [b"Subject: x\r\n\r\nabc", b"Subject: x\r\n\r\nxyz"]
