"""Folder lists and names as servers give them."""

import pytest

from mailpoll import database
from mailpoll.models import EmailFolder
from tests.integration.scripted import add, folder, polled, stored
from tests.integration.system import System, message
from tests.servers.scripted_imap import Mailbox, Rule, ScriptedImap

DONE = b"{tag} OK done\r\n"

NAMES = {
    b"Entw&APw-rfe": "Entwürfe",
    b"&ZeVnLIqe-": "日本語",
    b'Quote"and\\slash': 'Quote"and\\slash',
    b"wrong &utf7": "wrong &utf7",
    b"&&&": "&&&",
    b"raw \xc3\xa9": "raw é",
    b"latin \xe9": "latin é",
    b"with\ttab": "with tab",
    b"[Gmail]/All Mail": "[Gmail]/All Mail",
    b"NIL": "NIL",
    b"{5}": "{5}",
    b"a/b/c/d": "a/b/c/d",
    b"star*percent%": "star*percent%",
    b" leading and trailing ": " leading and trailing ",
}


@pytest.mark.parametrize("capabilities", [b"IMAP4rev1", b"IMAP4rev1 LIST-STATUS"])
def test_every_folder_is_polled_whatever_it_is_called(
    scripted: System, capabilities: bytes
) -> None:
    with ScriptedImap(messages={1: message("inbox")}, capabilities=capabilities) as server:
        for number, name in enumerate(NAMES):
            server.folders[name] = Mailbox({1: message(f"in folder {number}")})
        account = polled(add(server))
        assert account.last_error is None
        assert len(stored()) == len(NAMES) + 1
        with database.connected():
            rows = {row.wire_name.encode("latin-1"): row for row in EmailFolder.select()}
        for name, shown in NAMES.items():
            assert rows[name].name == shown
            assert rows[name].complete


UNQUOTED = {
    b'* LIST () "/" Sent Items\r\n': b"Sent Items",
    b"* LIST () NIL Flat\r\n": b"Flat",
    b'* LIST () "\\\\" Back\r\n': b"Back",
    b'* LIST () "/" {7}\r\nliteral\r\n': b"literal",
    b'* LIST (\\HasNoChildren) "/" [odd\r\n': b"[odd",
    b'* list () "/" lower\r\n': b"lower",
}


@pytest.mark.parametrize("line", UNQUOTED)
def test_odd_forms_of_a_list_line_are_read(scripted: System, line: bytes) -> None:
    with ScriptedImap(messages={1: message("inbox")}) as server:
        server.folders[UNQUOTED[line]] = Mailbox({1: message("odd")})
        server.rules = [Rule("LIST", b'* LIST () "/" INBOX\r\n' + line + DONE)]
        polled(add(server))
    assert len(stored()) == 2


@pytest.mark.parametrize(
    "line",
    [
        b'* LIST (\\Noselect) "/" Folder\r\n',
        b'* LIST (\\NonExistent \\HasChildren) "/" Folder\r\n',
        b'* LIST () "/" {9}\r\nEVIL\r\nX X\r\n',
        b'* LIST () "/" ""\r\n',
        b"* LIST\r\n",
        b"* LIST ()\r\n",
        b'* LIST () "/" inbox\r\n',
    ],
)
def test_a_folder_that_cannot_be_opened_hides_no_other(scripted: System, line: bytes) -> None:
    with ScriptedImap(messages={1: message("inbox")}) as server:
        server.rules = [Rule("LIST", line + b'* LIST () "/" INBOX\r\n' + DONE)]
        account = polled(add(server))
    assert account.last_error is None
    assert len(stored()) == 1
    assert not any("EVIL" in command for command in server.commands)


def test_a_folder_that_is_refused_says_why_and_hides_no_other(scripted: System) -> None:
    with ScriptedImap(messages={1: message("inbox")}) as server:
        server.folders = {
            b"Shared": Mailbox({1: message("x")}),
            b"Other": Mailbox({1: message("y")}),
        }
        server.rules = [Rule('EXAMINE "Shared"', b"{tag} NO [NOPERM] not yours\r\n")]
        account = polled(add(server))
        assert account.last_error is None
        assert len(stored()) == 2
        assert "not yours" in folder("Shared").last_error
        server.rules = []
        polled(account)
    assert folder("Shared").last_error is None
    assert len(stored()) == 3


