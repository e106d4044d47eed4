"""Who comes first: new mail before the import, new before old, and everybody in turn."""

import itertools
import re
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from mailpoll import accounts, actors, database
from mailpoll.actors import poll as poll_module
from mailpoll.actors.poll import poll
from mailpoll.models import EmailAccount, EmailRawMessage
from mailpoll.sync import ledger
from tests.integration.conftest import SETS, run_system
from tests.integration.queue_entries import entries, runs
from tests.integration.rows import account_row
from tests.integration.system import System, message, wait_until
from tests.servers.dovecot import Dovecot
from tests.servers.scripted_imap import Mailbox, Rule, ScriptedImap, pause

pytestmark = pytest.mark.queue

BATCH = 5


@pytest.fixture(params=list(SETS))
def system(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    """Both sets, with small batches."""
    variables = SETS[request.param](request, tmp_path)
    yield from run_system(variables, tmp_path, dovecot, MAILPOLL_BATCH_MESSAGES=str(BATCH))


@pytest.fixture
def sliced(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, scripted_port: int
) -> Iterator[System]:
    """The embedded set with short slices too, and a port for a server without TLS."""
    yield from run_system(
        SETS["embedded"](request, tmp_path),
        tmp_path,
        dovecot,
        MAILPOLL_IMAP_PORTS=f"{dovecot.imaps_port},{scripted_port}",
        MAILPOLL_IMAP_ALLOW_PLAIN="yes",
        MAILPOLL_BATCH_MESSAGES=str(BATCH),
        MAILPOLL_POLL_SLICE="1",
    )


def rows() -> list[EmailRawMessage]:
    with database.connected():
        return list(EmailRawMessage.select().order_by(EmailRawMessage.id))


def number(row: EmailRawMessage) -> int:
    found = re.search(r"number (\d+)", row.subject)
    assert found
    return int(found[1])


def someone_at(server: ScriptedImap) -> EmailAccount:
    """An account at a scripted server."""
    return accounts.create(
        address="someone@example.org",
        password="secret",
        host="127.0.0.1",
        port=server.port,
        security="plain",
        test=False,
    )


def waiting(system: System) -> int:
    """Messages of imports in the queue; an entry names those that were stored together."""
    return sum(len(entry.args[0]) for entry in entries(system, "import"))


def mail(*numbers: int) -> list[bytes]:
    return [message(f"number {n}") for n in numbers]


def test_the_first_import_brings_the_newest_mail_first(system: System, address: str) -> None:
    # Given a mailbox with old and new mail
    system.dovecot.deliver_many(address, mail(*range(23)))
    account = system.add_account(address)
    # When it is imported
    poll(account_row(account).id, None)
    system.work_until(lambda: all(row.status == "processed" for row in rows()))
    # Then it was stored batch by batch, and no message before a newer one of another batch
    stored = [number(row) for row in rows()]
    batches = [stored[start : start + BATCH] for start in range(0, len(stored), BATCH)]
    assert sorted(stored) == list(range(23))
    assert all(min(newer) > max(older) for newer, older in itertools.pairwise(batches))


def test_new_mail_and_the_import_are_processed_in_lanes_of_their_own(
    system: System, address: str
) -> None:
    # Given an import that waits to be processed
    system.dovecot.deliver_many(address, mail(*range(60)))
    account = system.add_account(address)
    poll(account_row(account).id, None)
    assert waiting(system) == 60
    assert entries(system, "process") == []
    # When new mail arrives
    system.dovecot.deliver_many(address, mail(*range(60, 63)))
    poll(account_row(account).id, None)
    # Then it has a lane of its own, with a higher priority (a lower number, in Dramatiq)
    assert len(entries(system, "process")) == 3
    assert waiting(system) == 60
    assert actors.process_message.priority < actors.import_messages.priority
    # And one thread that serves both is done with the new mail long before the import
    system.work_until(lambda: all(row.status == "processed" for row in rows()), threads=1)
    order = [number(row) for row in sorted(rows(), key=lambda row: row.processed_at)]
    assert max(order.index(new) for new in (60, 61, 62)) < 40


def test_a_big_import_goes_on_in_slices_between_which_others_have_their_turn(
    sliced: System, address: str, scripted_port: int
) -> None:
    # Given a big mailbox on a slow server, to which new mail comes during the import
    fetched: list[str] = []

    def slow() -> bytes:
        command = server.commands[-1]
        time.sleep(0.3)
        fetched.append(command)
        if len(fetched) == 2:
            server.messages[41] = message("number 41")
        return server.answer(command)

    rules = [Rule(r"UID FETCH .*BODY", slow)]
    old = {uid: message(f"number {uid}") for uid in range(1, 41)}
    with ScriptedImap(messages=old, rules=rules, port=scripted_port) as server:
        big = accounts.create(
            address=f"big-{address}",
            password="secret",
            host="127.0.0.1",
            port=server.port,
            security="plain",
            test=False,
        )
        actors.poll_account.send(big.id)
        # And a small one whose poll is behind it in the queue of a single thread
        sliced.dovecot.deliver_many(address, mail(100, 101))
        small = sliced.add_account(address)
        sliced.work_until(lambda: processed(43), threads=1)
    # Then the import went on on the queue for continuations
    assert runs(sliced, "continue_import") >= 2
    assert actors.continue_import.queue_name == "backfill"
    # And the small mailbox was served in between
    found = {number(row): row for row in rows()}
    assert found[100].account_id == account_row(small).id
    assert found[100].stored_at < found[1].stored_at
    # And so was the new mail, which is not taken for a part of the import
    assert found[41].stored_at < found[1].stored_at
    assert not found[41].imported
    assert found[41].processed_at < found[1].processed_at
    assert all(found[uid].imported for uid in range(1, 41))


def processed(count: int) -> bool:
    return sum(row.status == "processed" for row in rows()) == count


def logins(server: ScriptedImap) -> int:
    return sum(1 for command in server.commands if command.startswith("LOGIN"))


def test_an_import_has_one_continuation_however_long_it_waits(
    sliced: System, scripted_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an import that is longer than a slice, and a backfill queue that no poller comes to
    def slowly() -> bytes:
        return pause(600) + server.answer(server.commands[-1], server.latest)

    mails = {uid: message(f"number {uid}") for uid in range(1, 61)}
    with ScriptedImap(messages=mails, port=scripted_port) as server:
        server.rules = [Rule("UID FETCH .*PEEK", slowly)]
        account = someone_at(server)
        # When the account is polled some times before its next poll, which has its place in time
        place = database.now() + timedelta(hours=1)
        monkeypatch.setattr(EmailAccount, "following", lambda *_: place)
        for _ in range(3):
            poll(account.id, None)
        waiting = entries(sliced, "backfill")
        assert len(waiting) == 3
        before = logins(server)
        # Then only the latest continuation logs in when their turn comes
        for entry in waiting:
            actors.continue_import.fn(*entry.args)
        assert logins(server) == before + 1
        # And it leaves one of its own
        assert len(entries(sliced, "backfill")) == 4


def test_every_folder_is_reached_though_a_slice_is_too_short_for_all(
    sliced: System, scripted_port: int
) -> None:
    # Given folders that must be opened to see whether there is news, which takes its time
    names = [f"folder {letter}".encode() for letter in "abcdef"]

    def slowly() -> bytes:
        return pause(400) + server.answer(server.commands[-1], server.latest)

    with ScriptedImap(messages={1: message("inbox")}, port=scripted_port) as server:
        server.folders = {name: Mailbox({1: message(name.decode())}) for name in names}
        server.rules = [
            Rule("STATUS", b"{tag} NO not now\r\n"),
            Rule("EXAMINE", slowly),
        ]
        account = someone_at(server)
        # When it is polled often enough for all of them
        for _ in range(12):
            poll(account.id, None)
        # Then all their mail is there
        assert len(rows()) == 7


def test_a_batch_that_comes_slowly_keeps_the_lease(
    sliced: System, scripted_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a lease that is shorter than a batch takes to arrive
    for module in (ledger, poll_module):
        monkeypatch.setattr(module, "LEASE", 8)

    def slowly() -> bytes:
        lines = server.answer(server.commands[-1], server.latest).split(b"* ")
        return (pause(1_000) + b"* ").join(lines)

    with ScriptedImap(
        messages={uid: message(f"number {uid}") for uid in range(1, 11)}, port=scripted_port
    ) as server:
        server.rules = [Rule("UID FETCH .*PEEK", slowly)]
        account = someone_at(server)
        poller = threading.Thread(target=poll, args=(account.id, None))
        poller.start()
        # When another poller comes for the account until the first batch is stored
        wait_until(lambda: server.commands)
        while not rows() and poller.is_alive():
            assert EmailAccount.lease(account.id, None, 8) is None
            time.sleep(0.1)
        poller.join()
        # Then it came in vain
        assert rows()
