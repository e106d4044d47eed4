"""One HTTP request to a checked address, bounded in time and size.

For what a login needs beside IMAP, OAuth 2 token servers and autoconfig files, and for webhooks.
Hosts go through the same check as IMAP hosts, and redirects are not followed.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlencode, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from .. import __version__, turns
from ..settings import Network, Settings
from . import hosts
from .connection import tls_context
from .errors import Fault, ImapError

#: Bytes of an answer; token answers and autoconfig files have a few thousand.
LIMIT = 200_000
#: Bytes that are read of a webhook's answer, whose status says it all.
BEGINNING = 8_000

Read = Callable[[urllib3.HTTPResponse, float], bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    status: int
    body: bytes
    retry_after: str


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
    if parts.scheme != "https" or not parts.hostname:
        raise ImapError(Fault.TLS, f"{url} should be an https:// address")
    address = _resolve(parts, settings, None)
    if form is None:
        return _exchange(parts, address, settings, seconds, "GET", None, {}, _whole)
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    body = urlencode(form).encode()
    return _exchange(parts, address, settings, seconds, "POST", body, headers, _whole)


def post(
    url: str, settings: Settings, seconds: float, body: bytes, headers: Mapping[str, str]
) -> Answer:
    """POST ``body`` to a webhook: over https, inside the team's own networks also over http.

    Of the answer's body only the beginning is read.

    Raises:
      ImapError: as ``request`` does.
    """
    parts = urlsplit(url)
    own = settings.webhook_allowed_networks
    address = _resolve(parts, settings, own)
    inside = any(ipaddress.ip_address(address) in network for network in own)
    if parts.scheme != "https" and not inside:
        raise ImapError(Fault.TLS, "plain http goes to MAILPOLL_WEBHOOK_ALLOWED_NETWORKS only")
    return _exchange(parts, address, settings, seconds, "POST", body, headers, _beginning)


def _authority(parts: SplitResult) -> str:
    """Host and port as the URL has them, without what a user and a password may stand before."""
    return parts.netloc.rpartition("@")[2]


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _resolve(parts: SplitResult, settings: Settings, allowed: Sequence[Network] | None) -> str:
    return hosts.resolve(parts.hostname or "", _port(parts), settings, allowed)


def _exchange(
    parts: SplitResult,
    address: str,
    settings: Settings,
    seconds: float,
    method: str,
    body: bytes | None,
    headers: Mapping[str, str],
    read: Read,
) -> Answer:
    timeout = min(seconds, settings.imap_connect_timeout)
    connection = HTTPConnection(address, _port(parts), timeout=timeout)
    if parts.scheme == "https":
        connection = HTTPSConnection(
            address,
            _port(parts),
            timeout=timeout,
            server_hostname=parts.hostname,
            ssl_context=tls_context(settings.imap_ca_file),
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"Host": _authority(parts), "User-Agent": f"mailpoll/{__version__}", **headers}
    place = f"{parts.hostname}:{_port(parts)}"
    with turns.waiting(), bounded(connection, seconds), _translated(place):
        # The answer is not unpacked: a few bytes could become gigabytes (CWE-409).
        how = {"preload_content": False, "decode_content": False}
        connection.request(method, target, body, headers, **how)
        response = connection.getresponse()
        retry_after = response.headers.get("Retry-After", "")
        return Answer(response.status, read(response, seconds), retry_after)


def _beginning(response: urllib3.HTTPResponse, _: float) -> bytes:
    """What comes of a body before it is long enough, ends, or breaks."""
    body = b""
    with suppress(OSError, urllib3.exceptions.HTTPError, http.client.HTTPException):
        while len(body) < BEGINNING and (chunk := response.read1(BEGINNING)):
            body += chunk
    return body


def _whole(response: urllib3.HTTPResponse, seconds: float) -> bytes:
    end = time.monotonic() + seconds
    body = b""
    while chunk := response.read1(LIMIT):
        body += chunk
        if len(body) > LIMIT or time.monotonic() > end:
            raise ImapError(Fault.PROTOCOL, f"an answer of more than {LIMIT} bytes")
    return body


@contextmanager
def bounded(connection: HTTPConnection, seconds: float) -> Iterator[None]:
    """Cut the connection when the time is over: a server may send a byte now and then for ever.

    And again each second: while TLS is agreed on, there is no socket here that could be cut.
    """
    left = threading.Event()

    def cut() -> None:
        pause = seconds
        while not left.wait(pause):
            pause = 1.0
            with suppress(OSError, AttributeError, TypeError):
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)  # type: ignore[arg-type]

    threading.Thread(target=cut, daemon=True).start()
    try:
        yield
    finally:
        left.set()
        connection.close()


@contextmanager
def _translated(place: str) -> Iterator[None]:
    try:
        yield
    except (urllib3.exceptions.SSLError, ssl.SSLError) as error:
        raise ImapError(Fault.TLS, f"{place}: {error}") from None
    except (TimeoutError, urllib3.exceptions.TimeoutError):
        raise ImapError(Fault.TIMED_OUT, place) from None
    except urllib3.exceptions.NewConnectionError:
        raise ImapError(Fault.UNREACHABLE, place) from None
    except (
        *(OSError, ValueError),
        *(urllib3.exceptions.HTTPError, http.client.HTTPException),
    ) as error:
        raise ImapError(Fault.CONNECTION_LOST, f"{place}: {type(error).__name__}") from None
