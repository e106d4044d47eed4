"""One authenticated connection to a server, reading only.

``IMAPClient`` does the greeting, capabilities, login and ID. Folder lists and messages are read
by the code here, straight from the wire: its parser would hold every body three times.
"""

import functools
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imapclient
from imapclient import exceptions

from .. import __version__
from ..settings import Settings
from . import hosts, providers, responses
from .errors import Fault, ImapError, reason_of, refusal
from .responses import Fetched, Listed, Literal, Status
from .wire import LITERAL, WireIMAP4

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: What we say of ourselves (RFC 2971). 163.com and others refuse EXAMINE to those who say nothing.
IDENTITY = {"name": "mailpoll", "version": __version__, "vendor": "mailpoll"}

#: Commands on their way at once; more could fill both sides' socket buffers and stand still.
PIPELINE = 100
#: Untagged lines that one command may be answered with; honest lists are far shorter.
ANSWER_LINES = 200_000
#: Bytes of one command's answer when no body was asked for.
ANSWER_BYTES = 64_000_000
#: Parts that a message may be long which was announced as short and comes in one piece.
WHOLE_FACTOR = 4
#: Bytes of a message from a server that sends the whole when asked for a part.
WHOLE_BYTES = 64_000_000
#: Characters of a UID set in one command: some servers refuse lines over 1,000 (RFC 2683 3.2.1.5).
SET_LENGTH = 900


@dataclass(frozen=True, slots=True)
class Login:
    """Where to connect and as whom. ``secret`` is a password or an OAuth 2 access token."""

    host: str
    port: int
    security: str
    username: str
    auth: str
    secret: str

    def __repr__(self) -> str:
        return f"Login({self.username!r}, {self.host!r}, {self.port}, secret hidden)"


@contextmanager
def connect(login: Login, settings: Settings, seconds: float) -> Iterator["Session"]:
    """An open session for the block.

    Parameters:
      seconds: total time that the whole conversation may take.

    Raises:
      ImapError: of every kind; nothing else comes out of this package.
    """
    imap = _client(login, settings, time.monotonic() + seconds)
    session = Session(imap, settings)
    try:
        if login.security == "starttls":
            start_tls(imap, login, settings)
        offered = imap.capabilities()
        authenticate(imap, login)
        identify(imap, login, offered)
        _enable(imap, login)
        yield session
        session.log_out()
    finally:
        with suppress(Exception):
            imap.shutdown()


def greets(host: str, port: int, settings: Settings, seconds: float) -> None:
    """Return if an IMAP server with a trusted certificate answers there.

    Raises:
      ImapError: none does.
    """
    login = Login(host, port, "tls", "", "password", "")
    _client(login, settings, time.monotonic() + seconds).shutdown()


def _client(login: Login, settings: Settings, deadline: float) -> imapclient.IMAPClient:
    address = reach(login, settings)
    implicit = tls_context(settings.imap_ca_file) if login.security == "tls" else None
    timeout = min(settings.imap_connect_timeout, max(0.1, deadline - time.monotonic()))
    open_socket = functools.partial(_open, login, address, timeout, implicit)
    return greet(login, settings, deadline, open_socket)


def reach(login: Login, settings: Settings) -> str:
    """The address to connect to.

    Raises:
      ImapError: mailpoll may not connect there, or not like this, or the host does not resolve.
    """
    if login.security == "plain" and not settings.imap_allow_plain:
        raise ImapError(
            Fault.TLS, "connections without TLS are off; MAILPOLL_IMAP_ALLOW_PLAIN=yes allows them"
        )
    for value in (login.host, login.username, login.secret):
        if CONTROL.search(value):
            raise ImapError(Fault.REFUSED, "control characters in the host, user name or password")
    return hosts.resolve(login.host, login.port, settings.imap_allowed_networks)


def greet(
    login: Login, settings: Settings, deadline: float, open_socket: Callable[[], socket.socket]
) -> imapclient.IMAPClient:
    """Read the greeting and the first capabilities on a socket that is connected then.

    Parameters:
      deadline: ``time.monotonic()`` value at which the whole conversation must be over.

    Raises:
      ImapError: no IMAP server, or one that does not want us now.
    """
    with _translated(login.secret, greeting=True):
        return _Client(
            login.host,
            WireIMAP4(
                open_socket,
                login.host,
                settings.imap_read_timeout,
                deadline,
                settings.part_bytes,
            ),
        )