def test_a_refused_folder_does_not_close_the_one_that_is_imported(scripted: System) -> None:
    with ScriptedImap(messages={uid: message(f"m{uid}") for uid in range(1, 6)}) as server:
        server.folders = {b"Shared": Mailbox({1: message("x")})}

        def refuse() -> bytes:
            server.latest.folder = b""
            return b"{tag} NO [NOPERM] not yours\r\n"

        def fetch() -> bytes:
            if not server.latest.folder:
                return b"{tag} BAD no mailbox selected\r\n"
            return server.answer(server.commands[-1], server.latest)

        # Given a server that closes the open folder when it refuses another (RFC 9051 6.3.2)
        server.rules = [Rule('EXAMINE "Shared"', refuse), Rule("UID FETCH", fetch)]
        polled(add(server))
    assert len(stored()) == 5
    assert folder().last_error is None


def test_an_import_goes_on_after_its_folder_could_not_be_read_for_a_while(scripted: System) -> None:
    with ScriptedImap(messages={uid: message(f"m{uid}") for uid in range(1, 6)}) as server:
        # Given a folder without new mail that cannot be read while it is imported
        later = b"{tag} NO [UNAVAILABLE] later\r\n"
        server.rules = [Rule("UID FETCH .*INTERNALDATE", later, times=2)]
        account = polled(add(server))
        assert stored() == []
        assert "later" in folder().last_error
        # When it can be read again
        polled(account)
        # Then its mail comes, though the server's numbers are the same as before
        assert len(stored()) == 5
        assert folder().complete


def test_a_folder_that_vanishes_keeps_its_mail_and_can_come_back(scripted: System) -> None:
    with ScriptedImap(messages={1: message("inbox")}) as server:
        server.folders[b"Old"] = Mailbox({1: message("old")})
        account = polled(add(server))
        kept = server.folders.pop(b"Old")
        account = polled(account)
        assert folder("Old").gone_at is not None
        assert len(stored()) == 2
        server.folders[b"Old"] = kept
        polled(account)
        assert folder("Old").gone_at is None
        assert len(stored()) == 2


def test_a_renamed_folder_is_not_stored_twice(scripted: System) -> None:
    with ScriptedImap(messages={1: message("inbox")}) as server:
        server.folders[b"Before"] = Mailbox({1: message("moved"), 2: message("too")})
        account = polled(add(server))
        server.folders[b"After"] = server.folders.pop(b"Before")
        polled(account)
        assert len(stored()) == 3
        assert folder("After").complete


def test_a_folder_that_vanishes_between_list_and_examine_ends_no_poll(scripted: System) -> None:
    with ScriptedImap(messages={1: message("inbox")}) as server:
        server.rules = [
            Rule("LIST", b'* LIST () "/" INBOX\r\n* LIST () "/" Ghost\r\n' + DONE),
            Rule('STATUS "Ghost"', b"{tag} NO [NONEXISTENT] no such folder\r\n"),
        ]
        account = polled(add(server))
    assert account.last_error is None
    assert len(stored()) == 1
    assert "no such folder" in folder("Ghost").last_error


def test_a_message_under_many_labels_is_one_message_with_many_places(scripted: System) -> None:
    raw = message("labelled")
    with ScriptedImap(messages={1: raw}) as server:
        for label in (b"[Gmail]/All Mail", b"Important", b"Work"):
            server.folders[label] = Mailbox({7: raw})
        account = polled(add(server))
        assert stored() == [raw]
        (item,) = scripted.messages(account.uuid)
        scripted.work_until(lambda: scripted.messages(account.uuid)[0]["status"] == "processed")
        assert len(scripted.get(f"/admin/messages/{item['id']}")["locations"]) == 4


def test_ten_thousand_folders_are_polled(scripted: System) -> None:
    with ScriptedImap(
        messages={1: message("inbox")}, capabilities=b"IMAP4rev1 LIST-STATUS"
    ) as server:
        server.folders = {b"f%05d" % number: Mailbox() for number in range(10_000)}
        server.folders[b"f09999"].messages[1] = message("deep down")
        account = add(server)
        for _ in range(10):
            account = polled(account)
            if account.imported_at:
                break
        assert len(stored()) == 2
        before = len(server.commands)
        polled(account)
    # A poll without news is a handful of commands
    assert len(server.commands) - before < 8


def test_a_chosen_folder_that_is_renamed_says_so(scripted: System) -> None:
    with ScriptedImap(messages={1: message("inbox")}) as server:
        server.folders[b"Sales"] = Mailbox({1: message("sale")})
        account = polled(add(server, folders=["Sales"]))
        server.folders[b"Sales 2026"] = server.folders.pop(b"Sales")
        polled(account)
        (shown,) = scripted.get(f"/admin/email-accounts/{account.uuid}/stats")["folders"]
        assert shown["name"] == "Sales"
        assert "deleted or renamed" in shown["last_error"]
        # And folders that are not chosen are no part of any figure
        assert scripted.get("/admin/stats")["folders"] == {
            "complete": 0,
            "importing": 0,
            "unproved": 0,
        }
