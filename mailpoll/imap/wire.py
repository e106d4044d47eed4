"""Bytes from and to the server, bounded in time and size.

The standard library's reader believes a server's word on sizes and waits for as long as one byte
comes now and then. This one has a total deadline, a read time-out, and limits for a line and for
a literal, and is put under ``imaplib`` so that every command is read through it.
"""

import imaplib
import re
import select
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from .. import faults, turns
from .errors import Fault, ImapError, reason_of

#: Longest line, in bytes. The longest honest ones are lists of UIDs: a million of them fit.
LINE_LIMIT = 16_000_000
#: Bytes asked of the socket at once.
CHUNK = 262_144
#: A literal, also in the binary form ``~{n}`` (RFC 3516) that some servers send unasked.
LITERAL = re.compile(rb"~?\{(\d{1,20})\+?\}\r?\n\Z")
#: ``A1 OK`` without a text, which ``imaplib`` takes for the end of the world.
BARE = re.compile(rb"(\w+ (?:OK|NO|BAD))\s*\Z", re.IGNORECASE)
#: Slowest honest server: bytes that must come within so many seconds of waiting for one answer.
MINIMUM_BYTES, MINIMUM_SECONDS = 60_000, 60.0
#: What ``imaplib`` keeps of the answers to one command: honest ones to a login are far shorter.
ANSWER_LINES, ANSWER_BYTES = 1_000, 1_000_000
#: Bytes of memory taken at once: what a server announces need not come.
PIECE = 1_000_000
#: Seconds between two looks at the clock while bytes keep coming.
LOOK = 0.1

Got = TypeVar("Got", int, bytes)