class _Client(imapclient.IMAPClient):  # type: ignore[misc]
    """``IMAPClient`` over a connection that is already made, without its log of every line."""

    def __init__(self, host: str, connection: WireIMAP4) -> None:
        self._connection = connection
        super().__init__(host, ssl=False)
        # imapclient turns on imaplib's trace, which formats every line and would show passwords.
        connection.debug = 0

    def _create_IMAP4(self) -> WireIMAP4:  # noqa: N802 - the name is imapclient's
        return self._connection


@functools.lru_cache(maxsize=4)
def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """The process's one client context: making it costs 43 ms, a hundred times a poll's own CPU."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def _open(
    login: Login, address: str, timeout: float, context: ssl.SSLContext | None
) -> socket.socket:
    sock = dial(login, address, timeout)
    return secure(login, sock, context) if context else sock


def dial(login: Login, address: str, timeout: float) -> socket.socket:
    """A connection to the address that ``reach`` told.

    Parameters:
      timeout: seconds.

    Raises:
      ImapError: nobody answers there.
    """
    try:
        sock = socket.create_connection((address, login.port), timeout)
    except OSError as error:
        raise ImapError(
            Fault.UNREACHABLE, f"{login.host}:{login.port}: {reason_of(error)}"
        ) from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def secure(login: Login, sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """TLS from the first byte, with a certificate for the host.

    Raises:
      ImapError: there is none, or none that is trusted.
    """
    try:
        return context.wrap_socket(sock, server_hostname=login.host)
    except (ssl.SSLError, OSError) as error:
        sock.close()
        raise ImapError(Fault.TLS, f"{login.host}:{login.port}: {reason_of(error)}") from None


def _enable(imap: imapclient.IMAPClient, login: Login) -> None:
    """Ask for UIDs only (RFC 9586): Yahoo shows the newest 10,000 messages to all others."""
    with _translated(login.secret):
        if imap.has_capability("UIDONLY"):
            with suppress(exceptions.IMAPClientError):
                imap._imap._simple_command("ENABLE", "UIDONLY")


def start_tls(imap: imapclient.IMAPClient, login: Login, settings: Settings) -> None:
    """TLS after the greeting.

    Raises:
      ImapError: the server does not offer it, or has no certificate that is trusted.
    """
    connection: WireIMAP4 = imap._imap
    if connection.state == "AUTH":
        raise ImapError(Fault.TLS, "the server greets with PREAUTH, which leaves no room for TLS")
    with _translated(login.secret):
        if not imap.has_capability("STARTTLS"):
            raise ImapError(Fault.TLS, "the server does not offer STARTTLS")
        connection.secure(tls_context(settings.imap_ca_file))
    imap._cached_capabilities = None


def authenticate(imap: imapclient.IMAPClient, login: Login) -> None:
    """Log in, unless the server greeted with PREAUTH.

    Raises:
      ImapError: refused; the kind says why.
    """
    if imap._imap.state == "AUTH":
        return
    with _translated(login.secret):
        _give_secret(imap, login)
    # Servers offer more to those who have logged in.
    imap._cached_capabilities = None


def _give_secret(imap: imapclient.IMAPClient, login: Login) -> None:
    try:
        if login.auth == "oauth2":
            _bearer(imap, login)
        elif login.username.isascii() and login.secret.isascii():
            # imaplib quotes the password only; a user name may hold blanks as well.
            imap.login(imap._imap._quote(login.username), login.secret)
        else:
            imap.plain_login(login.username, login.secret)
    except exceptions.LoginError as error:
        # A BYE during the login says nothing about the password, though imapclient raises the same.
        ended = isinstance(error.__context__, exceptions.IMAPClientAbortError)
        fault = Fault.CONNECTION_LOST if ended else Fault.AUTH_FAILED
        raise refusal(_scrub(str(error), login.secret), fault) from None


def identify(imap: imapclient.IMAPClient, login: Login, offered: Sequence[bytes]) -> str | None:
    """Say who we are (RFC 2971) where that is offered or known to be demanded.

    A server that does not like it is polled all the same.

    Parameters:
      offered: capabilities before the login; some servers name ID only then.

    Returns:
      The server's answer, "" if it gives none; ``None`` when nothing was said.

    Raises:
      ImapError: the connection ended.
    """
    preset = providers.preset_of(login.host)
    demanded = preset is not None and preset.demands_id
    with _translated(login.secret):
        if not (demanded or b"ID" in offered or imap.has_capability("ID")):
            return None
        return _exchange_names(imap._imap)


def _exchange_names(connection: Any) -> str:
    words = " ".join(connection._quote(word) for pair in IDENTITY.items() for word in pair)
    try:
        kind, _ = connection._simple_command("ID", f"({words})")
        _, lines = connection._untagged_response(kind, [None], "ID")
    except exceptions.IMAPClientAbortError:
        raise
    except exceptions.IMAPClientError:
        return ""
    line = lines[-1] if kind == "OK" and lines else None
    return line.decode("utf-8", "replace") if isinstance(line, bytes) else ""


def _bearer(imap: imapclient.IMAPClient, login: Login) -> None:
    """Log in with an access token: XOAUTH2 where it is offered, else OAUTHBEARER (RFC 7628).

    XOAUTH2 is Google's (https://developers.google.com/workspace/gmail/imap/xoauth2-protocol), and
    Microsoft has nothing else. Both tell a refusal in a challenge that wants an answer before the
    NO comes: an empty one, or 0x01 for OAUTHBEARER.
    """
    offered = imap.capabilities()
    bearer = f"auth=Bearer {login.secret}\x01\x01"
    if b"AUTH=XOAUTH2" in offered or b"AUTH=OAUTHBEARER" not in offered:
        answers = iter((f"user={login.username}\x01{bearer}", ""))
        imap.sasl_login("XOAUTH2", lambda _: next(answers, None))
    else:
        name = login.username.replace("=", "=3D").replace(",", "=2C")
        answers = iter((f"n,a={name},\x01{bearer}", "\x01"))
        imap.sasl_login("OAUTHBEARER", lambda _: next(answers, None))


@contextmanager
def _translated(secret: str, *, greeting: bool = False) -> Iterator[None]:
    """Let only ``ImapError`` out, and no word of the secret, should the server echo it.

    Parameters:
      greeting: nothing but the server's first words is being read.
    """
    try:
        yield
    except exceptions.IMAPClientAbortError as error:
        text = _scrub(str(error), secret)
        nonsense = "unexpected response" in text
        fault = Fault.PROTOCOL if nonsense else Fault.CONNECTION_LOST
        raise refusal(text, fault, greeting=greeting) from None
    except exceptions.IMAPClientError as error:
        text = _scrub(str(error), secret)
        # The only greeting that is refused in words is BYE.
        fault = Fault.CONNECTION_LOST if greeting else Fault.REFUSED
        raise refusal(text, fault, greeting=greeting) from None
    except (OSError, EOFError) as error:
        raise ImapError(Fault.CONNECTION_LOST, str(error)) from None
    except (ValueError, IndexError, TypeError, AssertionError, RecursionError) as error:
        raise ImapError(Fault.PROTOCOL, f"{type(error).__name__} in the server's answer") from None


def _scrub(text: str, secret: str) -> str:
    """Also where the secret is quoted, as in the command, and where ``imaplib`` shows bytes."""
    quoted = secret.replace("\\", "\\\\").replace('"', '\\"')
    shown = [form.replace("\\", "\\\\") for form in (quoted, secret)]
    forms = {*shown, *(form.replace("'", "\\'") for form in shown), quoted, secret} - {""}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "…")
    return text


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a message; ``last`` when nothing comes after it."""

    data: bytes
    last: bool


