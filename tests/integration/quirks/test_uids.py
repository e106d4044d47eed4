"""UIDs, UIDVALIDITY, UIDNEXT and lists that are late, cut, doubled or wrong."""

from datetime import UTC, datetime

import pytest

from mailpoll import accounts, database
from mailpoll.models import EmailAccount, EmailFolder
from mailpoll.settings import settings
from tests.integration.scripted import add, expect, folder, places, polled, stored, verdicts
from tests.integration.system import System, message
from tests.servers.scripted_imap import CLOSE, Rule, ScriptedImap

DONE = b"{tag} OK done\r\n"


def mail(*uids: int) -> dict[int, bytes]:
    return {uid: message(f"number {uid}") for uid in uids}


def reconciled(account: EmailAccount) -> EmailAccount:
    """The account after a poll that compared the whole lists."""
    with database.transaction():
        EmailFolder.update(reconciled_at=None).execute()
    return polled(account)


# --- lists


def test_the_last_message_that_a_range_without_end_gives_again_is_no_new_mail(
    scripted: System,
) -> None:
    with ScriptedImap(messages=mail(1, 2)) as server:
        server.inbox.next_uid = 10  # so that the range begins above every message
        account = polled(add(server))
        server.inbox.next_uid = 11
        server.rules = [Rule(r"UID FETCH \d+:\* ", b"* 2 FETCH (UID 2)\r\n" + DONE)]
        polled(account)
        expect(server)


@pytest.mark.parametrize("capabilities", [b"IMAP4rev1", b"IMAP4rev1 ESEARCH LIST-STATUS UIDPLUS"])
def test_a_message_that_appears_late_below_the_newest_is_found_at_once(
    scripted: System, capabilities: bytes
) -> None:
    with ScriptedImap(messages=mail(1, 2, 100), capabilities=capabilities) as server:
        account = polled(add(server))
        server.messages[50] = message("late")
        polled(account)
        expect(server)
        assert folder().complete


def test_a_message_that_appears_late_far_below_is_found_by_the_whole_comparison(
    scripted: System,
) -> None:
    # Given a mailbox whose newest 500 UIDs do not reach down to the late one
    with ScriptedImap(messages=mail(1, *range(700, 720), 1400)) as server:
        account = polled(add(server))
        assert folder().complete
        server.messages[5] = message("late")
        account = polled(account)
        # Then the numbers do not add up, which is seen in the same poll
        proof = folder().proof
        assert proof["server"] == 23
        account = reconciled(account)
        expect(server)
        assert folder().complete


def test_a_message_that_is_left_out_of_a_list_once_is_found_by_the_next_poll(
    scripted: System,
) -> None:
    with ScriptedImap(messages=mail(1, 2, 3)) as server:
        account = polled(add(server))
        server.messages[4] = message("left out once")
        server.inbox.hidden = {4}
        account = polled(account)
        assert places().keys() == {("INBOX", 1, uid) for uid in (1, 2, 3)}
        assert folder().proof["withheld"] == 1
        server.inbox.hidden = set()
        server.messages[5] = message("next")
        polled(account)
        expect(server)


def test_messages_that_the_server_counts_but_never_lists_are_shown_as_withheld(
    scripted: System,
) -> None:
    with ScriptedImap(messages=mail(*range(1, 21))) as server:
        server.inbox.hidden = {3, 4}
        account = polled(add(server))
        proof = folder().proof
        assert (proof["server"], proof["stored"], proof["withheld"]) == (20, 18, 2)
        # And what is withheld does not count as gone, nor raises an alarm at each poll
        for _ in range(3):
            account = polled(account)
        assert folder().proof == proof
        assert folder().complete
        server.inbox.hidden = set()
        reconciled(account)
        expect(server)


def test_uids_in_any_order_and_doubled_are_stored_once(scripted: System) -> None:
    with ScriptedImap(messages=mail(3, 9, 70, 71, 400)) as server:

        def shuffled() -> bytes:
            lines = server.answer(server.commands[-1]).splitlines(keepends=True)
            return b"".join([*reversed(lines[:-1]), *lines])

        server.rules = [Rule("UID FETCH .*SIZE", shuffled), Rule(r"UID FETCH .*\(UID\)", shuffled)]
        polled(add(server))
        expect(server)


