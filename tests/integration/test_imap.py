"""What goes over the wire: secured, read-only, and bounded in memory."""

import hashlib
import imaplib
import os
import re
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from mailpoll import accounts, database, runtime
from mailpoll.actors.poll import poll
from mailpoll.models import EmailAccount, EmailAttachment, EmailFolder, EmailRawMessage
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import account_row
from tests.integration.system import PASSWORD, System, message
from tests.servers.certificates import write_certificates
from tests.servers.dovecot import Dovecot
from tests.servers.process import HOST
from tests.servers.scripted_imap import Rule, ScriptedImap

URL = "/admin/email-accounts"


@pytest.fixture
def system(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, scripted_port: int
) -> Iterator[System]:
    """The embedded set, with a port for a server of the test's own."""
    ports = f"{dovecot.imap_port},{dovecot.imaps_port},{scripted_port}"
    variables = SETS["embedded"](request, tmp_path)
    yield from run_system(variables, tmp_path, dovecot, MAILPOLL_IMAP_PORTS=ports)


def polled(port: int, security: str, address: str = "someone@example.org") -> EmailAccount:
    """An account after its first poll."""
    account = accounts.create(
        address=address, password=PASSWORD, host=HOST, port=port, security=security, test=False
    )
    poll(account.id, None)
    with database.connected():
        return EmailAccount.get_by_id(account.id)


# --- secured


def test_mail_comes_over_starttls(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("secured"))
    account = polled(system.dovecot.imap_port, "starttls", address)
    assert account.last_error is None
    assert len(system.messages(account.uuid)) == 1


@pytest.mark.parametrize(
    "script",
    [
        {"capabilities": b"IMAP4rev1"},
        {
            "capabilities": b"IMAP4rev1 STARTTLS",
            "rules": [Rule("STARTTLS", b"{tag} NO not now\r\n")],
        },
        {"capabilities": b"IMAP4rev1 STARTTLS", "greeting": b"* PREAUTH welcome\r\n"},
    ],
    ids=["not offered", "refused", "left no room for"],
)
def test_without_starttls_nobody_logs_in(
    system: System, scripted_port: int, script: dict[str, Any]
) -> None:
    with ScriptedImap(port=scripted_port, **script) as server:
        account = polled(server.port, "starttls")
    assert account.last_error_kind == "tls_error"
    assert {command.split()[0].upper() for command in server.commands} <= {"CAPABILITY", "STARTTLS"}


def test_plain_connections_are_not_even_opened(system: System, scripted_port: int) -> None:
    with socket.create_server((HOST, scripted_port)) as listener:
        account = polled(scripted_port, "plain")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert account.last_error_kind == "tls_error"
    assert "MAILPOLL_IMAP_ALLOW_PLAIN" in account.last_error


class Impostor:
    """A server whose certificate nobody vouches for; notes all that it gets to read."""

    def __init__(self, port: int, directory: Path, *, starttls: bool) -> None:
        directory.mkdir()
        _, certificate, key = write_certificates(directory)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listener = socket.create_server((HOST, port))
        self._starttls = starttls
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.in_clear: list[bytes] = []
        self.secured: list[bytes] = []
        self.refused = ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(20)
            if self._starttls:
                self._speak_until_starttls(connection)
            try:
                with self._context.wrap_socket(connection, server_side=True) as secured:
                    secured.sendall(b"* OK ready\r\n")
                    self.secured.append(secured.recv(4_096))
            except ssl.SSLError as error:
                self.refused = str(error)

    def _speak_until_starttls(self, connection: socket.socket) -> None:
        connection.sendall(b"* OK ready\r\n")
        while not self.in_clear or b"STARTTLS" not in self.in_clear[-1].upper():
            line = connection.recv(4_096)
            self.in_clear.append(line)
            tag = line.split()[0]
            told = b"* CAPABILITY IMAP4rev1 STARTTLS\r\n" if b"CAPABILITY" in line.upper() else b""
            connection.sendall(told + tag + b" OK done\r\n")


@pytest.mark.parametrize("security", ["tls", "starttls"])
def test_a_server_that_nobody_vouches_for_is_told_nothing(
    system: System, scripted_port: int, tmp_path: Path, security: str
) -> None:
    starttls = security == "starttls"
    with Impostor(scripted_port, tmp_path / "impostor", starttls=starttls) as server:
        account = polled(scripted_port, security)
    assert account.last_error_kind == "tls_error"
    assert "certificate" in account.last_error
    assert "unknown ca" in server.refused
    assert server.secured == []
    verbs = [line.split()[1].upper() for line in server.in_clear]
    assert set(verbs) == ({b"CAPABILITY", b"STARTTLS"} if starttls else set())


ADDED = (
    b'* CAPABILITY IMAP4rev1 LOGINDISABLED\r\n* LIST () "/" EVIL\r\n* OK [UIDVALIDITY 666] ok\r\n'
)


@pytest.mark.parametrize(
    ("before", "after"), [(ADDED, b""), (b"", ADDED + b"* BYE and good night\r\n")]
)
def test_what_comes_before_tls_is_not_believed(
    system: System, scripted_port: int, before: bytes, after: bytes
) -> None:
    # Given somebody on the way who adds answers of their own before or after the one to STARTTLS,
    # as in CVE-2021-38371, and then lets the client talk to a server that it trusts
    with Meddler(scripted_port, system.dovecot.imap_port, before, after):
        account = polled(scripted_port, "starttls", "meddled@example.org")
    # Then what was added is forgotten
    assert account.last_error is None
    with database.connected():
        assert "EVIL" not in {row.name for row in EmailFolder.select()}