def _merge(found: dict[int, Fetched], answer: Fetched) -> None:
    """Servers may spread one message over several answers; what came first counts."""
    known = found.setdefault(answer.uid or 0, answer)
    known.size = answer.size if known.size is None else known.size
    known.internal_date = known.internal_date or answer.internal_date
    known.email_id = known.email_id or answer.email_id


class Session:
    """Commands of an authenticated connection. Every method may raise ``ImapError``."""

    def __init__(self, imap: imapclient.IMAPClient, settings: Settings) -> None:
        self._imap = imap
        self._settings = settings
        #: The text of the last command's OK.
        self._completion = b""

    @property
    def _connection(self) -> WireIMAP4:
        return self._imap._imap  # type: ignore[no-any-return]

    def while_reading(self, call: Callable[[], None]) -> None:
        """Have ``call`` called whenever bytes come in, however slowly."""
        self._connection.wire.while_reading = call

    def supports(self, capability: str) -> bool:
        with _translated(""):
            return bool(self._imap.has_capability(capability))

    def list_folders(self) -> tuple[list[Listed], dict[bytes, Status]]:
        """All folders, and the status of each where one command can tell both (RFC 5819)."""
        folders: list[Listed] = []
        statuses: dict[bytes, Status] = {}
        line = b'LIST "" "*"'
        if self.supports("LIST-STATUS"):
            line += b" RETURN (STATUS (UIDNEXT UIDVALIDITY MESSAGES))"
        for name, words in self._untagged(line):
            if name == b"LIST":
                found = responses.listed(words)
                if found:
                    folders.append(found)
            elif name == b"STATUS" and len(words) > 1 and isinstance(words[1], list):
                statuses[words[0]] = responses.status(words[1])
        return folders, statuses

    def statuses(self, wire_names: Sequence[bytes], *, sizes: bool = False) -> dict[bytes, Status]:
        """The status of each folder, many commands sent before the first answer is read.

        Parameters:
          sizes: ask for the bytes of each too, of servers that support ``STATUS=SIZE``.
        """
        items = b" (UIDNEXT UIDVALIDITY MESSAGES%b)" % (b" SIZE" if sizes else b"")
        found: dict[bytes, Status] = {}
        for start in range(0, len(wire_names), PIPELINE):
            tags = [
                self._send(b"STATUS " + quote(name) + items)
                for name in wire_names[start : start + PIPELINE]
            ]
            for tag in tags:
                with suppress(_Refused):
                    for name, words in self._answers(tag):
                        if name == b"STATUS" and len(words) > 1 and isinstance(words[1], list):
                            found[words[0]] = responses.status(words[1])
        return found

    def examine(self, wire_name: bytes) -> Status:
        """Open a folder read-only.

        Raises:
          ImapError: ``REFUSED`` when it cannot be opened, for instance because it is gone.
        """
        found = Status()
        for name, words in self._untagged(b"EXAMINE " + quote(wire_name)):
            if name.isdigit() and words and words[0] == b"EXISTS":
                found.messages = int(name)
            elif name == b"OK" and len(words) > 1 and isinstance(words[0], bytes):
                value = (
                    responses.number(words[1].rstrip(b"]")) if isinstance(words[1], bytes) else None
                )
                if words[0].upper() == b"[UIDVALIDITY":
                    found.uidvalidity = value or None
                elif words[0].upper() == b"[UIDNEXT":
                    found.uidnext = value or None
        return found

    def highest(self) -> int:
        """The highest UID of the open folder, 0 when it is empty."""
        return max((a.uid or 0 for a in self._fetch(b"UID FETCH * (UID)")), default=0)

    def uids(self, first: int, last: int | None) -> list[int]:
        """The UIDs from ``first`` to ``last`` that the server lists, ascending.

        Parameters:
          last: ``None`` means the highest. Answers outside the range are dropped: ``n:*`` also
            gives the last message when it is below ``n`` (RFC 9051, 9, seq-range).
        """
        return sorted(self._paged(b"(UID)", first, last))

    def compact_uids(self, first: int, last: int) -> list[int]:
        """The same in one short line, from servers that support ``ESEARCH`` (RFC 4731)."""
        found: list[int] = []
        for name, words in self._untagged(b"UID SEARCH RETURN (ALL) UID %d:%d" % (first, last)):
            if name == b"ESEARCH":
                found += responses.searched(words, last)
        return sorted({uid for uid in found if first <= uid <= last})

    def _facts(self, sizes: bool) -> bytes:
        items = [b"UID", b"INTERNALDATE"]
        if sizes:
            items.insert(1, b"RFC822.SIZE")
        if self.supports("OBJECTID"):
            items.append(b"EMAILID")
        elif self.supports("X-GM-EXT-1"):
            items.append(b"X-GM-MSGID")
        return b"(" + b" ".join(items) + b")"

    def scan(self, first: int, last: int | None, *, sizes: bool = True) -> list[Fetched]:
        """UID, size, arrival and content's name of the messages of a range, in UID order.

        Parameters:
          sizes: ``False`` leaves them out, over which some servers break.
        """
        found = self._paged(self._facts(sizes), first, last)
        return [found[uid] for uid in sorted(found)]

    def scan_set(self, uids: Sequence[int], *, sizes: bool = True) -> list[Fetched]:
        """The same of these messages; those that the server leaves out are absent."""
        wanted = set(uids)
        found: dict[int, Fetched] = {}
        for chosen in uid_sets(uids):
            for answer in self._fetch(b"UID FETCH " + chosen + b" " + self._facts(sizes)):
                if answer.uid in wanted:
                    _merge(found, answer)
        return [found[uid] for uid in sorted(found)]

    def _paged(self, items: bytes, first: int, last: int | None) -> dict[int, Fetched]:
        """FETCH a range, also from servers that answer for so many messages at once only.

        MESSAGELIMIT (RFC 9738) says that an answer was cut; what is left lies below or above it.
        """
        found: dict[int, Fetched] = {}
        ranges = [(first, last)]
        while ranges:
            low, high = ranges.pop()
            end = b"*" if high is None else str(high).encode()
            got: dict[int, Fetched] = {}
            for answer in self._fetch(b"UID FETCH %d:%s " % (low, end) + items):
                if answer.uid and answer.uid >= low and (high is None or answer.uid <= high):
                    _merge(got, answer)
            found |= got
            if got and b"[MESSAGELIMIT" in self._completion.upper():
                below, above = min(got) - 1, max(got) + 1
                if below >= low:
                    ranges.append((low, below))
                if high is None or above <= high:
                    ranges.append((above, high))
        return found

    def bodies(self, uids: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Whole messages, as they come; a UID that the server leaves out is left out here.

        Answers may be spread over several lines, doubled, or belong to other messages
        (RFC 9051, 7.5.2): only the first body of a UID that was asked for counts.
        """
        wanted = set(uids)
        limit = self._settings.part_bytes * WHOLE_FACTOR
        for chosen in uid_sets(uids):
            for answer in self._fetch(b"UID FETCH " + chosen + b" (UID BODY.PEEK[])", limit):
                if answer.uid in wanted and answer.body is not None:
                    wanted.discard(answer.uid)
                    yield answer.uid, answer.body

    def headers(self, uids: Sequence[int]) -> dict[int, bytes]:
        """The header sections of these messages, each with the empty line that ends it."""
        wanted = set(uids)
        found: dict[int, bytes] = {}
        for chosen in uid_sets(uids):
            line = b"UID FETCH " + chosen + b" (UID BODY.PEEK[HEADER])"
            for answer in self._fetch(line, self._settings.part_bytes):
                if answer.uid in wanted and answer.body is not None:
                    found.setdefault(answer.uid, answer.body)
        return found

    def part(self, uid: int, offset: int, size: int) -> Part | None:
        """Up to ``size`` bytes of a message from ``offset``; ``None`` when the server sends none.

        Raises:
          ImapError: ``PROTOCOL`` when the server answers with another part than was asked for.
        """
        line = b"UID FETCH %d (UID BODY.PEEK[]<%d.%d>)" % (uid, offset, size)
        found: Part | None = None
        for answer in self._fetch(line, min(WHOLE_BYTES, self._settings.max_message_bytes)):
            if answer.uid != uid or answer.body is None or found is not None:
                continue
            whole = answer.origin is None and offset == 0
            if not whole and (answer.origin != offset or len(answer.body) > size):
                raise ImapError(
                    Fault.PROTOCOL, "the server ignores which part of a message is asked"
                )
            # Without an origin it is the whole message, as servers answer that know no parts.
            found = Part(answer.body, whole or len(answer.body) < size)
        return found

    def log_out(self) -> None:
        """Say good-bye without waiting for the answer."""
        with suppress(ImapError):
            self._send(b"LOGOUT")

    def _fetch(self, line: bytes, limit: int = 0) -> Iterator[Fetched]:
        for name, words in self._untagged(line, limit):
            if not name.isdigit() or len(words) < 2 or not isinstance(words[1], list):
                continue
            kind = words[0].upper() if isinstance(words[0], bytes) else b""
            if kind == b"FETCH":
                yield responses.fetch(words[1])
            elif kind == b"UIDFETCH":  # RFC 9586: the number is the UID
                answer = responses.fetch(words[1])
                answer.uid = responses.number(name)
                yield answer

    def _untagged(self, line: bytes, limit: int = 0) -> Iterator[tuple[bytes, list[Any]]]:
        tag = self._send(line)
        try:
            yield from self._answers(tag, limit)
        except _Refused as refused:
            raise refusal(refused.text, Fault.REFUSED) from None

    def _send(self, line: bytes) -> bytes:
        tag: bytes = self._connection._new_tag()  # type: ignore[attr-defined]
        self._connection.send(tag + b" " + line + b"\r\n")
        return tag

    def _answers(self, tag: bytes, limit: int = 0) -> Iterator[tuple[bytes, list[Any]]]:
        """The untagged answers up to the command's end, as (first word, other words).

        Parameters:
          limit: bytes of one literal; 0 when no body was asked for.

        Raises:
          _Refused: the command ended with NO or BAD.
        """
        seen = 0
        for _ in range(ANSWER_LINES):
            pieces = self._response(limit or ANSWER_BYTES)
            head = pieces[0]
            assert isinstance(head, bytes)
            seen += len(head)
            if not limit and seen > ANSWER_BYTES:
                break
            if head.startswith(b"* "):
                first, _, rest = head[2:].strip().partition(b" ")
                word = first.upper()
                if word == b"BYE":
                    error = refusal(rest.decode("utf-8", "replace"), Fault.CONNECTION_LOST)
                    error.ended = True
                    raise error
                if word in (b"OK", b"NO", b"BAD"):
                    yield word, rest.split(b" ")
                else:
                    yield word, responses.tokens([rest, *pieces[1:]])
            elif head[: len(tag) + 1].upper() == tag.upper() + b" ":
                verdict, _, text = head[len(tag) :].strip().partition(b" ")
                if verdict.upper() != b"OK":
                    raise _Refused(text.decode("utf-8", "replace"))
                self._completion = text
                return
        raise ImapError(Fault.PROTOCOL, "the answer to one command does not end")

    def _response(self, limit: int) -> list[bytes | Literal]:
        """One whole response: text and the literals in it."""
        wire = self._connection.wire
        pieces: list[bytes | Literal] = []
        while True:
            line = wire.readline()
            if pieces and not line.strip() and responses.unclosed(pieces):
                continue  # some servers put an empty line after a literal (python/cpython#88574)
            literal = LITERAL.search(line)
            pieces.append(line[: literal.start()] if literal else line)
            if not literal:
                return pieces
            size = int(literal[1])
            if size > limit:
                raise ImapError(Fault.PROTOCOL, f"the server announces {size} bytes of text")
            pieces.append(Literal(wire.read(size)))


class _Refused(Exception):
    """A command that ended with NO or BAD."""

    def __init__(self, text: str) -> None:
        self.text = text


def quote(name: bytes) -> bytes:
    """A folder name as an IMAP quoted string.

    Raises:
      ImapError: the name holds CR, LF or NUL, which would end the command.
    """
    if any(byte in name for byte in (b"\r", b"\n", b"\0")):
        raise ImapError(Fault.PROTOCOL, "a folder's name holds a line end")
    return b'"' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def uid_set(uids: Sequence[int]) -> bytes:
    """UIDs as an ascending set with ranges: ``1:3,7``."""
    ranges: list[list[int]] = []
    for uid in sorted(uids):
        if ranges and uid == ranges[-1][1] + 1:
            ranges[-1][1] = uid
        else:
            ranges.append([uid, uid])
    return ",".join(str(a) if a == b else f"{a}:{b}" for a, b in ranges).encode()


def uid_sets(uids: Sequence[int]) -> Iterator[bytes]:
    """The same as sets of at most ``SET_LENGTH`` bytes each."""
    ranges: list[bytes] = []
    length = 0
    for one in uid_set(uids).split(b","):
        if ranges and length + len(one) + 1 > SET_LENGTH:
            yield b",".join(ranges)
            ranges, length = [], 0
        ranges.append(one)
        length += len(one) + 1
    if uids:
        yield b",".join(ranges)