def test_a_cut_esearch_answer_is_not_believed(scripted: System) -> None:
    # Given a server whose ESEARCH stops at 1,000 and that counts more
    with ScriptedImap(messages=mail(*range(1, 1_201)), capabilities=b"IMAP4rev1 ESEARCH") as server:
        server.rules = [Rule("UID SEARCH", b'* ESEARCH (TAG "{tag}") UID ALL 1:1000\r\n' + DONE)]
        account = polled(add(server))
        account = reconciled(account)
        # Then nothing counts as expunged
        proof = folder().proof
        assert (proof["stored"], proof["expunged"], proof["withheld"]) == (1_200, 0, 0)
        expect(server)


def test_uid_sets_are_short_and_ascending(scripted: System) -> None:
    # Every third UID, so that no two are neighbours
    with ScriptedImap(messages=mail(*range(3, 3_000, 3))) as server:
        polled(add(server))
        expect(server)
    assert max(map(len, server.commands)) < 1_000
    sets = [command.split()[2] for command in server.commands if command.startswith("UID FETCH")]
    for uid_set in sets:
        firsts = [int(item.partition(":")[0]) for item in uid_set.split(",") if item != "*"]
        assert firsts == sorted(firsts)


def test_a_limit_on_messages_for_each_command_is_worked_around(scripted: System) -> None:
    # Given a server that answers for the newest 100 of a range only (RFC 9738)
    with ScriptedImap(
        messages=mail(*range(1, 351)), capabilities=b"IMAP4rev1 MESSAGELIMIT=100"
    ) as server:

        def limited() -> bytes:
            lines = server.answer(server.commands[-1]).splitlines(keepends=True)[:-1]
            if len(lines) <= 100:
                return b"".join(lines) + DONE
            lowest = lines[-100].split(b"UID ")[1].split(b" ")[0].rstrip(b")\r\n")
            code = b"{tag} OK [MESSAGELIMIT 100 %b] partial\r\n" % lowest
            return b"".join(lines[-100:]) + code

        server.rules = [Rule("UID FETCH .*SIZE", limited), Rule(r"UID FETCH .*\(UID\)", limited)]
        account = polled(add(server))
        expect(server)
        assert folder().complete
        reconciled(account)
        assert folder().complete


# --- UIDNEXT


@pytest.mark.parametrize("uidnext", [None, 0, 1, 3, 4_000_000_000])
def test_a_uidnext_that_is_missing_or_wrong_loses_nothing(
    scripted: System, uidnext: int | None
) -> None:
    with ScriptedImap(messages=mail(5, 9)) as server:
        server.inbox.next_uid = uidnext
        if uidnext is None:
            bare = b"* %d EXISTS\r\n* OK [UIDVALIDITY 1] ok\r\n" + DONE
            server.rules = [
                Rule("EXAMINE", lambda: bare % len(server.messages)),
                Rule("STATUS", b'* STATUS "INBOX" ()\r\n' + DONE),
            ]
        account = polled(add(server))
        expect(server)
        server.messages |= mail(12, 13)
        account = polled(account)
        expect(server)
        assert account.last_error is None


def test_a_uidnext_far_ahead_of_the_last_message_is_no_false_alarm(scripted: System) -> None:
    with ScriptedImap(messages=mail(1, 2, 3)) as server:
        server.inbox.next_uid = 420_000
        account = polled(add(server))
        before = len(server.commands)
        for _ in range(5):
            account = polled(account)
        assert folder().complete
        # And a poll without news does not even open the folder
        assert not any(c.startswith("EXAMINE") for c in server.commands[before:])


# --- UIDVALIDITY


def test_a_uidvalidity_that_changes_and_comes_back_stores_nothing_twice(scripted: System) -> None:
    mailbox = mail(1, 2, 3)
    with ScriptedImap(messages=dict(mailbox)) as server:
        account = polled(add(server))
        for validity in (2, 1, 2):
            server.uidvalidity = validity
            account = polled(account)
            assert len(stored()) == 3
            assert folder().proof["stored"] == 3
            assert folder().complete
        # The places of both are kept, and new mail goes on in the one that is valid
        assert {key[1] for key in places()} == {1, 2}
        server.messages[4] = message("new")
        polled(account)
        assert ("INBOX", 2, 4) in places()
        assert len(stored()) == 4


