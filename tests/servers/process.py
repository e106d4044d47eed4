"""What all test servers share: a supervised process, free ports, waiting until it answers."""

import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SUPERVISOR = Path(__file__).with_name("supervisor.py")
HOST = "127.0.0.1"

# Set by tests/conftest.py: servers that all workers of a run share live as long as its controller.
OWNER_VARIABLE = "MAILPOLL_TEST_OWNER"


class ServerMissingError(Exception):
    """The program of a test server is not installed. Never a reason to skip a test."""

    def __init__(self, program: str) -> None:
        super().__init__(f"{program} is not installed: run tests/install-servers, then try again")


class ServerFailedError(Exception):
    """A test server ended or did not answer in time; the message carries the end of its log."""


def find_program(name: str, *directories: Path | str) -> str:
    """The path of ``name`` in ``directories`` or on PATH. Raises ServerMissingError."""
    path = os.pathsep.join([*map(str, directories), os.environ.get("PATH", ""), "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise ServerMissingError(name)
    return found


def free_ports(count: int) -> list[int]:
    """``count`` loopback ports that nobody listens on.

    They lie below the range for outgoing connections, so that a server which is stopped for an
    outage test finds its ports free when it starts again. Each worker of a test run has a part of
    them for itself: another would find free what was told here and is not listened on yet.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")) + 1
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw-1")[2:]) + 1
    share = (32_000 - 15_000) // workers
    first = 15_000 + worker * share
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(first, first + share)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            if port not in ports:
                ports.append(port)
    return ports


class Server:
    """One server process with its data and log in ``directory``.

    An instance is plain data: it can be pickled and used from another process, which is how the
    workers of one test run share a server. ``start`` and ``stop`` may be called in turn any number
    of times; data and ports stay.
    """

    program: str  # what the log file is called after
    stop_signal = signal.SIGTERM
    start_timeout = 30.0  # seconds

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / f"{self.program}.log"
        self.host = HOST
        self.user = ""  # the account to run as; "" for our own
        self.pid: int | None = None
        self.supervisor_pid: int | None = None

    def start(self) -> None:
        """Start and wait until it answers. Raises ServerMissingError or ServerFailedError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.user:
            self._admit_user()
        command = self.prepare()
        owner = os.environ.get(OWNER_VARIABLE, str(os.getpid()))
        arguments = [owner, str(self.log), self.stop_signal.name, self.user, *command]
        started = subprocess.run(
            [sys.executable, "-I", str(SUPERVISOR), *arguments],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        self.supervisor_pid, self.pid = map(int, started.stdout.split())
        self._wait_until(self.answers)

    def stop(self) -> None:
        """Stop and wait until the process and its children are gone. Nothing if not running."""
        if self.supervisor_pid is not None:
            with suppress(ProcessLookupError):
                ended = os.pidfd_open(self.supervisor_pid)
                try:
                    signal.pidfd_send_signal(ended, signal.SIGTERM)
                    select.select([ended], [], [], 30)
                finally:
                    os.close(ended)
        self.pid = self.supervisor_pid = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def prepare(self) -> list[str]:
        """Write what the server needs and return its command line."""
        raise NotImplementedError

    def answers(self) -> bool:
        """True when the server serves; may raise OSError while it does not."""
        raise NotImplementedError

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline and self._alive():
            with suppress(OSError):
                if ready():
                    return
            time.sleep(0.05)
        state = "did not answer in time" if self._alive() else "ended"
        self.stop()
        raise ServerFailedError(f"{self.program} {state}; end of {self.log}:\n{self._log_end()}")

    def _alive(self) -> bool:
        return self.supervisor_pid is not None and Path(f"/proc/{self.pid}").exists()

    def _log_end(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else "(no log)"

    def _admit_user(self) -> None:
        """Let ``self.user`` reach the directory; its parents must admit everyone already."""
        self.directory.chmod(0o755)
        for parent in self.directory.resolve().parents:
            if not parent.stat().st_mode & 0o001:
                raise ServerFailedError(
                    f"{self.program} runs as {self.user} and cannot enter {parent}: as root, give "
                    "test servers a directory whose parents are open (fixture server_directory)"
                )


def accepts(port: int) -> bool:
    """True when somebody accepts connections on the loopback port."""
    with socket.create_connection((HOST, port), timeout=2):
        return True
