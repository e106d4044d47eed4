"""Who may ask for what: a token and its scope, and how wrong tokens are slowed down.

A token comes as a bearer token, as the password of HTTP Basic, in the console's login form, or
sealed in the cookie that the form gives (``sessions.py``). Each responder declares the scope that
it needs with ``needs``; one that forgot it is for administrators.
"""

import base64
import binascii
import hmac
import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import falcon
import peewee
import structlog
from playhouse.pool import MaxConnectionsExceeded

from .. import api_keys, audit
from ..models import Scope
from ..settings import Network, Settings
from . import problems, sessions

log = structlog.get_logger()

#: All that answers without a token.
OPEN = frozenset(("/healthz", *sessions.RETURNS))
#: Basic first: of a line with several challenges Chromium reads the first only, and asks for a
#: password only if that is one it knows.
CHALLENGE = 'Basic realm="mailpoll", charset="UTF-8", Bearer realm="mailpoll"'
UNSAFE = frozenset(("POST", "PUT", "PATCH", "DELETE"))

#: Wrong tokens that a client may give within so many seconds.
WRONG_TOKENS, WINDOW = 30, 60
#: Failed logins within that time that the audit log takes, over all clients.
NOTED = 60
#: Clients that are remembered; an attacker with more addresses only loses the oldest.
CLIENTS = 10_000

Responder = TypeVar("Responder", bound=Callable[..., Any])


def needs(scope: Scope) -> Callable[[Responder], Responder]:
    """Declare what a key must be allowed to do, to call a responder."""

    def declare(responder: Responder) -> Responder:
        responder.scope = scope  # type: ignore[attr-defined]
        return responder

    return declare


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose token a request came with, and what that opens."""

    name: str
    scope: Scope


@dataclass(frozen=True, slots=True, repr=False)
class Given:
    """A token as it came.

    Parameters:
      by_itself: a browser sends it by itself, also from another site's form (CWE-352).
      counts: whether it counts as a guess when it is wrong.
    """

    token: str
    by_itself: bool
    counts: bool = True


def require(req: falcon.Request, needed: Scope) -> None:
    """Refuse a caller whose key has not this scope.

    Raises:
      falcon.HTTPForbidden: names both scopes.
    """
    caller: Caller = req.context.caller
    if not caller.scope.includes(needed):
        raise falcon.HTTPForbidden(
            description=f"this needs a key of the scope {needed}; {caller.name} has {caller.scope}"
        )


class Authentication:
    """Falcon middleware.

    Parameters:
      config: its tokens open everything.
    """

    def __init__(self, config: Settings) -> None:
        self._tokens = [api_keys.digest(token) for token in config.require_tokens()]
        self._proxies = config.trusted_proxies
        self._wrong = Counter(CLIENTS)
        self._noted = Counter(1)

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Refuse a request without a valid token, before its route is even looked up."""
        resp.set_header("X-Content-Type-Options", "nosniff")
        resp.set_header("Cache-Control", "no-store")
        client = client_address(req, self._proxies)
        request_id = str(resp.get_header(problems.REQUEST_ID))
        audit.act_as(audit.Origin(audit.NOBODY, request_id, client))
        req.context.https = is_https(req, self._proxies)
        if req.path in OPEN or req.path.startswith(sessions.ASSETS):
            return
        given = _given(req)
        caller = self._caller(given.token) if given else None
        if given is None or caller is None:
            if given is not None and given.counts:
                self._count(client)
            sessions.challenge(req, resp, CHALLENGE)
            return
        if given.by_itself and req.method in UNSAFE and not _same_origin(req):
            raise falcon.HTTPForbidden(description="the request comes from another site")
        req.context.caller, req.context.token = caller, given.token
        req.context.still_valid = lambda: self._caller(given.token) is not None
        audit.act_as(audit.Origin(caller.name, request_id, client))

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: Any, params: Any
    ) -> None:
        """Refuse a caller whose key is not for this responder."""
        responder = getattr(resource, f"on_{req.method.lower()}", None)
        if responder is not None and req.path not in OPEN:
            require(req, getattr(responder, "scope", Scope.ADMIN))

    def _caller(self, token: str) -> Caller | None:
        # Hashes, and all of them, so that the time does not tell how near a guess was to which.
        given = api_keys.digest(token)
        matches = [hmac.compare_digest(given, known) for known in self._tokens]
        if any(matches):
            return Caller(audit.BOOTSTRAP, Scope.ADMIN)
        key = api_keys.of_token(token)
        return Caller(key.name, Scope(key.scope)) if key else None

    def _count(self, client: str) -> None:
        """Count a wrong token, and note the first and the last that are let through.

        Raises:
          falcon.HTTPTooManyRequests: there were too many. A right token is looked at before, so
            that nobody can lock out those who share an address.
        """
        count, seconds = self._wrong.add(network_of(client))
        if count == 1:
            self._note("login.failed")
        if count == WRONG_TOKENS + 1:
            log.warning("too many wrong tokens", client=client)
            self._note("login.blocked")
        if count > WRONG_TOKENS:
            raise falcon.HTTPTooManyRequests(
                description="too many wrong tokens", headers={"Retry-After": str(seconds)}
            )

    def _note(self, action: str) -> None:
        """Write to the audit log, of which nobody can write much; a refusal needs no log."""
        if self._noted.add("all")[0] > NOTED:
            return
        with suppress(peewee.PeeweeException, MaxConnectionsExceeded):
            audit.record(action)


