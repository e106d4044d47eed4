"""OAuth 2 access tokens: bought with the account's refresh token, kept encrypted, bought once.

However many processes want one at the same time, a claim in the account's row lets one of them ask
the token server (RFC 6749, 6); the others wait for what it gets. A failure is remembered for a
while too, so that a token server in trouble is not asked by every poll.
"""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
import structlog

from . import database, runtime
from .imap import Fault, ImapError
from .imap.connection import scrubbed
from .imap.https import Answer, request
from .models import EmailAccount
from .settings import TENANT, Settings, settings

log = structlog.get_logger()

#: https://developers.google.com/identity/protocols/oauth2/web-server#offline and
#: https://learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow#refresh-the-access-token
TOKEN_URLS = {
    "google": "https://oauth2.googleapis.com/token",
    "microsoft": f"https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/token",
}
MICROSOFT_SCOPE = "https://outlook.office.com/IMAP.AccessAsUser.All offline_access"

#: Seconds before its end at which an access token is renewed: longer than a poll's time slice.
MARGIN = 120
#: Seconds that an access token counts as good for when its server does not say.
DEFAULT_LIFETIME = 600
#: Seconds that a request to a token server may take.
TIMEOUT = 15
#: Seconds that a claim on the refresh holds, should its process die.
CLAIM = 30
#: Seconds for which a failure is remembered.
FAILURE = 45

#: Errors that only the mailbox's owner can mend (RFC 6749, 5.2; Microsoft's of OpenID Connect).
OWNER = frozenset(("invalid_grant", "interaction_required", "consent_required", "login_required"))
#: Errors that only the operator of mailpoll can mend.
OPERATOR = frozenset(("invalid_client", "unauthorized_client", "invalid_scope", "invalid_request"))


@dataclass(frozen=True, slots=True)
class Client:
    """mailpoll as a token server knows it."""

    token_url: str
    client_id: str
    client_secret: str
    scope: str

    def __repr__(self) -> str:
        return f"Client({self.token_url!r}, {self.client_id!r}, secret hidden)"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a refresh token bought. ``refresh_token`` is the one to use from now on."""

    access_token: str
    refresh_token: str
    seconds: int

    def __repr__(self) -> str:
        return f"Grant({self.seconds} s, secrets hidden)"


def client_of(provider: str, config: Settings) -> Client:
    """mailpoll's client at a provider.

    Raises:
      ImapError: ``OAUTH_CLIENT_REFUSED``; names the variable that is missing.
    """
    name = provider.upper()
    client_id: str = getattr(config, f"oauth_{provider}_client_id")
    url = TOKEN_URLS.get(provider, config.oauth_generic_token_url)
    for variable, value in (("CLIENT_ID", client_id), ("TOKEN_URL", url)):
        if not value:
            raise ImapError(
                Fault.OAUTH_CLIENT_REFUSED, f"MAILPOLL_OAUTH_{name}_{variable} is not set"
            )
    scopes = {"microsoft": MICROSOFT_SCOPE, "generic": config.oauth_generic_scope}
    return Client(
        url.replace(TENANT, config.oauth_microsoft_tenant),
        client_id,
        getattr(config, f"oauth_{provider}_client_secret"),
        scopes.get(provider, ""),
    )


def exchange(client: Client, refresh_token: str, config: Settings) -> Grant:
    """Buy an access token with a refresh token.

    Raises:
      ImapError: ``AUTHORISATION_ENDED`` when the owner must authorise mailpoll again,
        ``OAUTH_CLIENT_REFUSED`` when the client's id or secret is wrong, ``TOKEN_UNAVAILABLE``
        for all that can pass by itself.
    """
    form = {
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "client_id": client.client_id,
        "client_secret": client.client_secret,
        "scope": client.scope,
    }
    given = {name: value for name, value in form.items() if value}
    try:
        answer = request(client.token_url, config, TIMEOUT, given)
    except ImapError as error:
        kept = error.fault is Fault.BLOCKED_HOST
        raise ImapError(error.fault if kept else Fault.TOKEN_UNAVAILABLE, str(error)) from None
    return _grant(answer, refresh_token, client)


def _grant(answer: Answer, refresh_token: str, client: Client) -> Grant:
    fields = granted_fields(answer, (refresh_token, client.client_secret))
    token, renewed = fields.get("access_token"), fields.get("refresh_token")
    if not isinstance(token, str) or not token.isprintable() or not token:
        raise ImapError(Fault.TOKEN_UNAVAILABLE, "its answer holds no access token")
    try:
        seconds = max(0, int(fields.get("expires_in") or DEFAULT_LIFETIME))
    except (ValueError, TypeError):
        seconds = DEFAULT_LIFETIME
    return Grant(token, renewed if isinstance(renewed, str) and renewed else refresh_token, seconds)


def granted_fields(answer: Answer, secrets: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a token server's answer.

    Parameters:
      secrets: that it was sent, and that no error repeats.

    Raises:
      ImapError: it refuses (RFC 6749, 5.2).
    """
    try:
        fields = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        fields = {}
    if not isinstance(fields, dict):
        fields = {}
    if answer.status != 200:
        raise _refusal(answer.status, fields, secrets)
    return fields