def test_a_uidvalidity_that_changes_during_a_poll_keeps_the_places_apart(scripted: System) -> None:
    with ScriptedImap(messages=mail(1, 2, 3)) as server:

        def change() -> bytes:
            server.uidvalidity = 7
            return CLOSE

        server.rules = [Rule(r"UID FETCH .*BODY", change, times=1)]
        polled(add(server))
        expect(server)
        assert {key[1] for key in places()} == {7}


def test_a_server_without_uidvalidity_is_polled_all_the_same(scripted: System) -> None:
    with ScriptedImap(messages=mail(1, 2)) as server:
        opened = b"* %d EXISTS\r\n* OK [UIDNEXT %d] ok\r\n" + DONE
        status = b"* STATUS INBOX (MESSAGES %d UIDNEXT %d)\r\n" + DONE
        server.rules = [
            Rule("EXAMINE", lambda: opened % (len(server.messages), server.uidnext)),
            Rule("STATUS", lambda: status % (len(server.messages), server.uidnext)),
        ]
        account = polled(add(server))
        server.messages[3] = message("new")
        polled(account)
    assert sorted(stored()) == sorted(server.messages.values())
    assert folder().complete


def test_a_uidvalidity_that_changes_all_the_time_ends_in_words_and_not_in_a_download_loop(
    scripted: System,
) -> None:
    with ScriptedImap(messages=mail(1, 2)) as server:
        account = add(server)
        for validity in range(1, 12):
            server.uidvalidity = validity
            account = polled(account)
        bodies = sum("BODY.PEEK[]" in command for command in server.commands)
        assert bodies <= 6
        assert "UIDVALIDITY" in folder().last_error
        assert len(stored()) == 2
        figures = scripted.get(f"/admin/email-accounts/{account.uuid}/stats")
        assert "UIDVALIDITY" in figures["folders"][0]["last_error"]


def test_uids_that_name_other_mail_without_a_new_uidvalidity_are_noticed(scripted: System) -> None:
    # Given a server whose UIDs are positions
    with ScriptedImap(messages={1: message("a"), 2: message("bb"), 3: message("ccc")}) as server:
        server.inbox.dates = {uid: f"0{uid}-Nov-2026 10:00:00 +0000" for uid in (1, 2, 3)}
        account = polled(add(server))
        # When one is inserted in the middle, so that the others move up
        server.messages[4] = server.messages[3]
        server.messages[3] = message("inserted in the middle")
        server.inbox.dates = {1: "01", 2: "02", 3: "09", 4: "03"}
        server.inbox.dates = {
            uid: f"{day}-Nov-2026 10:00:00 +0000" for uid, day in server.inbox.dates.items()
        }
        polled(account)
        # Then it is stored, and what was there is not stored again
        assert sorted(stored()) == sorted(server.messages.values())
        assert folder().generation == 1


def test_what_leaves_the_server_is_kept_and_counted(scripted: System) -> None:
    with ScriptedImap(messages=mail(*range(1, 11))) as server:
        account = polled(add(server))
        for uid in (2, 5, 10):
            del server.messages[uid]
        reconciled(account)
        proof = folder().proof
        assert (proof["server"], proof["stored"], proof["expunged"]) == (7, 7, 3)
        assert folder().complete
        assert len(stored()) == 10
        # And when one comes back, it is no new message
        server.messages[5] = mail(5)[5]
        reconciled(account)
        assert folder().proof["stored"] == 8
        assert len(stored()) == 10


def test_mail_before_the_date_is_left_out_and_accounted_for(scripted: System) -> None:
    with ScriptedImap(messages=mail(*range(1, 9))) as server:
        server.inbox.dates = {uid: f"0{uid}-Nov-2026 10:00:00 +0000" for uid in range(1, 9)}
        account = polled(add(server, import_since=datetime(2026, 11, 5, tzinfo=UTC)))
        expect(server, 1, 2, 3, 4)
        proof = folder().proof
        assert (proof["stored"], proof["left_out"], proof["missing"]) == (4, 4, 0)
        assert folder().complete
        del server.messages[2]
        reconciled(account)
        assert folder().proof["left_out"] == 3
        assert folder().complete