class Meddler:
    """Passes one connection on to a server and adds bytes in clear around its OK to STARTTLS."""

    def __init__(self, port: int, server_port: int, before: bytes, after: bytes) -> None:
        self._listener = socket.create_server((HOST, port))
        self._server_port = server_port
        self._before, self._after = before, after

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection((HOST, self._server_port))
        asked, added = False, False
        with client, server, suppress(OSError):
            while True:
                for source in select.select([client, server], [], [], 30)[0]:
                    data = source.recv(65_536)
                    if not data:
                        return
                    asked = asked or (source is client and b"STARTTLS" in data.upper())
                    if source is client:
                        server.sendall(data)
                    elif asked and not added:
                        added = True
                        client.sendall(self._before + data + self._after)
                    else:
                        client.sendall(data)


# --- read-only


def at_the_server(dovecot: Dovecot, user: str) -> dict[str, Any]:
    """Every folder's numbers and every message's UID, flags, size and arrival, by imaplib."""
    found: dict[str, Any] = {}
    client = imaplib.IMAP4(HOST, dovecot.imap_port)
    client.login(user, PASSWORD)
    for line in client.list()[1]:
        folder = line.decode().rpartition(' "/" ')[2]
        if client.select(folder, readonly=True)[0] != "OK":
            continue  # only a level of the hierarchy
        status = client.status(folder, "(MESSAGES UNSEEN UIDNEXT UIDVALIDITY)")[1]
        items = client.uid("FETCH", "1:*", "(FLAGS INTERNALDATE RFC822.SIZE)")[1]
        lines = [re.sub(rb" ?\\Recent", b"", item) for item in items if item]
        found[folder] = (status, lines)
    client.logout()
    return found


def test_nothing_changes_at_the_server(system: System, address: str) -> None:
    # Given folders with read, unread, flagged and deleted mail
    dovecot = system.dovecot
    dovecot.deliver_many(address, [message(f"number {n}") for n in range(6)])
    dovecot.deliver(address, message("big", "x" * 70 + "\r\n" * 1_500_000))
    dovecot.deliver(address, message("old"), folder="Archive/2024")
    client = imaplib.IMAP4(HOST, dovecot.imap_port)
    client.login(address, PASSWORD)
    client.select("INBOX")
    client.store("1:2", "+FLAGS", r"(\Seen)")
    client.store("2:3", "+FLAGS", r"(\Flagged \Answered)")
    client.store("4", "+FLAGS", r"(\Deleted)")
    client.logout()
    dovecot.deliver(address, message("unseen by any client"))
    before = at_the_server(dovecot, address)
    assert b"\\Deleted" in b"".join(before["INBOX"][1])
    # When all of it is polled, twice
    account = system.add_account(address)
    for _ in range(2):
        system.poll_and_process(account)
    assert len(system.messages(account)) == 9
    # Then everything is as it was
    assert at_the_server(dovecot, address) == before


# --- bounded

HUGE = 150_000_000
#: Prints by how many bytes the most memory that the process ever had grows by a piece of work.
MEASURED = """
import re
from pathlib import Path
from mailpoll import actors
from mailpoll.actors.poll import poll
from mailpoll.actors.process import process

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1_024

before = peak()
{work}
print(peak() - before)
"""


def growth(work: str) -> int:
    code = MEASURED.format(work=work)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return int(done.stdout.splitlines()[-1])


def test_a_message_of_150_mb_is_stored_exactly_in_little_memory(
    system: System, address: str
) -> None:
    # Given a huge message with a huge attachment
    line = b"QUJD" * 19 + b"\r\n"
    head = (
        b"Subject: huge\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\ntext\r\n"
        b"--b\r\nContent-Disposition: attachment; filename=huge.bin\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n"
    )
    lines = HUGE // len(line)
    raw = head + line * lines + b"--b--\r\n"
    digest, size = hashlib.sha256(raw).hexdigest(), len(raw)
    system.dovecot.deliver(address, raw)
    del raw
    row = account_row(system.add_account(address, test=False))
    # When it is polled and processed, each in a process of its own
    by_poll = growth(f"poll({row.id}, None)")
    with database.connected():
        (stored,) = EmailRawMessage.select()
    by_processing = growth(f"process([{stored.id}])")
    # Then it is stored byte for byte, and its attachment too
    assert (stored.sha256, stored.size) == (digest, size)
    with runtime.storage().open(stored.storage_key, stored.storage_type) as stream:
        assert hashlib.file_digest(stream, "sha256").hexdigest() == digest
    with database.connected():
        (attachment,) = EmailAttachment.select()
        assert EmailRawMessage.get_by_id(stored.id).status == "processed"
    assert attachment.size == lines * 57
    assert attachment.sha256 == hashlib.sha256(b"ABC" * (lines * 19)).hexdigest()
    # And no process needed more than a part of it in memory
    assert by_poll < HUGE / 5
    assert by_processing < HUGE / 3
    # And no temporary file is left
    assert list(system.settings.spool_dir.iterdir()) == []


def test_what_a_killed_process_left_in_the_spool_goes_with_the_next_large_message(
    embedded: System, address: str
) -> None:
    # Given a file and a directory of processes that died long ago, and a file of one at work
    spool = embedded.settings.spool_dir
    (spool / "dead directory").mkdir(parents=True)
    for name in ("dead", "at work"):
        (spool / name).write_bytes(b"half a message")
    for name in ("dead", "dead directory"):
        os.utime(spool / name, (0, 0))
    # When a message is downloaded in parts
    embedded.dovecot.deliver(address, message("large", "x" * 1_500_000))
    embedded.poll_and_process(embedded.add_account(address))
    # Then only what is at work is left
    assert [path.name for path in spool.iterdir()] == ["at work"]
    (spool / "at work").unlink()
