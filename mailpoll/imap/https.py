"""One HTTPS request to a checked address, bounded in time and size.

For what a login needs beside IMAP: OAuth 2 token servers and autoconfig files. Hosts go through
the same check as IMAP hosts, and redirects are not followed.
"""

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlencode, urlsplit

import urllib3
from urllib3.connection import HTTPSConnection

from .. import __version__, turns
from ..settings import Settings
from . import hosts
from .connection import tls_context
from .errors import Fault, ImapError

#: Bytes of an answer; token answers and autoconfig files have a few thousand.
LIMIT = 200_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    status: int
    body: bytes


def request(
    url: str, settings: Settings, seconds: float, form: Mapping[str, str] | None = None
) -> Answer:
    """GET ``url``, or POST ``form`` to it.

    Parameters:
      seconds: for all of it, however slowly the server sends.

    Raises:
      ImapError: the host is not allowed, does not answer, or not over trusted TLS.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https" or not host:
        raise ImapError(Fault.TLS, f"{url} should be an https:// address")
    port = parts.port or 443
    address = hosts.resolve(host, port, settings.imap_allowed_networks)
    connection = HTTPSConnection(
        address,
        port,
        timeout=min(seconds, settings.imap_connect_timeout),
        server_hostname=host,
        ssl_context=tls_context(settings.imap_ca_file),
    )
    with turns.waiting(), _bounded(connection, seconds), _translated(f"{host}:{port}"):
        _send(connection, parts, form)
        response = connection.getresponse()
        return Answer(response.status, _read(response, seconds))


def _send(connection: HTTPSConnection, parts: SplitResult, form: Mapping[str, str] | None) -> None:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"Host": parts.netloc, "User-Agent": f"mailpoll/{__version__}"}
    if form is None:
        connection.request("GET", target, headers=headers, preload_content=False)
        return
    headers |= {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    body = urlencode(form).encode()
    connection.request("POST", target, body, headers, preload_content=False)


def _read(response: urllib3.HTTPResponse, seconds: float) -> bytes:
    end = time.monotonic() + seconds
    body = b""
    while chunk := response.read1(LIMIT):
        body += chunk
        if len(body) > LIMIT or time.monotonic() > end:
            raise ImapError(Fault.PROTOCOL, f"an answer of more than {LIMIT} bytes")
    return body


@contextmanager
def _bounded(connection: HTTPSConnection, seconds: float) -> Iterator[None]:
    """Cut the connection when the time is over: a server may send a byte now and then for ever."""

    def cut() -> None:
        with suppress(OSError, AttributeError, TypeError):
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)  # type: ignore[arg-type]

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        connection.close()


@contextmanager
def _translated(place: str) -> Iterator[None]:
    try:
        yield
    except urllib3.exceptions.SSLError as error:
        raise ImapError(Fault.TLS, f"{place}: {error}") from None
    except (TimeoutError, urllib3.exceptions.TimeoutError):
        raise ImapError(Fault.TIMED_OUT, place) from None
    except urllib3.exceptions.NewConnectionError:
        raise ImapError(Fault.UNREACHABLE, place) from None
    except (OSError, urllib3.exceptions.HTTPError, ValueError) as error:
        raise ImapError(Fault.CONNECTION_LOST, f"{place}: {type(error).__name__}") from None
