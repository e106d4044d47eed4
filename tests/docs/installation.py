"""A mailpoll as a reader of the pages has it: in an empty directory, with a mail server to poll."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.integration.system import PASSWORD
from tests.integration.test_cli import clean
from tests.servers.dns_server import DnsServer
from tests.servers.dovecot import Dovecot
from tests.servers.process import free_ports
from tests.servers.receiver import Receiver

#: `mailpoll up` goes on in the background, and the next command waits until it is ready. Whoever
#: is asked for a password types it.
MAILPOLL = """#!/bin/bash
case "$*" in
up)
    {python} -m mailpoll up > up.log 2>&1 &
    for _ in $(seq 300); do
        token=$(cat data/api.token 2> /dev/null)
        {curl} -sf -H "Authorization: Bearer $token" http://127.0.0.1:$PORT/readyz \
            > /dev/null && exit
        sleep 0.2
    done
    cat up.log >&2
    exit 1 ;;
*--password-stdin*) exec {python} -m mailpoll "$@" ;;
accounts\\ add*|doctor*) exec {python} -m mailpoll "$@" <<< {password} ;;
*) exec {python} -m mailpoll "$@" ;;
esac
"""
#: An error is one, and the port of the pages leads to this test's.
CURL = """#!/bin/bash
exec {curl} -sS --fail-with-body --max-time 60 --connect-to 127.0.0.1:8025:127.0.0.1:$PORT "$@"
"""
#: What a reader has added before, unless the page itself does.
PREPARE = """
TOKEN=$(cat data/api.token)
A="Authorization: Bearer $TOKEN"; B=http://127.0.0.1:8025/admin
ID=$(mailpoll accounts add {address} --json | python3 -c \
    'import json, sys; print(json.load(sys.stdin)["id"])')
for _ in $(seq 300); do
    MESSAGE=$(curl -H "Authorization: Bearer $TOKEN" \
        "http://127.0.0.1:8025/admin/email-accounts/$ID/messages?status=processed" |
        python3 -c 'import json, sys; print(*[m["id"] for m in json.load(sys.stdin)["items"]][:1])')
    [ -z "$MESSAGE" ] || break
    sleep 0.2
done
"""


class Reader:
    """Somebody who types what a page says.

    Parameters:
      directory: where they are; empty.
    """

    def __init__(self, directory: Path, variables: dict[str, str]) -> None:
        self.directory = directory
        self.variables = variables

    def types(self, script: str, seconds: float = 500) -> str:
        """Run a script with Bash; what it prints.

        Raises:
          AssertionError: a command failed; with what was printed last.
        """
        log = self.directory / "session.log"
        with log.open("ab") as output:
            shell = subprocess.Popen(
                ["bash", "-eu", "-o", "pipefail", "-c", script],
                cwd=self.directory,
                env=self.variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        code = shell.wait(seconds)
        printed = log.read_text(errors="replace")
        assert code == 0, f"exit code {code}; it printed:\n{printed[-4_000:]}"
        return printed

    def leave(self) -> None:
        """End what was left running: `mailpoll up`, which ends its own processes."""
        mark = f"PORT={self.variables['PORT']}\0".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if mark in (entry / "environ").read_bytes() and b"mailpoll\0up\0" in command:
                    ended = os.pidfd_open(int(entry.name))
                    signal.pidfd_send_signal(ended, signal.SIGTERM)
                    select.select([ended], [], [], 30)
                    os.close(ended)


@contextmanager
def reader(directory: Path, dovecot: Dovecot) -> Iterator[Reader]:
    """A reader whose addresses at example.org are those of the test's Dovecot."""
    (port,) = free_ports(1)
    curl = subprocess.run(
        ["which", "curl"], capture_output=True, check=True, text=True
    ).stdout.strip()
    programs = directory / "bin"
    programs.mkdir()
    for name, text in (("mailpoll", MAILPOLL), ("curl", CURL)):
        program = programs / name
        program.write_text(text.format(python=sys.executable, curl=curl, password=PASSWORD))
        program.chmod(0o755)
    records = {
        ("localhost.", "A"): ["127.0.0.1"],
        ("_imaps._tcp.example.org.", "SRV"): [f"0 1 {dovecot.imaps_port} localhost."],
    }
    with ExitStack() as stack:
        dns = stack.enter_context(DnsServer(records))
        receiver = stack.enter_context(Receiver())
        home = directory / "home"
        home.mkdir()
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = {
            "PATH": path,
            "HOME": str(home),
            "PORT": str(port),
            "PASSWORD": PASSWORD,
            "RECEIVER": receiver.url,
            "MAILPOLL_IMAP_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
            "MAILPOLL_IMAP_CA_FILE": str(dovecot.ca_file),
            "MAILPOLL_IMAP_PORTS": str(dovecot.imaps_port),
            "MAILPOLL_DNS_SERVER": f"127.0.0.1:{dns.port}",
            "MAILPOLL_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
            "MAILPOLL_NOTIFY_URLS": receiver.url.replace("http://", "json://"),
            "MAILPOLL_WORKER_PROCESSES": "1",
        }
        who = Reader(home, clean(variables))
        try:
            yield who
        finally:
            who.leave()