def test_a_large_folder_is_imported_whole_in_slices(scripted: System) -> None:
    with ScriptedImap(messages=mail(*range(1, 2_501)), capabilities=b"IMAP4rev1 ESEARCH") as server:
        account = add(server)
        scripted.post(f"/admin/email-accounts/{account.uuid}/poll", 202)
        account = polled(account)
        assert account.imported_at is not None
        expect(server)
        assert folder().complete


def test_three_hundred_thousand_messages_are_listed_and_compared(scripted: System) -> None:
    # Given a folder of which all but the newest are older than the account wants
    raw = message("old")
    with ScriptedImap(messages=dict.fromkeys(range(1, 300_001), raw)) as server:
        server.messages[300_001] = message("new")
        server.inbox.dates = {300_001: "24-Nov-2026 10:00:00 +0000"}
        account = add(server, import_since=datetime(2026, 11, 24, tzinfo=UTC))
        for _ in range(20):
            account = polled(account)
            if account.imported_at:
                break
        account = reconciled(account)
    proof = folder().proof
    assert (proof["server"], proof["stored"], proof["left_out"]) == (300_001, 1, 300_000)
    assert folder().complete
    assert stored() == [server.messages[300_001]]


def test_another_mailbox_with_the_same_numbers_is_read_from_its_beginning(scripted: System) -> None:
    # Given an account that is polled, with a UID that could not be fetched
    with ScriptedImap(messages=mail(*range(1, 11)), capabilities=b"IMAP4rev1 OBJECTID") as server:
        account = polled(add(server))
        server.messages[11] = message("broken")
        server.rules = [Rule("UID FETCH .*PEEK", b"{tag} NO [UNAVAILABLE] broken\r\n")]
        account = polled(account)
        assert verdicts() == {11: "waiting"}
        # When its user name becomes that of another mailbox, with the same UIDVALIDITY and UIDs
        server.messages = {uid: message(f"of another, {uid}") for uid in range(1, 6)}
        server.rules = []
        account = accounts.change(account, {"username": "another"}, test=False)
        for _ in range(2):
            account = polled(account)
        # Then all its mail comes, and what was stored stays
        assert len(stored()) == 10 + 5
        assert (folder().messages, folder().complete) == (5, True)
        assert verdicts() == {}


def test_a_change_that_moves_no_mailbox_reads_nothing_again(scripted: System) -> None:
    with ScriptedImap(messages=mail(1, 2, 3)) as server:
        account = polled(add(server))
        window = folder().generation, folder().high
        same = {"host": account.host, "username": account.username, "password": "another"}
        polled(accounts.change(account, same, test=False))
        assert (folder().generation, folder().high) == window


@pytest.mark.parametrize(
    "crowd",
    [range(1, 220_001), range(40_000_000, 40_220_000)],
    ids=["gap above", "gap below"],
)
def test_a_crowd_beside_a_gap_is_listed_in_pieces(
    scripted: System, crowd: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The scripted server takes its time for so many
    monkeypatch.setenv("MAILPOLL_IMAP_READ_TIMEOUT", "30")
    settings.cache_clear()
    # Given 220,000 messages on one side of a wide gap, all older than the account wants
    with ScriptedImap(messages=dict.fromkeys(crowd, message("old"))) as server:
        server.messages[20_000_000] = message("old")
        server.messages[60_000_000] = message("new")
        server.inbox.dates = {60_000_000: "24-Nov-2026 10:00:00 +0000"}
        account = add(server, import_since=datetime(2026, 11, 24, tzinfo=UTC))
        # When it is imported and its whole list is compared
        for _ in range(20):
            account = polled(account)
            assert account.last_error is None
            if account.imported_at:
                break
        account = reconciled(account)
    # Then no answer was too long to be read
    assert account.last_error is None
    assert folder().proof["left_out"] == len(crowd) + 1
    assert folder().complete
