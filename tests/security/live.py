"""The web process as it runs in production: gunicorn, on the backing set of the test."""

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.integration.system import wait_until
from tests.servers.process import HOST, free_ports


class Web:
    """A running ``mailpoll web``."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.log = log

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def ask(self, request: bytes, seconds: float = 20) -> bytes:
        """All that it answers to these bytes until it closes, or says nothing for a while."""
        answer = b""
        with socket.create_connection((HOST, self.port), timeout=seconds) as client:
            with suppress(OSError):
                client.sendall(request)
            with suppress(TimeoutError, ConnectionResetError):
                while chunk := client.recv(65_536):
                    answer += chunk
        return answer


def healthy(web: Web, seconds: float = 5) -> bool:
    with urllib.request.urlopen(f"{web.url}/healthz", timeout=seconds) as answer:
        return bool(answer.status == 200)


@contextmanager
def running(directory: Path, **variables: str) -> Iterator[Web]:
    """The web process for the block, with this process's configuration and these variables."""
    (port,) = free_ports(1)
    log = directory / "web.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mailpoll", "web"],
            env={**os.environ, "PORT": str(port), **variables},
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )

    web = Web(port, log)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        # The port is open before there is a worker behind it.
        with suppress(OSError):
            return healthy(web)
        return False

    try:
        wait_until(answers)
        yield web
    finally:
        process.terminate()
        process.wait(30)
