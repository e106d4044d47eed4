"""Logins of accounts: where their server is, what they log in with, and whether that works.

Polls, the watcher and whoever adds or changes an account go through here.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import oauth, runtime
from .crypto import DecryptionError
from .imap import (
    Estimate,
    Fault,
    Folder,
    ImapError,
    Login,
    Session,
    connect,
    discovery,
    estimate,
    hosts,
    providers,
    selectable,
)
from .imap.discovery import NotFound, Place
from .imap.errors import TREATMENT
from .models import EmailAccount
from .settings import settings

#: Seconds that the login before saving may take, all in.
TEST_TIMEOUT = 30
#: The fields that a login's secret comes from.
PASSWORD, REFRESH_TOKEN = "password", "refresh_token"
#: Whose token server stands behind a preset.
OAUTH_PROVIDERS = {"gmail": "google", "microsoft": "microsoft"}
FIELD_OF_FAULT = {
    Fault.TLS: "security",
    Fault.OAUTH_CLIENT_REFUSED: "oauth_provider",
    Fault.TOKEN_UNAVAILABLE: "oauth_provider",
}
#: How a server ends a session whose access token is over or was taken back.
TOKEN_FAULTS = frozenset((Fault.AUTH_FAILED, Fault.SESSION_EXPIRED, Fault.CONNECTION_LOST))
#: Characters of a host name (RFC 1035).
MAX_HOST = 253


class AccountError(Exception):
    """An account cannot be added or changed as asked.

    Parameters:
      field: the field to look at.
      reason: what is wrong with it, in words.
    """

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")


def credential_context(uuid: str) -> str:
    """What a credential's ciphertext is bound to."""
    return f"{uuid}:credential"


def login_of(account: EmailAccount) -> Login:
    """How to log in to an account, with its credential decrypted.

    Raises:
      DecryptionError: no key of the ring opens the credential.
      ImapError: there is no access token to be had.
    """
    if account.refresh_token is not None:
        return login_with(account, oauth.access_token(account))
    context = credential_context(account.uuid)
    return login_with(account, runtime.keyring().decrypt(account.credential, context))


def renew(account: EmailAccount, refused: Login, fault: Fault) -> bool:
    """Get another access token after a session failed; false where none would help.

    Parameters:
      refused: the login of that session.
      fault: what ended it. A connection that was lost is the token's fault only when it is over.

    Raises:
      ImapError: there is no other access token to be had.
    """
    if account.refresh_token is None or fault not in TOKEN_FAULTS:
        return False
    rejected = None if fault is Fault.CONNECTION_LOST else refused.secret
    return oauth.access_token(account, rejected) != refused.secret


def login_with(account: EmailAccount, secret: str) -> Login:
    return Login(
        account.host, account.port, account.security, account.username, account.auth, secret
    )


@dataclass(frozen=True, slots=True)
class Mailbox:
    """What a login finds: the folders that can be opened, and how much an import would bring.

    Parameters:
      estimate: ``None`` when the server would not tell.
    """

    folders: list[str]
    estimate: Estimate | None


def check_login(
    login: Login, folders: Sequence[str] | None, secret_field: str = PASSWORD
) -> Mailbox:
    """Log in and look around; nothing is changed anywhere.

    Parameters:
      folders: that are to be polled; ``None`` for all.
      secret_field: which field the login's secret came from.

    Raises:
      AccountError: the server cannot be polled like this; names the field to look at.
    """
    check_place(login.host, login.port)
    try:
        with connect(login, settings(), TEST_TIMEOUT) as session:
            found = selectable(*session.list_folders())
            names = [folder.name for folder in found]
            wanted = [folder for folder in found if not folders or folder.name in folders]
            size = _estimate(session, wanted)
    except ImapError as error:
        raise _account_error(error, login.host, secret_field) from None
    for name in folders or ():
        if name not in names:
            raise AccountError("folders", f"the mailbox has no folder {name!r}")
    return Mailbox(names, size)


def _estimate(session: Session, folders: Sequence[Folder]) -> Estimate | None:
    """How much there is; a server that will not tell can be polled all the same."""
    try:
        return estimate(session, folders)
    except ImapError:
        return None


def _account_error(error: ImapError, host: str, secret_field: str) -> AccountError:
    """The error of a field: the one that a person should look at when the login fails."""
    field = (
        secret_field if TREATMENT[error.fault].refusals else FIELD_OF_FAULT.get(error.fault, "host")
    )
    return AccountError(field, providers.explained(error, host))


def test_login(account: EmailAccount) -> Mailbox:
    """Log in as polls do, and look around.

    Raises:
      AccountError: it does not work; names the field to look at.
    """
    field = PASSWORD if account.refresh_token is None else REFRESH_TOKEN
    return check_login(stored_login(account), account.folders, field)