class Wire:
    """A buffered reader over a connected socket.

    Parameters:
      sock: the socket; also its time-outs are set here.
      read_timeout: seconds without a byte after which the server counts as dead.
      deadline: ``time.monotonic()`` value at which the conversation must be over.
    """

    def __init__(self, sock: socket.socket, read_timeout: float, deadline: float) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.read_timeout = read_timeout
        self.deadline = deadline
        self._buffer = bytearray()
        self._start = 0
        self._since = self._looked = time.monotonic()
        self._came = 0
        self.while_reading: Callable[[], None] = lambda: None

    def readline(self, limit: int = LINE_LIMIT) -> bytes:
        """One line with its line end.

        Raises:
          ImapError: time-out, closed connection, or a line longer than ``limit`` bytes.
        """
        searched = self._start
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                return self._take(end + 1 - self._start)
            if len(self._buffer) - self._start > limit:
                raise ImapError(Fault.PROTOCOL, f"a line is longer than {limit} bytes")
            pending = len(self._buffer) - self._start
            self._fill()
            searched = self._start + pending

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes.

        Raises:
          ImapError: time-out, or the connection ended before.
        """
        held = self._take(min(size, len(self._buffer) - self._start))
        if len(held) == size:
            return held
        pieces: list[bytes | bytearray] = [held]
        left = size - len(held)
        while left:
            pieces.append(self._piece(min(left, PIECE)))
            left -= len(pieces[-1])
        return b"".join(pieces)

    def _piece(self, size: int) -> bytearray:
        faults.point("mid-literal")
        piece, position = bytearray(size), 0
        view = memoryview(piece)
        while position < size:
            position += self._receive(partial(self.sock.recv_into, view[position:]), int)
        return piece

    def held(self) -> bytes:
        """What came and was not read yet, for whoever reads the socket from now on."""
        return self._take(len(self._buffer) - self._start)

    def send(self, data: bytes) -> None:
        self._since, self._came = time.monotonic(), 0
        rest = memoryview(data)
        while rest:
            sent = self._attempt(partial(self.sock.send, rest), select.POLLOUT)
            rest = rest[sent:]

    def close(self) -> None:
        self.sock.close()

    def _take(self, size: int) -> bytes:
        data = bytes(memoryview(self._buffer)[self._start : self._start + size])
        self._start += size
        if self._start == len(self._buffer):
            self._buffer.clear()
            self._start = 0
        return data

    def _fill(self) -> None:
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += self._receive(partial(self.sock.recv, CHUNK), len)

    def _receive(self, call: Callable[[], Got], length: Callable[[Got], int]) -> Got:
        got = self._attempt(call, select.POLLIN)
        size = length(got)
        if not size:
            raise ImapError(Fault.CONNECTION_LOST, "in the middle of a conversation")
        self._came += size
        now = time.monotonic()
        if now - self._looked > LOOK:
            self._looked = now
            self._check_time(now)
            self.while_reading()
        return got

    def _attempt(self, call: Callable[[], Got], event: int) -> Got:
        """Do something with the socket as soon as it can be done."""
        while True:
            try:
                return call()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError) as error:
                writes = isinstance(error, ssl.SSLWantWriteError)
                reads = isinstance(error, ssl.SSLWantReadError)
                event = select.POLLOUT if writes else select.POLLIN if reads else event
            except OSError as error:
                raise ImapError(Fault.CONNECTION_LOST, str(error)) from None
            self._wait(event)

    def _wait(self, event: int) -> None:
        left = self._check_time(time.monotonic())
        ready = select.poll()
        ready.register(self.sock, event)
        with turns.waiting():
            came = ready.poll(min(self.read_timeout, left) * 1_000)
        if not came:
            self._check_time(time.monotonic())
            raise ImapError(Fault.TIMED_OUT, "while waiting for the server")

    def _check_time(self, now: float) -> float:
        """Seconds that are left of the conversation.

        A byte now and then never trips the read time-out, and would hold the thread for ever.
        """
        if now >= self.deadline:
            raise ImapError(Fault.TIMED_OUT, "the poll's total time is over")
        if now - self._since >= MINIMUM_SECONDS:
            if self._came < MINIMUM_BYTES:
                words = f"{self._came} bytes in {MINIMUM_SECONDS:.0f} s"
                raise ImapError(Fault.TIMED_OUT, words)
            self._since, self._came = now, 0
        return self.deadline - now


class WireIMAP4(imaplib.IMAP4):
    """``imaplib`` speaking through a ``Wire`` that the caller has connected.

    Parameters:
      open_socket: makes the socket (and TLS, when the port asks for it from the first byte).
      host: the server's name, for certificate checks after STARTTLS.
      read_timeout, deadline: as for ``Wire``.
    """

    def __init__(
        self,
        open_socket: Callable[[], socket.socket],
        host: str,
        read_timeout: float,
        deadline: float,
    ) -> None:
        self._open_socket = open_socket
        self._read_timeout = read_timeout
        self._deadline = deadline
        self._lines, self._left = 0, ANSWER_BYTES
        super().__init__(host)

    @property  # type: ignore[override]
    def tagpre(self) -> bytes:
        """What tags begin with: ``imaplib`` compiles an expression for each, which takes 0.1 ms."""
        return b"MAIL"

    @tagpre.setter
    def tagpre(self, _: bytes) -> None:
        """``imaplib`` would choose one by chance."""

    def open(self, host: str = "", port: int = 0, timeout: float | None = None) -> None:  # noqa: ARG002
        self.host, self.port = host, port
        self.sock = self._open_socket()
        self.wire = Wire(self.sock, self._read_timeout, self._deadline)

    def _get_capabilities(self) -> None:
        """Take what the greeting tells of capabilities, and ask only if it does not."""
        told: Any = self.untagged_responses.pop("CAPABILITY", [b""])[-1]
        words = bytes(told or b"").decode("ascii", "replace").upper().split()
        if "IMAP4REV1" in words:
            self.capabilities = tuple(words)
        else:
            super()._get_capabilities()  # type: ignore[misc]

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise ImapError(Fault.PROTOCOL, f"the server announces {size} bytes of text")
        self._left -= size
        return self.wire.read(size)

    def readline(self) -> bytes:
        line = self.wire.readline(ANSWER_BYTES)
        self._lines += 1
        self._left -= len(line)
        if self._lines > ANSWER_LINES or self._left < 0:
            raise ImapError(Fault.PROTOCOL, "the answer to one command does not end")
        bare = BARE.match(line)
        return bare[1] + b" .\r\n" if bare else line

    def send(self, data: Any) -> None:
        self._lines, self._left = 0, ANSWER_BYTES
        self.wire.send(bytes(data))

    def shutdown(self) -> None:
        self.wire.close()

    def secure(self, context: ssl.SSLContext) -> None:
        """STARTTLS. Whatever the server said in clear text is forgotten (CVE-2021-38371).

        Raises:
          ImapError: the server refuses, or TLS fails.
        """
        kind, text = self._simple_command("STARTTLS")
        if kind != "OK":
            words = bytes(text[0] or b"").decode("utf-8", "replace")
            raise ImapError(Fault.TLS, f"the server refuses STARTTLS: {words}")
        self.untagged_responses.clear()
        try:
            with turns.waiting():
                left = max(0.1, self._deadline - time.monotonic())
                self.sock.settimeout(min(self._read_timeout, left))
                self.sock = context.wrap_socket(self.sock, server_hostname=self.host)
        except (ssl.SSLError, OSError) as error:
            raise ImapError(Fault.TLS, reason_of(error)) from None
        self.wire = Wire(self.sock, self._read_timeout, self._deadline)
        self._get_capabilities()
