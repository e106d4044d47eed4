"""``/accounts/connect``: a mailbox's owner agrees at the provider and comes back (``consent.py``).

What has to be known at the end travels in a sealed cookie, so that any web process can end what
another began. The provider's answer arrives without cookies, which are strict: a page of ours takes
it and posts it, see decision 53.
"""

import hashlib
import hmac
import time
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import falcon
import orjson

from ... import consent, runtime
from ...crypto import DecryptionError
from ...imap import Fault, ImapError, providers
from ...models import Scope
from ...settings import settings
from .. import sessions
from ..auth import needs
from . import forms, render
from .base import Page, go
from .client import Api, Refused

BASE = "/admin/email-accounts"
COOKIE, CONTEXT = "mailpoll_connect", "console:connect"
#: Seconds that the owner has to sign in and agree.
LIFETIME = 600
#: Characters of a cookie that every browser keeps, with its name (RFC 6265, 6.1).
LONGEST = 4_000
#: Characters of a code, or of a state, that are looked at.
LONGEST_CODE = 4_000
#: Who stands behind a host.
PROVIDERS = {"gmail": "google", "microsoft": "microsoft"}


@dataclass(frozen=True, slots=True, repr=False)
class Begun:
    """A sign-in on its way.

    Parameters:
      attempt: that of the provider.
      caller: the hash of the token of whoever began it.
      until: when it is over, in seconds since 1970.
      fields: of the new account, or only the address of the one that is connected again.
      account: that one's id.
    """

    attempt: consent.Attempt
    caller: str
    until: int
    fields: dict[str, Any]
    account: str | None

    def sealed(self) -> str:
        return runtime.keyring().encrypt(orjson.dumps(asdict(self)).decode(), CONTEXT)


class Ended(Exception):
    """A sign-in that led to nothing.

    Parameters:
      words: what happened.
      advice: what to do about it.
      begun: which one it was, where that is known.
    """

    def __init__(
        self, words: str, advice: str, begun: Begun | None = None, status: int = 422
    ) -> None:
        self.words, self.advice, self.begun, self.status = words, advice, begun, status
        super().__init__(words)


def offered() -> list[consent.Provider]:
    """The providers that a new account can be connected with, and what is missing for them."""
    return consent.providers(settings())


def offered_for(account: dict[str, Any]) -> consent.Provider | None:
    """The provider of an account that is there, if it can be used."""
    preset = providers.preset_of(account["host"])
    name = account["oauth_provider"] or PROVIDERS.get(preset.name if preset else "")
    found = [one for one in offered() if one.name == name and not one.missing]
    return found[0] if found else None


def begin(
    req: falcon.Request,
    resp: falcon.Response,
    name: str,
    fields: dict[str, Any],
    account: str | None = None,
) -> None:
    """Answer with the way to the provider.

    The way is a page and no redirect, which the policy of the page with the form would refuse.

    Raises:
      Ended: it cannot be used, or not from here.
    """
    found = [one for one in offered() if one.name == name]
    if not found:
        raise falcon.HTTPBadRequest(description="there is no such provider")
    provider = found[0]
    if provider.missing:
        raise Ended(
            f"Connecting with {provider.title} is not configured.",
            f"Set {' and '.join(provider.missing)}, and start the web processes again.",
        )
    config = settings()
    here = f"{'https' if req.context.https else 'http'}://{req.netloc}".lower()
    if here != config.public_url:
        raise Ended(
            f"{provider.title} would send you back to {config.public_url}, and not to {here}.",
            f"Open the console at {config.public_url}, or let MAILPOLL_PUBLIC_URL be {here}.",
        )
    attempt = consent.Attempt.at(name)
    until = int(time.time()) + LIFETIME
    value = Begun(attempt, _caller(req), until, fields, account).sealed()
    if len(value) > LONGEST:
        raise Ended("These are too many folders to take along.", "Add them afterwards.")
    resp.set_cookie(
        COOKIE,
        value,
        max_age=LIFETIME,
        path=consent.REDIRECT,
        secure=req.context.https,
        http_only=True,
        same_site="Strict",
    )
    target = attempt.address(config, fields["address"])
    render.page(
        req, resp, "connect.html", provider=provider, target=target, address=fields["address"]
    )


def _caller(req: falcon.Request) -> str:
    return hashlib.sha256(f"connect:{req.context.token}".encode()).hexdigest()


class Returned:
    """The provider sends a browser back. It is open: nothing happens here, and nothing is told."""

    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        names = ("code", "state", "error")
        given = {name: (req.get_param(name) or "")[:LONGEST_CODE] for name in names}
        render.bare(resp, "connect_back.html", given=given, action=f"{req.path}/finish")
        # The address holds the code: no later request names it, as "same-origin" would let it.
        resp.set_header("Referrer-Policy", "strict-origin")


class Finish(Page):
    """Change the code into a refresh token, and the token into an account."""

    def __init__(self, app: Any, name: str) -> None:
        super().__init__(app)
        self._name = name

    @needs(Scope.ADMIN)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        form = forms.read(req)
        begun = _begun(req, self._name, form.get("state"))
        # It is over now, whatever comes of it.
        resp.unset_cookie(COOKIE, path=consent.REDIRECT)
        try:
            _check_agreed(begun, form)
            token = _redeemed(begun, form.get("code"))
            account = _saved(self.api(req, resp), begun, token)
        except Refused as error:
            raise _not_saved(begun, error) from None
        go(resp, f"/accounts/{account}", "connected" if begun.account else "added")


