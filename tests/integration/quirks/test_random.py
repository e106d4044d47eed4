"""Random histories of a server that misbehaves: whatever happens, all mail arrives, once, exact.

Each seed is one history. A failing one is played again with its seed alone; more are played with
MAILPOLL_TEST_SEEDS=500.
"""

import hashlib
import os
import random
from collections.abc import Callable

import pytest

from mailpoll import database
from mailpoll.models import EmailAccount, EmailFolder
from tests.integration.scripted import add, places, polled, stored, try_again_now
from tests.integration.system import System, message
from tests.servers.scripted_imap import CLOSE, RESET, Mailbox, Rule, ScriptedImap

SEEDS = range(int(os.environ.get("MAILPOLL_TEST_SEEDS", "24")))
STEPS = 25
CAPABILITIES = (
    b"IMAP4rev1",
    b"IMAP4rev1 ESEARCH LIST-STATUS",
    b"IMAP4rev1 LIST-STATUS OBJECTID",
    b"IMAP4rev1 ESEARCH X-GM-EXT-1",
)


class History:
    """A server, an account, and what happens to them.

    Parameters:
      seed: of the one source of chance.
    """

    def __init__(self, server: ScriptedImap, seed: int) -> None:
        self.server = server
        self.chance = random.Random(seed)
        self.account = add(server)
        self.next_uid = {b"INBOX": 1}
        self.number = 0
        self.sent: list[bytes] = []
        self.used: dict[bytes, set[int]] = {}

    def step(self) -> None:
        actions: list[Callable[[], None]] = [
            *(self.poll, self.poll, self.deliver, self.deliver, self.deliver_late, self.expunge),
            *(self.hide, self.show, self.renumber, self.new_folder, self.drop_folder),
            *(self.cut_next, self.refuse_next, self.leave_one_out, self.forget_uidnext),
        ]
        self.chance.choice(actions)()

    def poll(self) -> None:
        try_again_now()
        self.account = polled(self.account)

    def names(self) -> list[bytes]:
        return [b"INBOX", *self.server.folders]

    def some_folder(self) -> tuple[bytes, Mailbox]:
        name = self.chance.choice(self.names())
        return name, self.server.mailbox(name)

    def new_message(self) -> bytes:
        if self.sent and self.chance.random() < 0.2:
            return self.chance.choice(self.sent)
        self.number += 1
        length = self.chance.choice((10, 100, 3_000, 25_000))
        self.sent.append(message(f"number {self.number}", "x" * length))
        return self.sent[-1]

    def deliver(self) -> None:
        name, mailbox = self.some_folder()
        for _ in range(self.chance.randint(1, 8)):
            uid = self.next_uid[name] + self.chance.choice((0, 0, 0, 3, 700))
            self.next_uid[name] = uid + 1
            mailbox.messages[uid] = self.new_message()

    def deliver_late(self) -> None:
        """Under a UID that was left free before."""
        name, mailbox = self.some_folder()
        free = sorted(set(range(1, self.next_uid[name])) - self.remember()[name])
        if free:
            mailbox.messages[self.chance.choice(free)] = self.new_message()

    def remember(self) -> dict[bytes, set[int]]:
        """UIDs that have ever named a message in a folder's current numbering."""
        for name in self.names():
            self.used.setdefault(name, set()).update(self.server.mailbox(name).messages)
        return self.used

    def expunge(self) -> None:
        _, mailbox = self.some_folder()
        self.remember()
        for uid in self.chance.sample(sorted(mailbox.messages), min(2, len(mailbox.messages))):
            del mailbox.messages[uid]

    def hide(self) -> None:
        _, mailbox = self.some_folder()
        mailbox.hidden |= set(
            self.chance.sample(sorted(mailbox.messages), len(mailbox.messages) // 4)
        )

    def show(self) -> None:
        self.some_folder()[1].hidden.clear()

    def renumber(self) -> None:
        """A new UIDVALIDITY, under which every message has a new UID."""
        name, mailbox = self.some_folder()
        validity = mailbox.uidvalidity + 1
        mailbox.uidvalidity = validity
        raws = list(mailbox.messages.values())
        mailbox.messages.clear()
        mailbox.messages.update(enumerate(raws, 1))
        mailbox.hidden.clear()
        if name == b"INBOX":
            self.server.uidvalidity = validity
        self.next_uid[name] = len(raws) + 1
        self.used[name] = set()

    def new_folder(self) -> None:
        name = b"folder %d" % len(self.next_uid)
        self.server.folders[name] = Mailbox(uidvalidity=self.chance.randint(1, 2**31))
        self.next_uid[name] = 1

    def drop_folder(self) -> None:
        if self.server.folders:
            name = self.chance.choice(list(self.server.folders))
            del self.server.folders[name]

    def cut_next(self) -> None:
        """The next answer with bodies ends somewhere, without a word or with a reset."""
        where, how = self.chance.random(), self.chance.choice((CLOSE, RESET))

        def cut() -> bytes:
            answer = self.server.answer(self.server.commands[-1], self.server.latest)
            return answer[: int(len(answer) * where)] + how

        self.server.rules = [Rule("UID FETCH .*BODY", cut, times=self.chance.randint(1, 3))]
        self.server._used.clear()

    def refuse_next(self) -> None:
        words = (b"NO [UNAVAILABLE] later", b"NO no", b"BAD what", b"NO [SERVERBUG] oops")
        answer = b"{tag} " + self.chance.choice(words) + b"\r\n"
        command = self.chance.choice(("UID FETCH", "EXAMINE", "LIST", "UID FETCH .*BODY"))
        self.server.rules = [Rule(command, answer, times=self.chance.randint(1, 2))]
        self.server._used.clear()

    def leave_one_out(self) -> None:
        """The next answers miss one of their lines."""

        def without_one() -> bytes:
            answer = self.server.answer(self.server.commands[-1], self.server.latest)
            lines = answer.splitlines(keepends=True)
            if len(lines) > 1:
                del lines[self.chance.randrange(len(lines) - 1)]
            return b"".join(lines)

        self.server.rules = [Rule(r"UID FETCH .*\(UID( RFC822|\))", without_one, times=2)]
        self.server._used.clear()

    def forget_uidnext(self) -> None:
        self.some_folder()[1].next_uid = self.chance.choice((None, None, 0, 1))

    def recover(self) -> None:
        """The server behaves from now on, and the whole lists are compared."""
        self.server.rules = []
        for name in self.names():
            self.server.mailbox(name).hidden.clear()
        for _ in range(6):
            with database.transaction():
                EmailFolder.update(reconciled_at=None, restarts=0).execute()
                EmailAccount.update(failures=0).execute()
            self.poll()


@pytest.mark.parametrize("seed", SEEDS)
def test_all_mail_arrives_once_and_exact(scripted: System, seed: int) -> None:
    with ScriptedImap(capabilities=CAPABILITIES[seed % len(CAPABILITIES)]) as server:
        history = History(server, seed)
        for _ in range(STEPS):
            history.step()
        history.recover()
        # Every message that is there has its place, and its bytes are stored
        wanted = {
            (name.decode(), server.mailbox(name).uidvalidity, uid): _digest(raw)
            for name in history.names()
            for uid, raw in server.mailbox(name).messages.items()
        }
        found = places()
        assert {key: found.get(key) for key in wanted} == wanted
        # Each content is stored once, exactly as one that was sent
        digests = [_digest(raw) for raw in stored()]
        assert len(digests) == len(set(digests))
        assert set(digests) <= {_digest(raw) for raw in history.sent}
        # And every folder is proved
        assert history.account.last_error is None
        with database.connected():
            rows = [row for row in EmailFolder.select() if row.gone_at is None]
        assert {row.wire_name for row in rows if not row.complete} == set()


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
