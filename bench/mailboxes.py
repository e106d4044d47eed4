"""The mailboxes that all contenders read: a Dovecot full of seeded mail, near or far away."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from imapclient import IMAPClient

from bench import corpus
from bench.contenders.contender import Server
from bench.proxy import DelayProxy
from tests.servers.dovecot import Dovecot


@dataclass(slots=True)
class Mailboxes:
    """A running Dovecot; ``sent`` are the SHA-256 of what lies in it, ``size`` its bytes."""

    dovecot: Dovecot
    users: list[str]
    sent: set[str] = field(default_factory=set)
    size: int = 0
    _occasions: int = 0

    @contextmanager
    def at(self, milliseconds: float) -> Iterator[tuple[Server, DelayProxy | None]]:
        """The server at a round trip of so many milliseconds; none is Dovecot itself."""
        with ExitStack() as stack:
            port, proxy = self.dovecot.imaps_port, None
            if milliseconds:
                proxy = stack.enter_context(DelayProxy(port, milliseconds / 1_000))
                port = proxy.port
            ca_file, password = self.dovecot.ca_file, self.dovecot.password
            yield Server("localhost", port, ca_file, self.users, password), proxy

    def fill(self, messages: int) -> None:
        """Deliver the corpus, and let Dovecot index it: no contender shall pay for that."""
        for number, user in enumerate(self.users):
            self.deliver(user, list(corpus.mailbox(number, messages)))
        for user in self.users:
            with self._login(user) as client:
                client.select_folder("INBOX")
                client.fetch(
                    client.search(), ["ENVELOPE", "BODYSTRUCTURE", "INTERNALDATE", "RFC822.SIZE"]
                )

    @contextmanager
    def news(self) -> Iterator[None]:
        """One new message in every mailbox, others each time; gone afterwards."""
        self._occasions += 1
        with self._only_now():
            for number, user in enumerate(self.users):
                self.deliver(user, [corpus.news(number, self._occasions)])
            yield

    @contextmanager
    def large(self, size: int) -> Iterator[None]:
        """A message with an attachment of ``size`` bytes in one mailbox; gone afterwards."""
        with self._only_now():
            self.deliver(random.Random(size).choice(self.users), [corpus.attached("large", size)])
            yield

    def deliver(self, user: str, mail: list[bytes]) -> None:
        """Put messages into a mailbox, to stay there."""
        self.dovecot.deliver_many(user, mail)
        self.sent |= {hashlib.sha256(raw).hexdigest() for raw in mail}
        self.size += sum(map(len, mail))

    @contextmanager
    def _only_now(self) -> Iterator[None]:
        sent, size = set(self.sent), self.size
        last = {user: self._last(user) for user in self.users}
        yield
        for user in self.users:
            with self._login(user) as client:
                client.select_folder("INBOX")
                if late := client.search(["UID", f"{last[user] + 1}:*"]):
                    client.delete_messages([uid for uid in late if uid > last[user]])
                    client.expunge()
        self.sent, self.size = sent, size

    def _last(self, user: str) -> int:
        with self._login(user) as client:
            return int(client.folder_status("INBOX", ["UIDNEXT"])[b"UIDNEXT"]) - 1

    @contextmanager
    def _login(self, user: str) -> Iterator[IMAPClient]:
        with IMAPClient("127.0.0.1", self.dovecot.imap_port, ssl=False, timeout=60) as client:
            client.login(user, self.dovecot.password)
            yield client


@contextmanager
def mailboxes(accounts: int, messages: int, directory: Path) -> Iterator[Mailboxes]:
    """So many mailboxes with so many messages each."""
    dovecot = Dovecot(directory)
    with dovecot:
        found = Mailboxes(dovecot, [f"user{number:05}@example.org" for number in range(accounts)])
        found.fill(messages)
        yield found
