"""What every contender can do: bring in all mail, and look for more."""

import os
import resource
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True)
class Server:
    """What a contender is told: where the mail is, over TLS, and how to get in."""

    host: str
    port: int
    ca_file: Path
    users: list[str]
    password: str


class TooSlow(Exception):
    """A phase was ended after the time that it may take."""


@dataclass(frozen=True, slots=True)
class Took:
    """What a phase took: seconds by the clock, and of CPU by all processes of the contender."""

    seconds: float
    cpu: float


class Contender(ABC):
    """A program that brings in the mail of many mailboxes; a context in which it is ready to.

    Parameters:
      server: where the mail is.
      directory: empty, for all that it keeps.
      limit: seconds after which a phase is ended.
    """

    name: str
    #: It takes minutes, so one round must do.
    slow = False

    def __init__(self, server: Server, directory: Path, limit: float) -> None:
        self.server = server
        self.directory = directory
        self.limit = limit

    @classmethod
    def installed(cls) -> bool:
        """Whether it can run here."""
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, t: TracebackType | None
    ) -> None:
        return

    @abstractmethod
    def cold_import(self, messages: int) -> Took:
        """Bring in all mail, until there are so many messages. Raises TooSlow."""

    @abstractmethod
    def poll(self, messages: int) -> Took:
        """Look into every mailbox once, until there are so many in all. Raises TooSlow."""

    @abstractmethod
    def verified(self, sent: set[str]) -> int:
        """How many of these messages it has, by SHA-256 where it keeps what was sent."""


class Program(Contender):
    """A contender that is a command, which ends when it has done with all mailboxes."""

    @abstractmethod
    def command(self) -> list[str]: ...

    def cold_import(self, messages: int) -> Took:  # noqa: ARG002
        return self._run()

    def poll(self, messages: int) -> Took:  # noqa: ARG002
        return self._run()

    def _run(self) -> Took:
        """Run the command. The CPU is that of all its processes, which it has waited for."""
        before, start = _cpu_of_children(), time.monotonic()
        log = self.directory / "log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(), stdout=output, stderr=output, start_new_session=True
            )
            try:
                code = process.wait(self.limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise TooSlow from None
        took = Took(time.monotonic() - start, _cpu_of_children() - before)
        if code:
            raise RuntimeError(f"{self.name}: {code}\n{log.read_text(errors='replace')[-2_000:]}")
        return took


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def wait_until(done: Callable[[], bool], pause: float, limit: float) -> None:
    """Ask again and again. Raises TooSlow after ``limit`` seconds."""
    end = time.monotonic() + limit
    while not done():
        if time.monotonic() > end:
            raise TooSlow
        time.sleep(pause)