class Counter:
    """Counts events by name within a window of time, which begins with the first.

    Parameters:
      names: how many are remembered; the oldest is forgotten first.
    """

    def __init__(self, names: int) -> None:
        self._names = names
        self._found: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, name: str) -> tuple[int, int]:
        """Count one more; how many that makes, and the seconds until they are forgotten."""
        moment = time.monotonic()
        with self._lock:
            count, end = self._found.pop(name, (0, 0.0))
            if end <= moment:
                count, end = 0, moment + WINDOW
            self._found[name] = (count + 1, end)
            if len(self._found) > self._names:
                self._found.popitem(last=False)
        return count + 1, int(end - moment) + 1


def client_address(req: falcon.Request, proxies: list[Network]) -> str:
    """The address that a request comes from.

    ``X-Forwarded-For`` counts as far as trusted proxies wrote it: from its end, to the first
    address that is none of them. What stands before that, anyone can have written.
    """
    address = req.remote_addr
    hops = (req.get_header("X-Forwarded-For") or "").split(",")
    while hops and _within(address, proxies):
        try:
            address = str(ipaddress.ip_address(hops.pop().strip()))
        except ValueError:
            break
    return address


def is_https(req: falcon.Request, proxies: list[Network]) -> bool:
    """Whether the client speaks TLS, with the proxy before this process if that is trusted."""
    forwarded = _within(req.remote_addr, proxies) and req.get_header("X-Forwarded-Proto")
    return "https" in (req.scheme, forwarded)


def _within(address: str, networks: list[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in networks)


def network_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 address."""
    with suppress(ValueError):
        parsed = ipaddress.ip_address(address)
        if parsed.version == 6:
            if parsed.ipv4_mapped:  # as a server that listens to both sees IPv4
                return str(parsed.ipv4_mapped)
            return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
    return address


def _given(req: falcon.Request) -> Given | None:
    scheme, _, value = (req.auth or "").partition(" ")
    if scheme.lower() == "bearer":
        return Given(value.strip(), by_itself=False)
    if scheme.lower() == "basic":
        return Given(_basic_password(value.strip()), by_itself=True)
    if req.auth:
        return Given("", by_itself=False)
    if (posted := sessions.posted_token(req)) is not None:
        return Given(posted, by_itself=True)
    if (sealed := sessions.token_of(req)) is not None:
        return Given(sealed, by_itself=True, counts=False)
    return None


def _basic_password(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2].decode()
    except (binascii.Error, ValueError):
        return ""


def _same_origin(req: falcon.Request) -> bool:
    if req.get_header("Sec-Fetch-Site") not in (None, "same-origin", "none"):
        return False
    origin: Any = req.get_header("Origin") or req.get_header("Referer")
    try:
        return bool(origin) and urlsplit(origin).netloc == req.netloc
    except ValueError:
        return False