def _refusal(status: int, fields: dict[str, Any], secrets: tuple[str, ...]) -> ImapError:
    error = str(fields.get("error") or f"status {status}")
    detail = f"{error}: {fields.get('error_description') or 'no description'}"
    for secret in secrets:
        detail = scrubbed(detail, secret)
    if error in OWNER:
        return ImapError(Fault.AUTHORISATION_ENDED, detail)
    if error in OPERATOR:
        return ImapError(Fault.OAUTH_CLIENT_REFUSED, detail)
    return ImapError(Fault.TOKEN_UNAVAILABLE, detail)


def stored(uuid: str, provider: str, refresh_token: str) -> dict[str, Any]:
    """A refresh token, and no access token yet, as columns of its account."""
    sealed = runtime.keyring().encrypt(refresh_token, f"{uuid}:refresh_token")
    return {**forgotten(), "oauth_provider": provider, "refresh_token": sealed}


def granted(uuid: str, grant: Grant) -> dict[str, Any]:
    """What a refresh token bought, as columns of its account."""
    ring = runtime.keyring()
    return {
        "refresh_token": ring.encrypt(grant.refresh_token, f"{uuid}:refresh_token"),
        "access_token": ring.encrypt(grant.access_token, f"{uuid}:access_token"),
        "access_token_expires_at": database.now() + timedelta(seconds=grant.seconds),
    }


def forgotten() -> dict[str, Any]:
    """The columns of an account without OAuth 2."""
    return dict.fromkeys(
        (
            "oauth_provider",
            "refresh_token",
            "access_token",
            "access_token_expires_at",
            "token_claimed_until",
            "token_error",
        )
    )


def refresh_token_of(account: EmailAccount) -> str:
    """The account's refresh token.

    Raises:
      DecryptionError: no key of the ring opens it.
    """
    return runtime.keyring().decrypt(account.refresh_token, f"{account.uuid}:refresh_token")


def access_token(account: EmailAccount, rejected: str | None = None) -> str:
    """An access token that is good for a while, bought now if need be.

    Parameters:
      rejected: a token that the server refused, whatever its end says.

    Raises:
      ImapError: none can be had; see ``exchange``.
      DecryptionError: no key of the ring opens the stored tokens.
    """
    give_up = time.monotonic() + CLAIM
    while True:
        with database.connected():
            row = EmailAccount.get_by_id(account.id)
        moment = database.now()
        token = _kept(row, moment)
        if token is not None and token != rejected:
            return token
        if row.token_error and row.token_claimed_until and row.token_claimed_until > moment:
            kind, _, detail = row.token_error.partition(" ")
            raise ImapError(Fault(kind), detail)
        claim = _claim(row, moment)
        if claim is not None:
            return _renew(row, claim)
        if time.monotonic() > give_up:
            raise ImapError(Fault.TOKEN_UNAVAILABLE, "another process waits for it too long")
        time.sleep(0.1)


def _kept(row: EmailAccount, moment: datetime) -> str | None:
    end = row.access_token_expires_at
    if not row.access_token or end is None or end <= moment + timedelta(seconds=MARGIN):
        return None
    return runtime.keyring().decrypt(row.access_token, f"{row.uuid}:access_token")


def _claim(row: EmailAccount, moment: datetime) -> datetime | None:
    """Take the right to renew the token that ``row`` shows; ``None`` when another has it."""
    table = EmailAccount
    end = moment + timedelta(seconds=CLAIM)
    same = (
        table.access_token.is_null()
        if row.access_token is None
        else (table.access_token == row.access_token)
    )
    free = table.token_claimed_until.is_null() | (table.token_claimed_until <= moment)
    with database.transaction():
        taken = (
            table.update(token_claimed_until=end, token_error=None)
            .where(table.id == row.id, same, free)
            .execute()
        )
    return end if taken else None


def _renew(row: EmailAccount, claim: datetime) -> str:
    config = settings()
    try:
        client = client_of(row.oauth_provider, config)
        grant = exchange(client, refresh_token_of(row), config)
    except ImapError as error:
        until = database.now() + timedelta(seconds=FAILURE)
        _settle(row, claim, token_claimed_until=until, token_error=f"{error.fault} {error.detail}")
        raise
    _settle(row, claim, **granted(row.uuid, grant), token_claimed_until=None)
    log.info("access token renewed", account=row.uuid, seconds=grant.seconds)
    return grant.access_token


def _settle(row: EmailAccount, claim: datetime, **columns: Any) -> None:
    """End a claim, unless the account was changed meanwhile."""
    table = EmailAccount
    with database.transaction():
        table.update(**columns).where(
            table.id == row.id, table.token_claimed_until == claim
        ).execute()
