"""The way to a session: address, socket, TLS, greeting, login, ID. Each step can be walked alone.

``IMAPClient`` speaks here, over our own wire. What comes after the login is in ``session``.
"""

import base64
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
from urllib.parse import quote, quote_plus

import imapclient
from imapclient import exceptions

from .. import __version__, turns
from ..settings import Settings
from . import hosts, providers
from .errors import Fault, ImapError, reason_of, refusal
from .wire import WireIMAP4

#: Long enough to hold a user name and a password.
BASE64 = re.compile(r"[A-Za-z0-9+/]{8,}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: What we say of ourselves (RFC 2971). 163.com and others refuse EXAMINE to those who say nothing.
IDENTITY = {"name": "mailpoll", "version": __version__, "vendor": "mailpoll"}


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


class Client(imapclient.IMAPClient):  # type: ignore[misc]
    """``IMAPClient`` over a connection that is already made, without its log of every line.

    ``secret`` is what must not be kept of a server's words, should it echo them.
    """

    def __init__(self, login: Login, connection: WireIMAP4) -> None:
        self.secret = login.secret
        self._connection = connection
        super().__init__(login.host, ssl=False)
        # imapclient turns on imaplib's trace, which formats every line and would show passwords.
        connection.debug = 0

    def _set_read_timeout(self) -> None:
        """The wire waits for its socket, and must be the only one to."""

    def _create_IMAP4(self) -> WireIMAP4:  # noqa: N802 - the name is imapclient's
        return self._connection


def greets(host: str, port: int, settings: Settings, seconds: float) -> None:
    """Return if an IMAP server with a trusted certificate answers there.

    Raises:
      ImapError: none does.
    """
    login = Login(host, port, "tls", "", "password", "")
    connection_to(login, settings, time.monotonic() + seconds).shutdown()


def connection_to(login: Login, settings: Settings, deadline: float) -> Client:
    """A connection on which the server has greeted; with TLS, when the port asks for it.

    Parameters:
      deadline: ``time.monotonic()`` value at which the whole conversation must be over.

    Raises:
      ImapError: there is none.
    """
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
    return hosts.resolve(login.host, login.port, settings)


def greet(
    login: Login, settings: Settings, deadline: float, open_socket: Callable[[], socket.socket]
) -> Client:
    """Read the greeting and the first capabilities on a socket that is connected then.

    Parameters:
      deadline: ``time.monotonic()`` value at which the whole conversation must be over.

    Raises:
      ImapError: no IMAP server, or one that does not want us now.
    """
    with translated(login.secret, greeting=True):
        return Client(
            login,
            WireIMAP4(open_socket, login.host, settings.imap_read_timeout, deadline),
        )


@functools.lru_cache(maxsize=4)
def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """The process's one client context: making it costs 43 ms, a hundred times a poll's own CPU."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False  # RFC 9525 6.1: only names of the extension count
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def _open(
    login: Login, address: str, timeout: float, context: ssl.SSLContext | None
) -> socket.socket:
    with turns.waiting():
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


def enable(imap: Client, login: Login) -> None:
    """Ask for UIDs only (RFC 9586): Yahoo shows the newest 10,000 messages to all others."""
    with translated(login.secret):
        if imap.has_capability("UIDONLY"):
            with suppress(exceptions.IMAPClientError):
                imap._imap._simple_command("ENABLE", "UIDONLY")


def start_tls(imap: Client, login: Login, settings: Settings) -> None:
    """TLS after the greeting.

    Raises:
      ImapError: the server does not offer it, or has no certificate that is trusted.
    """
    connection: WireIMAP4 = imap._imap
    if connection.state == "AUTH":
        raise ImapError(Fault.TLS, "the server greets with PREAUTH, which leaves no room for TLS")
    with translated(login.secret):
        if not imap.has_capability("STARTTLS"):
            raise ImapError(Fault.TLS, "the server does not offer STARTTLS")
        connection.secure(tls_context(settings.imap_ca_file))
    imap._cached_capabilities = None


def authenticate(imap: Client, login: Login) -> None:
    """Log in, unless the server greeted with PREAUTH.

    Raises:
      ImapError: refused; the kind says why.
    """
    if imap._imap.state == "AUTH":
        return
    with translated(login.secret):
        _give_secret(imap, login)
    # Servers offer more to those who have logged in.
    imap._cached_capabilities = None


def _give_secret(imap: Client, login: Login) -> None:
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
        raise refusal(scrubbed(str(error), login.secret), fault) from None


def identify(imap: Client, login: Login, offered: Sequence[bytes]) -> str | None:
    """Say who we are (RFC 2971) where that is offered or known to be demanded.

    A server that does not like it is polled all the same.

    Parameters:
      offered: capabilities before the login; some servers name ID only then.

    Returns:
      The server's answer, "" if it gives none; ``None`` when nothing was said.

    Raises:
      ImapError: the connection ended.
    """
    with translated(login.secret):
        if not (demands_id(login) or b"ID" in offered or imap.has_capability("ID")):
            return None
        return _exchange_names(imap._imap)


def demands_id(login: Login) -> bool:
    """Whether the provider is known to refuse those who do not say who they are."""
    preset = providers.preset_of(login.host)
    return preset is not None and preset.demands_id


def id_arguments() -> str:
    """What the ID command says of us."""
    return "({})".format(" ".join(f'"{word}"' for pair in IDENTITY.items() for word in pair))


def _exchange_names(connection: Any) -> str:
    try:
        kind, _ = connection._simple_command("ID", id_arguments())
        _, lines = connection._untagged_response(kind, [None], "ID")
    except exceptions.IMAPClientAbortError:
        raise
    except exceptions.IMAPClientError:
        return ""
    line = lines[-1] if kind == "OK" and lines else None
    return line.decode("utf-8", "replace") if isinstance(line, bytes) else ""


def _bearer(imap: Client, login: Login) -> None:
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
def translated(secret: str, *, greeting: bool = False) -> Iterator[None]:
    """Let only ``ImapError`` out, and no word of the secret, should the server echo it.

    Parameters:
      greeting: nothing but the server's first words is being read.
    """
    try:
        yield
    except exceptions.IMAPClientAbortError as error:
        text = scrubbed(str(error), secret)
        nonsense = "unexpected response" in text
        if nonsense and greeting:
            # Not its words: who may add accounts could read the banners of other services.
            raise ImapError(Fault.PROTOCOL, "it does not greet like an IMAP server") from None
        fault = Fault.PROTOCOL if nonsense else Fault.CONNECTION_LOST
        raise refusal(text, fault, greeting=greeting) from None
    except exceptions.IMAPClientError as error:
        text = scrubbed(str(error), secret)
        # The only greeting that is refused in words is BYE.
        fault = Fault.CONNECTION_LOST if greeting else Fault.REFUSED
        raise refusal(text, fault, greeting=greeting) from None
    except (OSError, EOFError) as error:
        raise ImapError(Fault.CONNECTION_LOST, str(error)) from None
    except (ValueError, IndexError, TypeError, AssertionError, RecursionError) as error:
        raise ImapError(Fault.PROTOCOL, f"{type(error).__name__} in the server's answer") from None


def scrubbed(text: str, secret: str) -> str:
    """Take a secret out of a server's words, in every form in which it can echo it.

    As it is, quoted as in the command, shown as ``imaplib`` shows bytes, as in a form, or inside
    the base64 of a SASL answer.
    """
    if not secret:
        return text
    quoted = secret.replace("\\", "\\\\").replace('"', '\\"')
    forms = {secret, quoted}
    forms |= {repr(form.encode())[2:-1] for form in forms}
    forms |= {form.replace("\\", "\\\\") for form in (secret, quoted)}
    forms |= {quote(secret, safe=""), quote_plus(secret)}
    forms |= {form.replace("'", "\\'") for form in forms}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "…")
    return BASE64.sub(lambda found: "…" if _holds(found[0], secret) else found[0], text)


def _holds(encoded: str, secret: str) -> bool:
    whole = encoded[: len(encoded) - (len(encoded) % 4 == 1)]  # six bits are no byte
    return secret.encode() in base64.b64decode(whole + "=" * (-len(whole) % 4))
