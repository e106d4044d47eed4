"""What following flags costs in a poll of one large folder.

``python -m bench.flags [--messages 100000]``: a Dovecot with one folder of small messages, and
polls of it in this process: without flags, with flags and nothing changed, with one flag changed,
and as if the server counted no changes. Prints CPU, bytes received and commands of each.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from imapclient import SEEN, IMAPClient

from mailpoll import accounts, database
from mailpoll.actors.poll import poll
from mailpoll.imap.wire import Wire, WireIMAP4
from mailpoll.models import EmailAccount, EmailFolder
from mailpoll.sync import flags
from tests.integration.system import KEY, TOKEN, configured, message
from tests.servers.dovecot import Dovecot
from tests.servers.valkey import Valkey

USER = "large@bench.example.org"
#: Polls of which the cheapest is told.
ROUNDS = 5


class Meter:
    """Bytes received and commands sent since the last look."""

    def __init__(self) -> None:
        self.received = self.commands = 0
        send, receive = WireIMAP4.send, Wire._receive

        def sending(imap: WireIMAP4, data: Any) -> None:
            self.commands += 1
            send(imap, data)

        def receiving(wire: Wire, call: Any, length: Any) -> Any:
            got = receive(wire, call, length)
            self.received += length(got)
            return got

        WireIMAP4.send = sending  # type: ignore[method-assign]
        Wire._receive = receiving  # type: ignore[method-assign]


def measure(messages: int) -> None:
    with tempfile.TemporaryDirectory(prefix="mailpoll-flags-") as name, ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)
        dovecot, valkey = Dovecot(directory / "dovecot"), Valkey(directory / "valkey")
        for server in (dovecot, valkey):
            server.start()
            stack.callback(server.stop)
        say(f"delivering {messages:,} messages")
        dovecot.deliver_many(USER, (message(f"number {one}") for one in range(messages)))
        environ = {
            "MAILPOLL_DATA_DIR": str(directory / "data"),
            "MAILPOLL_SECRET_KEY": KEY,
            "MAILPOLL_API_TOKEN": TOKEN,
            "MAILPOLL_IMAP_ALLOWED_NETWORKS": "127.0.0.0/8",
            "MAILPOLL_IMAP_CA_FILE": str(dovecot.ca_file),
            "MAILPOLL_IMAP_PORTS": str(dovecot.imaps_port),
            "MAILPOLL_LOG_LEVEL": "error",
            "REDIS_URL": valkey.url,
        }
        with configured(environ):
            compare(dovecot)


def compare(dovecot: Dovecot) -> None:
    account = accounts.create(
        address=USER, password=dovecot.password, host="127.0.0.1", port=dovecot.imaps_port
    )
    say("importing")
    while not imported(account.id):
        poll(account.id, None)
    meter = Meter()
    row(meter, "no flags, unchanged", account.id)
    accounts.change(account, {"sync_flags": True}, test=False)
    say("comparing all flags once")
    while not known(account.id):
        poll(account.id, None)
    row(meter, "unchanged", account.id)
    row(meter, "one flag changed", account.id, lambda: turn(dovecot))
    flags._counted = lambda *_: None
    row(meter, "unchanged, no CONDSTORE", account.id)


def imported(account_id: int) -> bool:
    with database.connected():
        return EmailAccount.get_by_id(account_id).imported_at is not None


def known(account_id: int) -> bool:
    with database.connected():
        folder = EmailFolder.get(EmailFolder.account == account_id, EmailFolder.name == "INBOX")
        return bool(folder.modseq)


def turn(dovecot: Dovecot) -> None:
    """Change a flag as another client."""
    with IMAPClient("127.0.0.1", port=dovecot.imap_port, ssl=False) as other:
        other.login(USER, dovecot.password)
        other.select_folder("INBOX")
        seen = SEEN in other.get_flags([7])[7]
        change = other.remove_flags if seen else other.add_flags
        change([7], [SEEN])


def row(meter: Meter, what: str, account_id: int, before: Callable[[], None] = str) -> None:  # type: ignore[assignment]
    best: tuple[float, int, int] | None = None
    for _ in range(ROUNDS):
        before()
        meter.received = meter.commands = 0
        start = time.process_time()
        poll(account_id, None)
        cost = ((time.process_time() - start) * 1_000, meter.received, meter.commands)
        best = min(best or cost, cost)
    assert best is not None
    print(f"{what:<26}{best[0]:8.1f} ms CPU{best[1]:12,} bytes{best[2]:6} commands", flush=True)


def say(words: str) -> None:
    print(words, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    measure(parser.parse_args().messages)


if __name__ == "__main__":
    main()
