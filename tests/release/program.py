"""A mailpoll that is installed somewhere: its commands, its processes and its API."""

import hashlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Seconds that something may take; reached only when it is broken.
PATIENCE = 300
#: Seconds that a process gets to end.
GRACE = 30


class Broken(Exception):
    """The check found something; the message says what."""


def wait_until(done: Callable[[], Any], what: str) -> None:
    """Return when ``done`` is true.

    Raises:
      Broken: it never was.
    """
    end = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > end:
            raise Broken(f"waited in vain: {what}")
        time.sleep(0.2)


def expect(right: Any, what: str) -> None:
    """Raise Broken unless ``right``."""
    if not right:
        raise Broken(what)


class Program:
    """One installation.

    Parameters:
      python: the interpreter of its environment.
      directory: where its commands run; logs are kept there.
      variables: all that configures it.
      port: where its web process listens.
    """

    def __init__(self, python: Path, directory: Path, variables: dict[str, str], port: int) -> None:
        self.python = python
        self.directory = directory
        self.port = port
        self.log = directory / f"{python.parents[1].name}.log"
        self.token = variables.get("MAILPOLL_API_TOKEN", "")
        self.environment = {
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "HOME": str(directory),
            "PORT": str(port),
            **variables,
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *arguments: str, code: int = 0, **variables: str) -> str:
        """What a command prints.

        Raises:
          Broken: it ended with another exit code.
        """
        done = subprocess.run(
            [self.python, "-m", "mailpoll", *arguments],
            cwd=self.directory,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        expect(
            done.returncode == code,
            f"mailpoll {' '.join(arguments)}: exit code {done.returncode}\n"
            f"{done.stdout[-2_000:]}{done.stderr[-2_000:]}",
        )
        return done.stdout

    def script(self, text: str, **variables: str) -> str:
        """What Python prints that has this installation's modules and configuration."""
        done = subprocess.run(
            [self.python, "-c", text],
            cwd=self.directory,
            env={**self.environment, **variables},
            capture_output=True,
            check=False,
            text=True,
        )
        expect(done.returncode == 0, done.stderr[-2_000:])
        return done.stdout

    def start(self, *names: str, **variables: str) -> None:
        """Start processes by their commands."""
        for name in names:
            with self.log.open("ab") as output:
                self.processes[name] = subprocess.Popen(
                    [self.python, "-m", "mailpoll", name],
                    cwd=self.directory,
                    env={**self.environment, **variables},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )

    def stop(self, *names: str) -> None:
        """End processes, all of them unless named."""
        ending = [self.processes.pop(name) for name in (names or tuple(self.processes))]
        for process in ending:
            process.send_signal(signal.SIGTERM)
        for process in ending:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise Broken(f"a process did not end within {GRACE} s") from None

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer that must be none of an error."""
        with self._open(method, path, body) as answer:
            return json.loads(answer.read() or b"null")

    def _open(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            method=method,
        )
        return urllib.request.urlopen(request, timeout=60)

    def ready(self) -> bool:
        for name, process in self.processes.items():
            expect(process.poll() is None, f"{name} ended:\n{self.log.read_text()[-3_000:]}")
        with suppress(OSError):
            return bool(self.ask("GET", "/readyz")["ready"])
        return False

    def pages(self, path: str) -> Iterable[dict[str, Any]]:
        """All items of a list."""
        cursor = ""
        sign = "&" if "?" in path else "?"
        while cursor is not None:
            more = f"{sign}cursor={cursor}" if cursor else ""
            page = self.ask("GET", f"{path}{more}")
            yield from page["items"]
            cursor = page["next"]

    def messages(self, account: str) -> dict[int, dict[str, Any]]:
        path = f"/admin/email-accounts/{account}/messages?limit=200"
        return {message["id"]: message for message in self.pages(path)}

    def raw_sha256(self, message: int) -> str:
        """The hash of a message as it is downloaded."""
        with self._open("GET", f"/admin/messages/{message}/raw") as answer:
            return hashlib.sha256(answer.read()).hexdigest()

    def errors(self) -> list[str]:
        """What its log says that no log should, with ``MAILPOLL_LOG_FORMAT=json``."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return [
            line
            for line in lines
            if "Traceback" in line
            or '"level": "error"' in line.lower()
            or '"level":"error"' in line.lower()
        ]
