"""A mailbox's owner lets mailpoll in at the provider: OAuth 2's authorization code (RFC 6749, 4.1).

With PKCE (RFC 7636), so that a code is of use to nobody else, and with a ``state`` that whoever
began it must come back with (RFC 6749, 10.12). Each provider has a redirect address of its own, so
that no provider's answer is taken for another's (RFC 9700, 4.4).
"""

import base64
import hashlib
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson

from . import oauth
from .imap import Fault, ImapError
from .imap.https import request
from .settings import TENANT, Settings

#: The providers' names in addresses; a redirect address ends in one of them.
NAMES = ("google", "microsoft", "generic")
#: Where providers send browsers back to, behind the public address.
REDIRECT = "/accounts/connect/"


@dataclass(frozen=True, slots=True)
class Provider:
    """Where a mailbox's owner agrees.

    Parameters:
      url: the authorization endpoint.
      scope: what is asked for: to read mail, and to know whose it is.
      place: the server that its tokens are for, as fields of an account; any, where it is empty.
      missing: variables without which it cannot be used.
    """

    name: str
    title: str
    url: str
    scope: str
    place: dict[str, Any]
    more: dict[str, str]
    missing: tuple[str, ...]


def _server(host: str) -> dict[str, Any]:
    return {"host": host, "port": 993, "security": "tls"}


def provider_of(name: str, config: Settings) -> Provider:
    """A provider of ``NAMES``, as configured.

    Its sources: https://developers.google.com/identity/protocols/oauth2/web-server and
    https://learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow
    """
    tenant = config.oauth_microsoft_tenant
    generic = config.oauth_generic_authorization_url.replace(TENANT, tenant)
    title, url, scope, place, more = {
        "google": (
            "Google",
            "https://accounts.google.com/o/oauth2/v2/auth",
            "https://mail.google.com/ openid email",
            _server("imap.gmail.com"),
            {"access_type": "offline", "prompt": "consent"},
        ),
        "microsoft": (
            "Microsoft",
            f"https://login.microsoftonline.com/{tenant}/oauth2/v2.0/authorize",
            f"{oauth.MICROSOFT_SCOPE} openid email",
            _server("outlook.office365.com"),
            {},
        ),
        "generic": (urlsplit(generic).hostname, generic, config.oauth_generic_scope, {}, {}),
    }[name]
    needed = {
        f"MAILPOLL_OAUTH_{name.upper()}_CLIENT_ID": getattr(config, f"oauth_{name}_client_id"),
        "MAILPOLL_PUBLIC_URL": config.public_url,
    }
    if name == "generic":
        needed["MAILPOLL_OAUTH_GENERIC_TOKEN_URL"] = config.oauth_generic_token_url
    missing = tuple(variable for variable, value in needed.items() if not value)
    return Provider(name, title or "", url, scope, place, more, missing)


def providers(config: Settings) -> list[Provider]:
    """Those that can be offered; any other than the known ones only once its address is set."""
    found = [provider_of(name, config) for name in NAMES]
    return [provider for provider in found if provider.url]


def redirect_address(name: str, config: Settings) -> str:
    """Where a provider sends the browser back to, as it is registered there."""
    return f"{config.public_url}{REDIRECT}{name}"


@dataclass(frozen=True, slots=True, repr=False)
class Attempt:
    """What has to be known of a sign-in from its begin to its end, by mailpoll alone.

    Parameters:
      state: what the provider sends back with its answer.
      verifier: what proves that a code was asked for by us.
    """

    provider: str
    state: str
    verifier: str

    @classmethod
    def at(cls, provider: str) -> "Attempt":
        return cls(provider, secrets.token_urlsafe(32), secrets.token_urlsafe(32))

    def address(self, config: Settings, hint: str) -> str:
        """Where the owner agrees.

        Parameters:
          hint: the mailbox that is meant.
        """
        provider = provider_of(self.provider, config)
        digest = hashlib.sha256(self.verifier.encode()).digest()
        asked = {
            "response_type": "code",
            "client_id": oauth.client_of(self.provider, config).client_id,
            "redirect_uri": redirect_address(self.provider, config),
            "scope": provider.scope,
            "state": self.state,
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
            "login_hint": hint,
            **provider.more,
        }
        sign = "&" if urlsplit(provider.url).query else "?"
        return provider.url + sign + urlencode({n: v for n, v in asked.items() if v})

    def redeem(self, code: str, config: Settings) -> "Consent":
        """Change the code that came back into a refresh token.

        Raises:
          ImapError: as ``oauth.exchange`` does.
        """
        client = oauth.client_of(self.provider, config)
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_address(self.provider, config),
            "client_id": client.client_id,
            "client_secret": client.client_secret,
            "code_verifier": self.verifier,
        }
        given = {name: value for name, value in form.items() if value}
        try:
            answer = request(client.token_url, config, oauth.TIMEOUT, given)
        except ImapError as error:
            raise ImapError(Fault.TOKEN_UNAVAILABLE, str(error)) from None
        fields = oauth.granted_fields(answer, (code, client.client_secret, self.verifier))
        token = fields.get("refresh_token")
        if not isinstance(token, str) or not token.isprintable():
            token = ""
        return Consent(token, _address(fields.get("id_token")))


@dataclass(frozen=True, slots=True, repr=False)
class Consent:
    """What a mailbox's owner gave.

    Parameters:
      refresh_token: empty when the provider gave none.
      address: who signed in, as the provider says; empty when it does not say.
    """

    refresh_token: str
    address: str


def _address(id_token: Any) -> str:
    """The address in an ID token that came from the token server itself.

    The connection vouches for it, so its signature need not be checked (OpenID Connect Core,
    3.1.3.7). It can only make a sign-in be refused: that a mailbox opens, the login proves.
    """
    try:
        body = str(id_token).split(".")[1]
        claims = orjson.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        email = claims.get("email")
    except (IndexError, ValueError, AttributeError):
        return ""
    return email if isinstance(email, str) and email.isprintable() else ""
