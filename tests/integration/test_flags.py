"""Flags, moves and removals that are followed for the accounts that ask for it."""

import hashlib
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import imapclient
import pytest

from mailpoll import accounts, database, events, fsck
from mailpoll.actors.poll import poll
from mailpoll.actors.process import process_message
from mailpoll.archives import intake
from mailpoll.fsck import Kind, Tally
from mailpoll.imap.wire import Wire, WireIMAP4
from mailpoll.models import EmailAccount, EmailFlag, EmailFolder, EmailLocation
from mailpoll.sync import flag_rows
from mailpoll.sync import flags as following
from mailpoll.sync.flags import UNTRUSTED
from tests.integration.archived import add_archive, process
from tests.integration.rows import account_row
from tests.integration.scripted import add, folder, polled, stored
from tests.integration.system import PASSWORD, System, message
from tests.servers.scripted_imap import Mailbox, Rule, ScriptedImap

URL = "/admin/email-accounts"
CONDSTORE = b"IMAP4rev1 LIST-STATUS CONDSTORE"
QRESYNC = CONDSTORE + b" ENABLE QRESYNC"


@contextmanager
def client(
    system: System, address: str, name: str | None = "INBOX"
) -> Iterator[imapclient.IMAPClient]:
    """Another client of the same mailbox, with a folder open."""
    context = ssl.create_default_context(cafile=str(system.dovecot.ca_file))
    other = imapclient.IMAPClient(
        "localhost", port=system.dovecot.imaps_port, ssl=True, ssl_context=context
    )
    other.login(address, PASSWORD)
    if name:
        other.select_folder(name)
    yield other
    other.logout()


def mail(count: int) -> dict[int, bytes]:
    return {uid: message(f"number {uid}") for uid in range(1, count + 1)}


def told(*types: str) -> list[dict[str, Any]]:
    found = [event.public() for event in events.read(0, 10_000)]
    return [one for one in found if one["type"] in (types or ("message.flags",))]


def flags(name: str = "INBOX") -> dict[int, list[str] | None]:
    """UID to the flags of the places that messages lie in now."""
    place = EmailLocation
    with database.connected():
        rows = place.select(place.uid, place.flags).join(EmailFolder)
        rows = rows.where(
            EmailFolder.name == name,
            place.expunged_at.is_null(),
            place.uidvalidity == EmailFolder.uidvalidity,
        )
        return dict(rows.order_by(place.uid).tuples())


def asked(server: ScriptedImap, since: int = 0) -> list[str]:
    """What the server was asked about flags and changes, from its ``since``-th command on."""
    return [one for one in server.commands[since:] if "FLAGS" in one and "INTERNALDATE" not in one]


