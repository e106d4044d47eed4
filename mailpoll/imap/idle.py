"""Waiting for a server's own word that there is news: IDLE (RFC 2177), NOTIFY (RFC 5465).

Nothing here waits or blocks once the watch has begun: whoever has many of them waits for all their
sockets together.
"""

import re
import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from .errors import Fault, ImapError, refusal
from .session import Session

#: What says that a folder has other messages than before.
NEWS = re.compile(rb"\* (?:\d+ (?:EXISTS|EXPUNGE)|VANISHED|STATUS)\b", re.IGNORECASE)
#: The server could not keep up and tells of nothing from now on (RFC 5465, 5.8).
OVERFLOW = re.compile(rb"\* OK \[NOTIFICATIONOVERFLOW\]", re.IGNORECASE)
#: A server that says what it has in so many bytes without a line end is broken.
LINE = 65_536
CHUNK = 16_384
#: Pieces that are read at once: far more than all news of a mailbox.
PIECES = 100
#: New and removed messages of every folder of the user's own; the open one as IDLE tells it.
NOTIFY = b"NOTIFY SET (selected (MessageNew MessageExpunge)) (personal (MessageNew MessageExpunge))"
#: Seconds of silence after which the system asks whether the other side is there, and how often.
KEEPALIVE = {"TCP_KEEPIDLE": 120, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 4}


class Watch:
    """An IDLE on a folder; also ``NOTIFY`` of all others, where the server has it.

    Parameters:
      opening: gives the session and closes it; entered by ``begin``.
      wire_name: the folder to open.
      alone: no other folder matters. IDLE does then without NOTIFY: Dovecot puts a connection
        that only idles to sleep (``imap_hibernate_timeout``), which costs it less memory, and
        wakes it at once, where it is otherwise half a second late.

    Attributes:
      answered: whether the server has answered to the last command.
      whole: whether it tells of every folder that matters, and not only of the open one.
      uidnext, messages: what the server told of the folder when it was opened.
    """

    def __init__(
        self, opening: AbstractContextManager[Session], wire_name: bytes, *, alone: bool
    ) -> None:
        self._opening = opening
        self._wire_name = wire_name
        self._alone = alone
        self._rest = b""
        self._tag = b""
        self._send: Callable[[bytes], bytes] = lambda line: line
        self._ending = False
        self.answered = False
        self.whole = False
        self.uidnext: int | None = None
        self.messages: int | None = None
        self.sock: socket.socket

    def begin(self) -> Self:
        """Log in, open the folder and ask for news; blocks.

        Raises:
          ImapError: there is no such session, or the server has no IDLE (``REFUSED``).
        """
        session = self._opening.__enter__()
        try:
            if not session.supports("IDLE"):
                raise ImapError(Fault.REFUSED, "the server has no IDLE")
            status = session.examine(self._wire_name)
            self.uidnext, self.messages = status.uidnext, status.messages
            self.whole = self._alone or (session.supports("NOTIFY") and _notifies(session))
            self._send = session.send_command
            self.sock, self._rest = session.hand_over()
            _keep_alive(self.sock)
            self._idle()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opening.__exit__(kind, value, trace)

    def close(self) -> None:
        """End the connection without another word."""
        error = ImapError(Fault.CONNECTION_LOST, "closed here")
        try:
            self.__exit__(type(error), error, None)
        except ImapError:
            return

    def _idle(self) -> None:
        self.answered = self._ending = False
        self._tag = self._send(b"IDLE")

    def renew(self) -> None:
        """End the IDLE and begin another: servers log out who says nothing for half an hour.

        Raises:
          ImapError: the connection is lost.
        """
        self.answered, self._ending = False, True
        self._write(b"DONE\r\n")

    def _write(self, data: bytes) -> None:
        """A few bytes; a socket that does not take them at once is dead."""
        try:
            self.sock.send(data)
        except (OSError, ssl.SSLError) as error:
            raise ImapError(Fault.CONNECTION_LOST, str(error)) from None

    def read(self) -> bool:
        """Take what has come; whether it says that there is news.

        Raises:
          ImapError: the server has ended the connection or the IDLE.
        """
        news = False
        for line in self._lines():
            if NEWS.match(line):
                news = True
            elif line.startswith(b"+"):
                self.answered = True
            elif line[:6].upper() == b"* BYE ":
                error = refusal(line[6:].decode("utf-8", "replace"), Fault.CONNECTION_LOST)
                error.ended = True
                raise error
            elif OVERFLOW.match(line):
                raise ImapError(Fault.CONNECTION_LOST, "the server has more news than it can tell")
            elif self._tag and line.startswith(self._tag + b" "):
                self._ended(line[len(self._tag) + 1 :])
        return news

    def _ended(self, answer: bytes) -> None:
        """The IDLE is over: as it was asked to be, or because the server will not have it.

        Begun again at once where nobody had ended it, it might end as soon, and so on for ever.
        """
        if not answer.upper().startswith(b"OK"):
            raise refusal(answer.decode("utf-8", "replace"), Fault.REFUSED)
        if not self._ending:
            raise ImapError(Fault.CONNECTION_LOST, "the server ended the IDLE")
        self._idle()

    def _lines(self) -> list[bytes]:
        data = self._rest + self._received()
        *lines, self._rest = data.split(b"\n")
        if len(self._rest) > LINE:
            raise ImapError(Fault.PROTOCOL, f"a line is longer than {LINE} bytes")
        return lines

    def _received(self) -> bytes:
        pieces: list[bytes] = []
        try:
            while True:
                piece = self.sock.recv(CHUNK)
                if not piece:
                    raise ImapError(Fault.CONNECTION_LOST, "the server closed the connection")
                pieces.append(piece)
                if len(pieces) > PIECES:
                    raise ImapError(Fault.PROTOCOL, "the server does not stop talking")
        except (ssl.SSLWantReadError, BlockingIOError):
            return b"".join(pieces)
        except OSError as error:
            raise ImapError(Fault.CONNECTION_LOST, str(error)) from None


def _notifies(session: Session) -> bool:
    """Ask for news of all folders; whether the server will tell them."""
    try:
        session.run(NOTIFY)
    except ImapError as error:
        if error.fault is not Fault.REFUSED:
            raise
        return False
    return True


def _keep_alive(sock: socket.socket) -> None:
    """Let the system find out when the other side is gone without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # Linux; other systems have defaults
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