def check_place(host: str, port: int) -> None:
    """Refuse what no poll would connect to. Names are looked up, and checked, at each connect."""
    if not settings().allows_port(port):
        allowed = ", ".join(map(str, settings().imap_ports))
        raise AccountError("port", f"should be one of {allowed} (MAILPOLL_IMAP_PORTS)")
    if len(host) > MAX_HOST:
        raise AccountError("host", f"should have at most {MAX_HOST} characters")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if not hosts.permitted(address, settings().imap_allowed_networks):
        raise AccountError(
            "host",
            "is a private or loopback address; MAILPOLL_IMAP_ALLOWED_NETWORKS can allow it",
        )


def stored_login(account: EmailAccount) -> Login:
    """How polls log in to an account.

    Raises:
      AccountError: its secret cannot be had; names the field to look at.
    """
    need_server(account)
    try:
        return login_of(account)
    except DecryptionError as error:
        field = PASSWORD if account.refresh_token is None else REFRESH_TOKEN
        raise AccountError(field, f"{error}: give it again") from None
    except ImapError as error:
        raise _account_error(error, account.host, REFRESH_TOKEN) from None


def discover(address: str) -> Place:
    """Where the IMAP server of an address is.

    Raises:
      AccountError: none was found; says what was tried.
    """
    try:
        return discovery.discover(address, settings())
    except NotFound as error:
        raise AccountError("host", str(error)) from None


def place_of(address: str, host: str | None, port: int | None, security: str | None) -> Place:
    """The place as given, and as discovered where it is not."""
    if host is not None:
        security = security or "tls"
        return Place(host, port or providers.PORTS[security], security, "given")
    found = discover(address)
    if security and security != found.security:
        found = replace(found, security=security, port=providers.PORTS[security])
    return replace(found, port=port or found.port)


def _client(provider: str | None, host: str) -> tuple[str, oauth.Client]:
    """The OAuth 2 provider and mailpoll's client there; it goes by the host when not named.

    Raises:
      AccountError: there is none.
    """
    preset = providers.preset_of(host)
    provider = provider or OAUTH_PROVIDERS.get(preset.name if preset else "")
    if provider is None:
        raise AccountError("oauth_provider", "should be google, microsoft or generic")
    try:
        return provider, oauth.client_of(provider, settings())
    except ImapError as error:
        raise _account_error(error, host, REFRESH_TOKEN) from None


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """A new secret of an account.

    Parameters:
      auth: how it logs in.
      secret: what a login takes: the password or an access token; empty when none was bought yet.
      refresh_token, provider, grant: where access tokens come from, and what was bought.
    """

    auth: str
    secret: str
    refresh_token: str | None = None
    provider: str = ""
    grant: oauth.Grant | None = None

    def columns(self, uuid: str) -> dict[str, Any]:
        """Encrypted, as columns of the account with this id."""
        if self.refresh_token is None:
            sealed = runtime.keyring().encrypt(self.secret, credential_context(uuid))
            return {"auth": self.auth, "credential": sealed, **oauth.forgotten()}
        bought = oauth.granted(uuid, self.grant) if self.grant else {}
        kept = oauth.stored(uuid, self.provider, self.refresh_token)
        return {"auth": self.auth, "credential": "", **kept, **bought}


def credential_of(
    host: str,
    auth: str,
    password: str | None,
    refresh_token: str | None,
    provider: str | None,
    *,
    test: bool,
) -> Credential:
    """The secret that was given; with ``test``, a refresh token buys an access token now.

    Raises:
      AccountError: there is none, or it buys no access token.
    """
    if password is not None and refresh_token is not None:
        raise AccountError(PASSWORD, "cannot be given together with refresh_token")
    if refresh_token is None:
        if password is None:
            raise AccountError(PASSWORD, "is required, unless refresh_token is given")
        return Credential(auth, password)
    provider, client = _client(provider, host)
    if not test:
        return Credential("oauth2", "", refresh_token, provider)
    try:
        grant = oauth.exchange(client, refresh_token, settings())
    except ImapError as error:
        raise _account_error(error, host, REFRESH_TOKEN) from None
    return Credential("oauth2", grant.access_token, refresh_token, provider, grant)


def need_server(account: EmailAccount) -> None:
    """Refuse what needs a server, for an account that has none."""
    if account.archive:
        reason = "is required: the account has no server, its mail comes by import"
        raise AccountError("host", reason)


def new_login(
    *,
    address: str,
    password: str | None = None,
    refresh_token: str | None = None,
    oauth_provider: str | None = None,
    host: str | None = None,
    port: int | None = None,
    security: str | None = None,
    username: str | None = None,
    auth: str = "password",
) -> tuple[Login, Place]:
    """How an account with these fields would log in, and what told where.

    Raises:
      AccountError: a field does not work.
    """
    place = place_of(address, host, port, security)
    check_place(place.host, place.port)
    credential = credential_of(place.host, auth, password, refresh_token, oauth_provider, test=True)
    user = username or place.username or address
    login = Login(place.host, place.port, place.security, user, credential.auth, credential.secret)
    return login, place