class Wiretap:
    """Counts what goes over the wire: commands, and bytes of both ways."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[bytes] = []
        self.received = 0
        send, receive = WireIMAP4.send, Wire._receive

        def sending(imap: WireIMAP4, data: Any) -> None:
            self.commands.append(bytes(data).partition(b" ")[2].strip())
            send(imap, data)

        def receiving(wire: Wire, call: Any, length: Any) -> Any:
            got = receive(wire, call, length)
            self.received += length(got)
            return got

        monkeypatch.setattr(WireIMAP4, "send", sending)
        monkeypatch.setattr(Wire, "_receive", receiving)

    def reset(self) -> None:
        self.commands, self.received = [], 0


# --- a real server


def test_flags_come_with_mail_and_follow_what_others_change(system: System, address: str) -> None:
    # Given mail of which some has flags before it is fetched
    system.dovecot.deliver_many(address, list(mail(4).values()))
    with client(system, address) as other:
        other.add_flags([2], [imapclient.SEEN, imapclient.ANSWERED])
    account = system.add_account(address, sync_flags=True)
    system.poll_and_process(account)
    assert flags() == {1: [], 2: ["\\Answered", "\\Seen"], 3: [], 4: []}
    assert told() == []
    # When another client changes flags
    with client(system, address) as other:
        other.add_flags([3], [imapclient.FLAGGED, imapclient.DRAFT, "$Forwarded"])
        other.remove_flags([2], [imapclient.SEEN])
    poll(account_row(account).id, None)
    # Then they are as there, and each change is told once
    assert flags() == {1: [], 2: ["\\Answered"], 3: ["\\Draft", "\\Flagged", "$Forwarded"], 4: []}
    assert [(one["data"]["added"], one["data"]["removed"]) for one in told()] == [
        ([], ["\\Seen"]),
        (["\\Draft", "\\Flagged", "$Forwarded"], []),
    ]
    poll(account_row(account).id, None)
    assert len(told()) == 2
    ids = {one["data"]["folder"]: one["message_id"] for one in told()}
    shown = system.get(f"/admin/messages/{ids['INBOX']}")
    assert shown["locations"][0]["flags"] == ["\\Draft", "\\Flagged", "$Forwarded"]


def test_an_unchanged_folder_costs_the_same_whatever_its_size(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap = Wiretap(monkeypatch)
    costs = []
    for size in (10, 400):
        name = f"{size}-{address}"
        system.dovecot.deliver_many(name, list(mail(size).values()))
        account = system.add_account(name, sync_flags=True)
        for _ in range(3):
            poll(account_row(account).id, None)
        assert folder_of(account).modseq
        tap.reset()
        poll(account_row(account).id, None)
        costs.append((tap.commands[-2:], len(tap.commands), tap.received))
    small, large = costs
    # Login, ID, ENABLE, one list of everything, and good-bye
    assert small[0] == large[0]
    assert small[0][0].startswith(b'LIST "" "*" RETURN (STATUS (')
    assert b"HIGHESTMODSEQ" in small[0][0]
    assert small[1] == large[1] <= 6
    assert abs(small[2] - large[2]) < 100


def test_only_what_changed_is_asked_for(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.dovecot.deliver_many(address, list(mail(300).values()))
    account = system.add_account(address, sync_flags=True)
    for _ in range(2):
        poll(account_row(account).id, None)
    with client(system, address) as other:
        other.add_flags([7], [imapclient.SEEN])
    tap = Wiretap(monkeypatch)
    poll(account_row(account).id, None)
    assert flags()[7] == ["\\Seen"]
    (changes,) = [one for one in tap.commands if b"CHANGEDSINCE" in one]
    assert b"VANISHED" in changes
    assert tap.received < 10_000


def folder_of(account: str, name: str = "INBOX") -> EmailFolder:
    with database.connected():
        found = EmailFolder.select().join(EmailAccount)
        return found.where(EmailAccount.uuid == account, EmailFolder.name == name).get()


def test_moves_and_removals_are_known_at_the_next_poll_and_flags_follow(
    system: System, address: str
) -> None:
    system.dovecot.deliver_many(address, list(mail(6).values()))
    with client(system, address) as other:
        other.create_folder("Done")
    account = system.add_account(address, sync_flags=True)
    system.poll_and_process(account)
    poll(account_row(account).id, None)
    with client(system, address) as other:
        other.add_flags([2], [imapclient.SEEN, imapclient.FLAGGED])
        other.move([2], "Done")
        other.delete_messages([5])
        other.expunge()
    poll(account_row(account).id, None)
    assert sorted(flags()) == [1, 3, 4, 6]
    assert list(flags("Done").values()) == [["\\Flagged", "\\Seen"]]
    (moved,) = told("message.moved")
    assert moved["data"] == {"folder": "Done", "from": "INBOX"}
    (gone,) = told("message.expunged")
    assert gone["data"] == {"folder": "INBOX"}
    (changed,) = told("message.flags")
    assert changed["message_id"] == moved["message_id"]
    assert changed["data"]["folder"] == "Done"
    assert folder_of(account).complete
    assert len(stored()) == 6
    # ... and the places that they left are still written down
    shown = system.get(f"/admin/messages/{gone['message_id']}")
    assert shown["locations"][0]["expunged_at"] is not None


def test_an_account_that_does_not_ask_is_asked_for_no_flags(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.dovecot.deliver(address, message("a"))
    tap = Wiretap(monkeypatch)
    account = system.add_account(address)
    system.poll_and_process(account)
    assert not [one for one in tap.commands if b"FLAGS" in one or b"MODSEQ" in one]
    assert flags() == {1: None}
    answer = system.api.simulate_get(f"{URL}/{account}/messages", params={"unseen": "true"})
    assert answer.status_code == 422
    # When it asks later, what is there is compared; that is no change
    changed = system.api.simulate_patch(f"{URL}/{account}", json={"sync_flags": True})
    assert changed.json["sync_flags"] is True
    with client(system, address) as other:
        other.add_flags([1], [imapclient.SEEN])
    poll(account_row(account).id, None)
    assert flags() == {1: ["\\Seen"]}
    assert told() == []


def test_lists_are_filtered_by_flags(system: System, address: str) -> None:
    system.dovecot.deliver_many(address, list(mail(12).values()))
    system.dovecot.deliver_many(address, [message("elsewhere")], folder="Other")
    with client(system, address) as other:
        other.add_flags([1, 2, 3, 4, 5], [imapclient.SEEN])
        other.add_flags([4, 5, 6], ["Project"])
    account = system.add_account(address, sync_flags=True)
    system.poll_and_process(account)

    def found(**query: Any) -> list[str]:
        page = system.get(f"{URL}/{account}/messages", **query)
        assert page["next"] is None or len(page["items"]) == query["limit"]
        return sorted(one["subject"].removeprefix("number ") for one in page["items"])

    assert found(unseen="true") == sorted(["10", "11", "12", "6", "7", "8", "9", "elsewhere"])
    assert found(unseen="false") == ["1", "2", "3", "4", "5"]
    assert found(flag="project") == ["4", "5", "6"]
    assert found(flag="PROJECT", unseen="true") == ["6"]
    assert found(flag="\\Seen", folder="INBOX") == ["1", "2", "3", "4", "5"]
    assert found(unseen="true", folder="Other") == ["elsewhere"]
    assert found(flag="nothing") == []
    shown = {one["subject"]: one["flags"] for one in system.messages(account)}
    assert shown["number 5"] == ["\\Seen", "Project"]
    assert (shown["number 6"], shown["number 7"]) == (["Project"], [])
    assert found(flag="project", status="failed") == []
    assert found(flag="project", status="processed") == ["4", "5", "6"]
    pages, cursor = [], {}
    while True:
        page = system.get(f"{URL}/{account}/messages", unseen="true", limit=3, **cursor)
        pages += [one["id"] for one in page["items"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert len(pages) == len(set(pages)) == 8
    # What has left the server is found by no flag
    with client(system, address) as other:
        other.delete_messages([4])
        other.expunge()
    poll(account_row(account).id, None)
    assert found(flag="project") == ["5", "6"]


def test_search_asks_for_flags_and_labels(system: System, address: str) -> None:
    system.dovecot.deliver_many(address, list(mail(5).values()))
    with client(system, address) as other:
        other.add_flags([1, 2, 3], [imapclient.SEEN])
        other.add_flags([3, 4], ["Project", imapclient.FLAGGED])
    account = system.add_account(address, sync_flags=True)
    system.poll_and_process(account)
    # Dovecot has no labels of Gmail's
    labels = ("Two words", "Été")
    with database.transaction():
        EmailLocation.update(labels=labels).where(EmailLocation.uid == 5).execute()
        inbox = EmailFolder.get(EmailFolder.name == "INBOX")
        flag_rows.index(inbox.account_id, inbox, {5: ((), labels)})

    def found(q: str, **more: Any) -> list[int]:
        items = system.get("/admin/search", q=q, **more)["items"]
        return sorted(int(one["subject"].removeprefix("number ")) for one in items)

    for more in ({}, {"sort": "date"}, {"account": account}):
        assert found("is:unread", **more) == [4, 5]
        assert found("is:read number", **more) == [1, 2, 3]
        assert found("is:flagged is:unread", **more) == [4]
        assert found("-is:flagged", **more) == [1, 2, 5]
        assert found("label:project", **more) == [3, 4]
        assert found('label:"TWO words"', **more) == [5]
        assert found("label:été", **more) == [5]
        assert found("-label:project -is:read", **more) == [5]
        assert found("is:answered", **more) == []


def test_a_rebuilt_folder_has_its_flags_again(scripted: System) -> None:
    with ScriptedImap(messages=mail(5), capabilities=CONDSTORE) as server:
        server.inbox.modseq, server.inbox.marks = 9, {2: b"\\Seen"}
        account = polled(polled(add(server, sync_flags=True)))
        assert flags()[2] == ["\\Seen"]
        server.uidvalidity = 7
        account = polled(polled(account))
        assert flags() == {1: [], 2: ["\\Seen"], 3: [], 4: [], 5: []}
        server.uidvalidity = 1
        server.inbox.marks = {3: b"\\Seen"}
        polled(polled(account))
    assert flags() == {1: [], 2: [], 3: ["\\Seen"], 4: [], 5: []}


# --- servers that count no changes, or count them wrong


def test_without_changes_a_bounded_part_is_compared_newest_first(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "WINDOW", 10)
    monkeypatch.setattr(following, "ENDLESS_BUDGET", 20)
    with ScriptedImap(messages=mail(50)) as server:
        account = polled(add(server, sync_flags=True))
        for _ in range(3):
            account = polled(account)
        assert folder().flags_cursor is None
        # When the flags of the newest, one in the middle and the oldest change
        server.inbox.marks = {50: b"\\Seen", 25: b"\\Seen", 1: b"\\Seen"}
        looks = []
        for _ in range(3):
            before = len(server.commands)
            account = polled(account)
            looks.append([uid for uid, marks in flags().items() if marks])
            # Then no poll asks for more than its share
            assert len(asked(server, before)) <= 2
        assert looks == [[50], [25, 50], [1, 25, 50]]
    assert len(told()) == 3


def test_folders_take_turns_where_nothing_tells_of_changes(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "FOLDERS", 2)
    with ScriptedImap(messages=mail(2)) as server:
        for number in range(6):
            raw = message(f"in folder {number}")
            server.folders[b"F%d" % number] = Mailbox({1: raw})
        account = polled(add(server, sync_flags=True))
        for mailbox in server.folders.values():
            mailbox.marks = {1: b"\\Flagged"}
        for _ in range(5):
            account = polled(account)
        assert all(flags(f"F{number}") == {1: ["\\Flagged"]} for number in range(6))


def test_a_large_folder_does_not_keep_the_others_waiting(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "WINDOW", 10)
    monkeypatch.setattr(following, "ENDLESS_BUDGET", 10)
    with ScriptedImap(messages=mail(100)) as server:
        server.folders[b"Small"] = Mailbox({1: message("in the small one")})
        account = polled(add(server, sync_flags=True))
        server.folders[b"Small"].marks = {1: b"\\Flagged"}
        for _ in range(3):
            account = polled(account)
    assert flags("Small") == {1: ["\\Flagged"]}


def follow(server: ScriptedImap, polls: int = 2) -> EmailAccount:
    """An account whose folder's flags are known as of the server's number of changes."""
    account = add(server, sync_flags=True)
    for _ in range(polls):
        account = polled(account)
    return account


def change(server: ScriptedImap, uid: int, marks: bytes) -> None:
    """Change flags as an honest server does."""
    server.inbox.marks[uid] = marks
    server.inbox.modseq = (server.inbox.modseq or 0) + 1
    server.inbox.modseqs[uid] = server.inbox.modseq


def test_a_server_with_changes_is_asked_for_those(scripted: System) -> None:
    with ScriptedImap(messages=mail(20), capabilities=CONDSTORE) as server:
        server.inbox.modseq = 100
        account = follow(server)
        before = len(server.commands)
        account = polled(account)
        assert asked(server, before) == []
        assert "EXAMINE" not in " ".join(server.commands[before:])
        change(server, 7, b"\\Seen $Label1")
        polled(account)
        assert asked(server, before) == ["UID FETCH 1:20 (UID FLAGS) (CHANGEDSINCE 100)"]
    assert flags()[7] == ["\\Seen", "$Label1"]
    assert folder().modseq == 101


@pytest.mark.parametrize("modseq", [None, 1])
def test_a_server_whose_number_says_nothing_is_compared(
    scripted: System, modseq: int | None
) -> None:
    with ScriptedImap(messages=mail(5), capabilities=CONDSTORE) as server:
        server.inbox.modseq = modseq
        account = follow(server)
        server.inbox.marks = {3: b"\\Seen"}
        polled(account)
    assert flags()[3] == ["\\Seen"]


def test_a_number_that_goes_back_has_everything_compared(scripted: System) -> None:
    with ScriptedImap(messages=mail(5), capabilities=CONDSTORE) as server:
        server.inbox.modseq = 100
        account = follow(server)
        server.inbox.modseq, server.inbox.marks = 50, {3: b"\\Seen"}
        account = polled(account)
        assert flags()[3] == ["\\Seen"]
        assert folder().modseq == 50
        change(server, 4, b"\\Seen")
        polled(account)
    assert flags()[4] == ["\\Seen"]


def test_a_number_that_new_mail_does_not_change_is_not_believed(scripted: System) -> None:
    with ScriptedImap(messages=mail(5), capabilities=CONDSTORE) as server:
        server.inbox.modseq = 100
        account = follow(server)
        server.messages[6] = message("number 6")
        account = polled(account)
        assert folder().modseq == UNTRUSTED
        server.inbox.marks = {3: b"\\Seen"}
        polled(account)
    assert flags()[3] == ["\\Seen"]
    assert folder().complete


def test_a_number_that_stands_still_is_found_out_within_a_week(scripted: System) -> None:
    with ScriptedImap(messages=mail(5), capabilities=CONDSTORE) as server:
        server.inbox.modseq = 100
        account = follow(server)
        server.inbox.marks = {3: b"\\Seen"}
        account = polled(account)
        assert flags()[3] == []
        with database.transaction():
            EmailFolder.update(flags_checked_at=database.now() - timedelta(days=7)).execute()
        polled(account)
    assert flags()[3] == ["\\Seen"]


def test_a_number_missing_after_an_expunge_loses_nothing(scripted: System) -> None:
    with ScriptedImap(messages=mail(5), capabilities=CONDSTORE) as server:
        server.inbox.modseq = 100
        account = follow(server)
        del server.messages[2]
        server.inbox.modseq = None
        server.inbox.marks = {3: b"\\Seen"}
        account = polled(account)
        assert flags() == {1: [], 3: ["\\Seen"], 4: [], 5: []}
        server.inbox.modseq = 120
        account = polled(account)
        change(server, 4, b"\\Flagged")
        polled(account)
    assert flags()[4] == ["\\Flagged"]
    assert folder().complete


def test_what_is_said_to_have_vanished_is_asked_for(scripted: System) -> None:
    with ScriptedImap(messages=mail(6), capabilities=QRESYNC) as server:
        server.inbox.modseq = 100
        account = follow(server)
        # Given a removal, and a server that names others too: one still there, none of ours
        del server.messages[2]
        server.inbox.vanished = b"2:3,9,4000000000:4294967295,x,7:"
        server.inbox.modseq = 101
        account = polled(account)
        assert "ENABLE QRESYNC" in server.commands
        assert sorted(flags()) == [1, 3, 4, 5, 6]
        assert folder().complete
        (gone,) = told("message.expunged")
        # And one that names everything
        server.inbox.vanished, server.inbox.modseq = b"1:*,1:4294967295", 102
        polled(account)
    assert sorted(flags()) == [1, 3, 4, 5, 6]
    assert told("message.expunged") == [gone]


@pytest.mark.parametrize(
    ("pattern", "answer"),
    [
        ("UID FETCH .*CHANGEDSINCE", b"{tag} BAD no such modifier\r\n"),
        ("UID FETCH .*CHANGEDSINCE", b"{tag} NO [UNAVAILABLE] later\r\n"),
        ("LIST .*HIGHESTMODSEQ", b"{tag} BAD unknown item\r\n"),
        ("ENABLE", b"{tag} BAD what\r\n"),
        (r"UID FETCH \S+ \(UID FLAGS\)", b"{tag} NO not now\r\n"),
        (r"UID FETCH \S+ \(UID FLAGS\)", b"* 1 FETCH (UID 1)\r\n{tag} OK done\r\n"),
    ],
)
def test_a_server_that_refuses_to_tell_is_polled_all_the_same(
    scripted: System, pattern: str, answer: bytes
) -> None:
    with ScriptedImap(messages=mail(3), capabilities=QRESYNC) as server:
        server.inbox.modseq = 100
        account = follow(server)
        server.rules = [Rule(pattern, answer)]
        change(server, 2, b"\\Seen")
        server.messages[4] = message("number 4")
        for _ in range(2):
            account = polled(account)
        assert account.last_error is None
        assert account.failures == 0
        assert folder().last_error is None
        assert len(stored()) == 4
        assert folder().complete
        server.rules = []
        for _ in range(2):
            account = polled(account)
    assert flags()[2] == ["\\Seen"]


def test_hostile_flags_break_no_poll(scripted: System) -> None:
    many = b" ".join(b"k%05d" % number for number in range(20_000))
    with ScriptedImap(messages=mail(6), capabilities=CONDSTORE) as server:
        server.inbox.modseq = 100
        server.inbox.marks = {
            1: many,
            2: b"x" * 100_000,
            3: b"\\Seen a\x1bb \xff\xfe \xc2\x85 \x7f ok",
            4: b'NIL (a b) "q q" \\SEEN \\seen \\Recent \\*',
            5: "Wichtig Prüfen".encode(),
        }
        account = follow(server)
        assert account.last_error is None
        assert len(flags()[1] or []) == 64
        assert flags()[2] == []
        assert flags()[3] == ["\\Seen", "ok"]
        assert flags()[4] == ["\\Seen", "q q"]
        assert flags()[5] == ["Prüfen", "Wichtig"]
        # The same flags once more are no change
        server.inbox.modseq = 101
        server.inbox.modseqs = dict.fromkeys(range(1, 7), 101)
        polled(account)
    assert told() == []


def test_flags_that_are_longer_in_lower_case_are_found(
    system: System, address: str, tmp_path: Path
) -> None:
    account = add_archive(system, address)
    flag, label = "İ" * 95, "İ" * 30
    path = tmp_path / "one.eml"
    path.write_bytes(message("one"))
    digest = hashlib.sha256(message("one")).hexdigest()
    for told in ({"labels": [label]}, {"flags": [flag], "labels": [label]}):
        line = {"sha256": digest, "folders": [f"of {len(told)}"], **told}
        beside = tmp_path / "one.eml.manifest.jsonl"
        beside.write_text(json.dumps(line))
        intake.run(account_row(account), [path])
        process(system, account)
        hits = system.get("/admin/search", q=f"label:{label}", account=account)["items"]
        assert len(hits) == 1
    assert len(system.get("/admin/search", q=f"label:{flag}", account=account)["items"]) == 1
    assert [one.as_line() for one in fsck.check(None, Tally(), offline=True)] == []


def test_labels_of_gmail_are_followed(scripted: System) -> None:
    capabilities = CONDSTORE + b" X-GM-EXT-1"
    with ScriptedImap(messages=mail(2), capabilities=capabilities) as server:
        server.inbox.modseq = 100
        server.inbox.labels = {1: b'"\\\\Inbox" Work "Two words" "&AOk-t&AOk-"'}
        account = follow(server)
        server.inbox.labels[1] = b'"\\\\Inbox" Home "Two words"'
        change(server, 1, b"")
        polled(account)
    with database.connected():
        place = EmailLocation.get(EmailLocation.uid == 1)
    assert place.labels == ["\\Inbox", "Home", "Two words"]
    (changed,) = told()
    process_message.fn(place.message_id)
    for label, hits in {"home": 1, '"two WORDS"': 1, "work": 0, "été": 0}.items():
        found = scripted.get("/admin/search", q=f"label:{label}")["items"]
        assert len(found) == hits, label
    assert [one.as_line() for one in fsck.check(None, Tally(), offline=True)] == []
    assert changed["data"]["labels_added"] == ["Home"]
    assert changed["data"]["labels_removed"] == ["Work", "été"]


def test_the_index_of_flags_is_checked_and_mended(scripted: System) -> None:
    with ScriptedImap(messages=mail(3), capabilities=CONDSTORE) as server:
        server.inbox.modseq, server.inbox.marks = 100, {2: b"\\Seen"}
        account = follow(server)
        with database.transaction():
            EmailFlag.delete().where(EmailFlag.flag == "\\seen").execute()
        found = list(fsck.check(None, Tally(), offline=True))
        assert [one.kind for one in found] == [Kind.FLAGS]
        list(fsck.check(None, Tally(), offline=True, repair=True))
        polled(account)
    assert flags()[2] == ["\\Seen"]
    assert list(fsck.check(None, Tally(), offline=True)) == []


def test_another_mailbox_behind_the_account_brings_its_own_flags(scripted: System) -> None:
    with ScriptedImap(messages=mail(3), capabilities=CONDSTORE) as server:
        server.inbox.modseq, server.inbox.marks = 100, {2: b"\\Seen"}
        account = follow(server)
        account = accounts.change(account, {"username": "other@example.org"}, test=False)
        with database.connected():
            assert EmailFlag.select().count() == 0
        server.inbox.marks = {3: b"\\Seen"}
        polled(polled(account))
    with database.connected():
        seen = EmailFlag.select().where(EmailFlag.flag == "\\seen")
        assert [row.location.uid for row in seen] == [3]
