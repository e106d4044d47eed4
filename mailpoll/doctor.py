"""A walk through a connection, step by step, that ends where it fails and says what to do.

It does what a poll does up to the first folder, with the same functions, and changes nothing.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .imap import ImapError, Login, Session, providers, selectable
from .imap import connection as steps
from .imap.errors import TREATMENT, Fault, printable
from .settings import Settings

#: Seconds for the whole walk.
TIMEOUT = 60
#: Bytes of a line of the report.
LINE = 500

#: What it means that a server says, or does not say, that it can do something.
OFFERED = {
    "X-GM-EXT-1": "labels are folders here: a message with several lies in several, and is stored "
    "once",
    "UIDONLY": "very large folders are seen whole by UIDs only (RFC 9586), which polls ask for",
    "LOGINDISABLED": "it takes no passwords over this connection",
}
MISSING = {
    "LIST-STATUS": "no LIST-STATUS: each poll asks for the status of each folder",
    "SPECIAL-USE": "no SPECIAL-USE: it does not say which folder is for what",
    "ID": "no ID: it does not want to know who connects",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """How a step went.

    Parameters:
      step: its name.
      ok: it worked; the walk ends with the first step that did not.
      detail: what was seen, or what is wrong, in words and without secrets.
      kind: of the failure, as ``last_error_kind``.
      milliseconds: that it took.
    """

    step: str
    ok: bool
    detail: str
    kind: str | None = None
    milliseconds: int = 0


class Examination:
    """One walk. ``extensions`` and ``notes`` are filled while it goes on.

    Parameters:
      login: where and as whom.
    """

    def __init__(self, login: Login, config: Settings) -> None:
        self.login = login
        self.extensions: list[str] = []
        self.notes: list[str] = []
        self._config = config
        self._deadline = time.monotonic() + TIMEOUT
        self._address = ""
        self._socket: socket.socket | None = None
        self._imap: Any = None
        self._offered: tuple[bytes, ...] = ()
        self._note_preset()

    @property
    def advice(self) -> str | None:
        """What to do at the provider, where it is known."""
        preset = providers.preset_of(self.login.host)
        return f"{preset.title}: {preset.advice}" if preset else None

    def run(self) -> Iterator[Finding]:
        """Each step when it has ended."""
        try:
            for name, step in self._steps():
                finding = _timed(name, step)
                yield finding
                if not finding.ok:
                    return
        finally:
            self._close()

    def _steps(self) -> list[tuple[str, Callable[[], str]]]:
        first: list[tuple[str, Callable[[], str]]] = [
            ("resolve", self._resolve),
            ("connect", self._connect),
        ]
        greeting = ("greeting", self._greet)
        between = {
            "tls": [("tls", self._secure), greeting],
            "starttls": [greeting, ("tls", self._start_tls)],
            "plain": [greeting],
        }
        last = [
            ("capabilities", self._ask_capabilities),
            ("login", self._log_in),
            ("id", self._identify),
            ("list", self._list),
            ("examine", self._examine),
        ]
        return first + between[self.login.security] + last

    def _resolve(self) -> str:
        self._address = steps.reach(self.login, self._config)
        return f"{self.login.host} is {self._address}"

    def _connect(self) -> str:
        timeout = self._config.imap_connect_timeout
        self._socket = steps.dial(self.login, self._address, timeout)
        return f"port {self.login.port} is open"

    def _secure(self) -> str:
        assert self._socket
        context = steps.tls_context(self._config.imap_ca_file)
        self._socket = steps.secure(self.login, self._socket, context)
        return _certificate(self._socket)

    def _greet(self) -> str:
        sock = self._socket
        assert sock
        self._imap = steps.greet(self.login, self._config, self._deadline, lambda: sock)
        return _text(self._imap._imap.welcome)

    def _start_tls(self) -> str:
        steps.start_tls(self._imap, self.login, self._config)
        return _certificate(self._imap._imap.sock)

    def _ask_capabilities(self) -> str:
        self._offered = self._imap.capabilities()
        return _text(b" ".join(self._offered))

    def _log_in(self) -> str:
        steps.authenticate(self._imap, self.login)
        return f"as {printable(self.login.username)}"

    def _identify(self) -> str:
        answer = steps.identify(self._imap, self.login, self._offered)
        # Asks what is offered to those who have logged in, if they were not told.
        Session(self._imap, self._config).supports("IMAP4rev1")
        self.extensions = sorted(_text(word) for word in self._imap.capabilities())
        self._note_extensions()
        if answer is None:
            return "not asked for"
        return f"the server is {printable(answer)}" if answer else "said; no answer"

    def _list(self) -> str:
        folders = selectable(*Session(self._imap, self._config).list_folders())
        skipped = [f for f in folders if providers.skipped(self.login.host, f.special_use)]
        if skipped:
            names = ", ".join(folder.name for folder in skipped)
            self.notes.append(f"folders that only repeat others: {names}")
        if not any(folder.name.upper() == "INBOX" for folder in folders):
            self.notes.append("the list names no INBOX")
        names = ", ".join(folder.name for folder in folders[:8])
        return f"{len(folders)} folders: {names}{', …' if len(folders) > 8 else ''}"

    def _examine(self) -> str:
        seen = Session(self._imap, self._config).examine(b"INBOX")
        if not seen.uidvalidity:
            self.notes.append("no UIDVALIDITY: a rebuilt folder cannot be told from the old one")
        if not seen.uidnext:
            self.notes.append("no UIDNEXT: each poll looks for the highest UID")
        return f"INBOX has {seen.messages} messages"

    def _note_preset(self) -> None:
        preset = providers.preset_of(self.login.host)
        if preset is None:
            return
        if self.login.auth not in preset.auth:
            self.notes.append(f"{preset.title} takes {' or '.join(preset.auth)} only")
        if preset.demands_id:
            self.notes.append("it opens folders only to clients that send ID")
        if preset.connections:
            self.notes.append(f"it allows {preset.connections} connections to one account")
        if preset.day_bytes:
            self.notes.append(f"at most {preset.day_bytes:,} bytes a day are fetched from it")

    def _note_extensions(self) -> None:
        self.notes += [note for word, note in OFFERED.items() if word in self.extensions]
        self.notes += [note for word, note in MISSING.items() if word not in self.extensions]
        for word in self.extensions:
            name, _, limit = word.partition("=")
            if name == "MESSAGELIMIT":
                self.notes.append(f"it cuts a command at {limit} messages (RFC 9738)")

    def _close(self) -> None:
        if self._imap is not None:
            Session(self._imap, self._config).log_out()
            with suppress(Exception):
                self._imap.shutdown()
        elif self._socket is not None:
            self._socket.close()


def _timed(name: str, step: Callable[[], str]) -> Finding:
    started = time.monotonic()

    def took() -> int:
        return int((time.monotonic() - started) * 1_000)

    try:
        detail = step()
    except ImapError as error:
        return Finding(name, False, str(error), str(error.fault), took())
    return Finding(name, True, printable(detail, LINE), None, took())


def login_is_to_blame(finding: Finding) -> bool:
    """Whether the help of the provider answers this failure."""
    kind = finding.kind
    if kind is None or kind not in set(Fault):
        return False
    return bool(TREATMENT[Fault(kind)].refusals) or finding.step in ("login", "id", "examine")


def _certificate(sock: Any) -> str:
    assert isinstance(sock, ssl.SSLSocket)
    certificate = sock.getpeercert() or {}
    return f"{sock.version()}, certificate until {certificate.get('notAfter', 'unknown')}"


def _text(value: bytes) -> str:
    return printable(value.decode("utf-8", "replace").strip(), LINE)