def _begun(req: falcon.Request, name: str, state: str) -> Begun:
    """What the browser began.

    Raises:
      Ended: nothing that this could be the answer to.
    """
    again = "Nothing was changed. Begin again, and end it in the same browser and login."
    for value in req.get_cookie_values(COOKIE) or ():
        try:
            found = orjson.loads(runtime.keyring().decrypt(value, CONTEXT))
        except DecryptionError:
            continue
        begun = Begun(**{**found, "attempt": consent.Attempt(**found["attempt"])})
        same = hmac.compare_digest(begun.attempt.state.encode(), state.encode())
        if not same or begun.attempt.provider != name:
            raise Ended("This answer belongs to no sign-in that was begun here.", again)
        if not hmac.compare_digest(begun.caller, _caller(req)):
            raise Ended("This sign-in was begun by somebody else.", again)
        if begun.until < time.time():
            raise Ended(
                f"It took longer than {LIFETIME // 60} minutes.", "Begin again.", begun, 410
            )
        return begun
    raise Ended("This sign-in is over: it was used already, or took too long.", again)


def _check_agreed(begun: Begun, form: forms.Form) -> None:
    error = form.get("error")
    if error == "access_denied":
        raise Ended(
            "The mailbox's owner did not agree.",
            "Nothing was changed. Begin again when they are ready to.",
            begun,
        )
    if error or not form.get("code"):
        known = error if error.isascii() and error.replace("_", "").isalnum() else "no code"
        raise Ended(
            f"The provider ended the sign-in: {known[:60]}.",
            "Look at the client that is registered there: its redirect address, and what it may "
            "ask for. Then begin again.",
            begun,
        )


def _redeemed(begun: Begun, code: str) -> str:
    """The refresh token.

    Raises:
      Ended: there is none, or of another mailbox.
    """
    try:
        given = begun.attempt.redeem(code, settings())
    except ImapError as error:
        raise _not_redeemed(begun, error) from None
    asked = str(begun.fields["address"])
    if given.address and given.address.casefold() != asked.casefold():
        raise Ended(
            f"{given.address} signed in, but {asked} was asked for.",
            f"Nothing was changed. Begin again and sign in as {asked}, or add {given.address}.",
            begun,
        )
    if not given.refresh_token:
        raise Ended(
            "The provider gave no refresh token, without which mailpoll cannot log in later.",
            "Take mailpoll's access away in the settings of the account there, and begin again.",
            begun,
        )
    return given.refresh_token


def _not_redeemed(begun: Begun, error: ImapError) -> Ended:
    advice = {
        Fault.AUTHORISATION_ENDED: "The code was used before, or is too old. Begin again.",
        Fault.OAUTH_CLIENT_REFUSED: "Look at the client's id, secret and redirect address.",
    }
    return Ended(
        f"The provider's token server said no: {error.detail[:300]}.",
        advice.get(error.fault, "Nothing was changed. Begin again in a moment."),
        begun,
    )


def _saved(api: Api, begun: Begun, token: str) -> str:
    """The id of the account that now logs in with the token.

    Raises:
      Refused: it does not.
    """
    secret = {"refresh_token": token, "oauth_provider": begun.attempt.provider}
    if begun.account:
        api.patch(f"{BASE}/{begun.account}", secret)
        return begun.account
    return str(api.post(BASE, begun.fields | secret)["id"])


def _not_saved(begun: Begun, error: Refused) -> Ended:
    advice = "Nothing was changed. Mend that, and begin again."
    if error.status == 409:
        advice = "Nothing was changed. Open that account, and connect it from there."
    elif error.status == 404:
        advice = "It was deleted meanwhile."
    return Ended(f"The account was not saved: {error.detail}.", advice, begun)


class Reconnect(Page):
    """An account that is there already."""

    @needs(Scope.ADMIN)
    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        account = self.api(req, resp).get(f"{BASE}/{account_id}")
        provider = offered_for(account)
        if provider is None:
            raise Ended(
                "This account's provider cannot be connected with from here.",
                "Look at the settings, or give the account a new password.",
            )
        begin(req, resp, provider.name, {"address": account["address"]}, str(account_id))


def _ended(req: falcon.Request, resp: falcon.Response, error: Ended, params: Any) -> None:
    begun = error.begun
    back = f"/accounts/{begun.account}" if begun and begun.account else "/accounts/new"
    render.page(req, resp, "connect_ended.html", error=error, back=back)
    resp.status = error.status


def install(app: "falcon.App[Any, Any]") -> None:
    app.add_error_handler(Ended, _ended)
    app.add_route("/accounts/{account_id:uuid}/connect", Reconnect(app))
    for name, path in zip(consent.NAMES, sessions.RETURNS, strict=True):
        app.add_route(path, Returned())
        app.add_route(f"{path}/finish", Finish(app, name))
