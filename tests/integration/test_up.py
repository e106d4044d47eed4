"""``mailpoll up``: everything on one machine, from an empty directory."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from mailpoll.processes import NICENESS
from tests.integration.system import PASSWORD, message, wait_until
from tests.integration.test_cli import clean
from tests.servers.dovecot import Dovecot
from tests.servers.process import free_ports

#: Seconds that a platform gives processes to end.
GRACE = 25


class Installation:
    """A running ``mailpoll up`` in a directory of its own."""

    def __init__(self, directory: Path, dovecot: Dovecot) -> None:
        self.directory = directory
        (self.port,) = free_ports(1)
        self.log = directory / "up.log"
        variables = {
            "PORT": str(self.port),
            "MAILPOLL_IMAP_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
            "MAILPOLL_IMAP_CA_FILE": str(dovecot.ca_file),
            "MAILPOLL_IMAP_PORTS": str(dovecot.imaps_port),
            "MAILPOLL_WORKER_PROCESSES": "1",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mailpoll", "up"],
                cwd=directory,
                env=clean(variables),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        token = (self.directory / "data" / "api.token").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else orjson.dumps(body),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return orjson.loads(answer.read())

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with suppress(OSError):
            return bool(self.ask("GET", "/readyz")["ready"])
        return False

    def processes(self) -> dict[int, str]:
        """All that it started and is still there, with their command lines."""
        mark = f"PORT={self.port}\0".encode()
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes():
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if command:
                        found[int(entry.name)] = command
        return found


@pytest.fixture
def installation(tmp_path: Path, dovecot: Dovecot) -> Iterator[Installation]:
    started = Installation(tmp_path, dovecot)
    yield started
    with suppress(ProcessLookupError):
        started.process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        started.process.wait(GRACE + 5)
    for left in started.processes():
        with suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)


def subjects(installation: Installation, account: str) -> Callable[[], list[str]]:
    path = f"/admin/email-accounts/{account}/messages?status=processed"

    def found() -> list[str]:
        return sorted(item["subject"] for item in installation.ask("GET", path)["items"])

    return found


def test_it_polls_survives_a_killed_poller_and_ends(
    installation: Installation, dovecot: Dovecot, address: str
) -> None:
    # Given an installation that makes all it needs in an empty directory
    wait_until(installation.answers)
    assert (installation.directory / "data" / "secret.key").stat().st_mode & 0o777 == 0o600
    # When a mailbox is added
    dovecot.deliver(address, message("first"))
    body = {
        "address": address,
        "password": PASSWORD,
        "host": "localhost",
        "port": dovecot.imaps_port,
        "poll_interval": 5,
    }
    account = installation.ask("POST", "/admin/email-accounts", body)["id"]
    # Then its mail is processed
    processed = subjects(installation, account)
    wait_until(lambda: processed() == ["first"])
    shown = f"/admin/email-accounts/{account}"
    wait_until(lambda: installation.ask("GET", shown)["last_success_at"])

    # When the poller is killed
    pollers = [pid for pid, command in installation.processes().items() if "backfill" in command]
    assert pollers
    for pid in pollers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # Then another one takes its place, and new mail arrives without waiting for the claim of the
    # poll that was lost to lapse
    dovecot.deliver(address, message("second"))
    installation.ask("POST", f"{shown}/poll")
    wait_until(lambda: processed() == ["first", "second"])
    wait_until(installation.answers)

    # When it is told to end
    installation.process.send_signal(signal.SIGTERM)
    # Then it does, with all its children
    assert installation.process.wait(GRACE) == 0
    assert installation.processes() == {}
    log = installation.log.read_text()
    assert "Traceback" not in log
    token = (installation.directory / "data" / "api.token").read_text().strip()
    assert token not in log
    assert PASSWORD not in log


def test_pollers_and_workers_leave_the_processors_to_who_waits_for_an_answer(
    installation: Installation,
) -> None:
    wait_until(installation.answers)
    found = installation.processes()
    usual = os.getpriority(os.PRIO_PROCESS, installation.process.pid)

    def niceness(word: str) -> set[int]:
        return {
            os.getpriority(os.PRIO_PROCESS, pid)
            for pid, command in found.items()
            if word in command
        }

    def niceness_of_session(word: str) -> set[int]:
        return {
            int(Path(f"/proc/{pid}/autogroup").read_text().rpartition(" ")[2])
            for pid, command in found.items()
            if word in command
        }

    nice = min(19, usual + NICENESS)
    assert niceness("gunicorn") == niceness("scheduler") == {usual}
    assert niceness("backfill") == niceness("maintenance") == {nice}
    if Path("/proc/self/autogroup").exists():  # Linux then compares sessions, not processes
        assert niceness_of_session("gunicorn") == niceness_of_session("scheduler") == {0}
        assert niceness_of_session("backfill") == niceness_of_session("maintenance") == {nice}


def test_it_ends_while_it_starts(installation: Installation) -> None:
    wait_until(lambda: len(installation.processes()) > 1)
    installation.process.send_signal(signal.SIGTERM)
    installation.process.wait(GRACE)
    wait_until(lambda: not installation.processes())
