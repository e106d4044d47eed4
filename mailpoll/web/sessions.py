"""How browsers log in to console and dashboard: a form, and a cookie that holds the token, sealed.

Nothing is kept for a session: each request opens the cookie, and the token in it is looked at like
any other. A revoked key ends its sessions, and any web process knows them all.
"""

import time
from urllib.parse import parse_qs, quote, urlsplit

import falcon

from .. import consent, runtime
from ..crypto import DecryptionError
from .console import render

LOGIN, LOGOUT = "/login", "/logout"
#: Style, script and icon, which the login page needs too: open to all.
ASSETS = render.ASSETS
#: Where providers send browsers back to; open, because the cookie does not come along.
RETURNS = tuple(f"{consent.REDIRECT}{name}" for name in consent.NAMES)
COOKIE = "mailpoll_session"
#: Seconds that a session lasts.
LIFETIME = 8 * 3_600
CONTEXT = "console:session"
#: Bytes of a posted login.
FORM = 4_000
#: What a session opens, by the first part of the path. The API takes no session: whoever finds a
#: way to make a browser ask, asks without a token.
OPENED = frozenset(
    (
        "",
        "accounts",
        "audit",
        "dashboard",
        "deletions",
        "docs",
        "exports",
        "failed",
        "holds",
        "keys",
        "login",
        "logout",
        "messages",
        "openapi.json",
        "search",
        "settings",
        "tasks",
        "threads",
        "webhooks",
    )
)


def posted_token(req: falcon.Request) -> str | None:
    """The token of a login form; ``None`` when the request is no such thing."""
    if req.path != LOGIN or req.method != "POST" or not 0 < (req.content_length or 0) <= FORM:
        return None
    fields = parse_qs(req.bounded_stream.read().decode("ascii", "replace"))
    req.context.login_target = local(fields.get("next", [""])[0])
    return fields.get("token", [""])[0].strip()


def token_of(req: falcon.Request) -> str | None:
    """The token of a session that is not over."""
    if not within(req.path):
        return None
    for value in req.get_cookie_values(COOKIE) or ():
        try:
            end, _, token = runtime.keyring().decrypt(value, CONTEXT).partition(":")
        except DecryptionError:
            continue
        if time.time() < int(end):
            return token
    return None


def within(path: str) -> bool:
    """Whether sessions are for this path."""
    return path.split("/", 2)[1:2] != [] and path.split("/", 2)[1] in OPENED


def wants_page(req: falcon.Request) -> bool:
    """Whether a browser asks for something that it shows to a person."""
    return within(req.path) and "text/html" in (req.get_header("Accept") or "")


def local(target: str) -> str:
    """A path of this site; the overview for anything else (CWE-601)."""
    try:
        parts = urlsplit(target)
    except ValueError:
        return "/"
    plain = target.isascii() and target.isprintable() and "\\" not in target
    here = target.startswith("/") and not target.startswith("//")
    return target if plain and here and not parts.scheme and not parts.netloc else "/"


def begin(req: falcon.Request, resp: falcon.Response, target: str) -> None:
    """Give the browser a session for the token that this request came with."""
    text = f"{int(time.time()) + LIFETIME}:{req.context.token}"
    resp.set_cookie(
        COOKIE,
        runtime.keyring().encrypt(text, CONTEXT),
        max_age=LIFETIME,
        path="/",
        secure=req.context.https,
        http_only=True,
        same_site="Strict",
    )
    resp.status, resp.location = falcon.HTTP_303, target


def end(resp: falcon.Response) -> None:
    """Let the browser forget its session."""
    resp.unset_cookie(COOKIE, path="/")
    resp.status, resp.location = falcon.HTTP_303, LOGIN


def challenge(req: falcon.Request, resp: falcon.Response, schemes: str) -> None:
    """Answer a request without a valid token: with the login form where a browser wants a page.

    Raises:
      falcon.HTTPUnauthorized: anywhere else, with the authentication schemes to use.
    """
    if not wants_page(req):
        raise falcon.HTTPUnauthorized(
            description="give a token: Authorization: Bearer …",
            headers={"WWW-Authenticate": schemes},
        )
    resp.complete = True
    if req.path != LOGIN:
        wanted = req.relative_uri if req.method == "GET" else "/"
        resp.status = falcon.HTTP_303
        resp.location = LOGIN if wanted == "/" else f"{LOGIN}?next={quote(wanted, safe='/')}"
        return
    wrong = req.method == "POST"
    target = getattr(req.context, "login_target", None) or local(req.get_param("next") or "/")
    render.bare(resp, "login.html", target=target, wrong=wrong)
    if wrong:
        resp.status = falcon.HTTP_401
        # Not Basic: the browser would ask for a password before it shows the form.
        resp.set_header("WWW-Authenticate", 'Bearer realm="mailpoll"')
