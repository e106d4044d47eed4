"""Who may ask: a bearer token, or the same token as the password of HTTP Basic for browsers."""

import base64
import binascii
import hmac
from typing import Any
from urllib.parse import urlsplit

import falcon

#: All that answers without a token.
OPEN = frozenset(("/healthz",))
#: Basic first: of a line with several challenges Chromium reads the first only, and asks for a
#: password only if that is one it knows.
CHALLENGE = 'Basic realm="mailpoll", charset="UTF-8", Bearer realm="mailpoll"'
UNSAFE = frozenset(("POST", "PUT", "PATCH", "DELETE"))


class Authentication:
    """Falcon middleware. Tokens are compared in constant time.

    Parameters:
      tokens: any of them opens everything.
    """

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = [token.encode() for token in tokens]

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Refuse a request without a valid token, before its route is even looked up."""
        resp.set_header("X-Content-Type-Options", "nosniff")
        resp.set_header("Cache-Control", "no-store")
        if req.path in OPEN:
            return
        scheme, _, value = (req.auth or "").partition(" ")
        if not self._valid(scheme.lower(), value.strip()):
            raise falcon.HTTPUnauthorized(
                description="give a token: Authorization: Bearer …",
                headers={"WWW-Authenticate": CHALLENGE},
            )
        # A browser sends Basic credentials by itself, also from another site's form (CWE-352).
        if scheme.lower() == "basic" and req.method in UNSAFE and not _same_origin(req):
            raise falcon.HTTPForbidden(description="the request comes from another site")

    def _valid(self, scheme: str, value: str) -> bool:
        if scheme == "bearer":
            given = value.encode()
        elif scheme == "basic":
            given = _basic_password(value)
        else:
            return False
        matches = [hmac.compare_digest(given, token) for token in self._tokens]
        return any(matches)


def _basic_password(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def _same_origin(req: falcon.Request) -> bool:
    origin: Any = req.get_header("Origin") or req.get_header("Referer")
    try:
        return bool(origin) and urlsplit(origin).netloc == req.netloc
    except ValueError:
        return False
