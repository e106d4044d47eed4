"""What people do to accounts: add, change, test, pause, delete. The API and the CLI share it."""

import ipaddress
import uuid as uuids
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import peewee

from . import audit, database, faults, holds, oauth, receipts, runtime
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
from .models import (
    UNFINISHED,
    AccountState,
    EmailAccount,
    EmailFolder,
    EmailJob,
    EmailRawMessage,
    MessageStatus,
)
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


class AccountExists(AccountError):
    """The address is polled already."""


class AccountGone(Exception):
    """The account was deleted while something was being done to it."""


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
        return _login(account, oauth.access_token(account))
    context = credential_context(account.uuid)
    return _login(account, runtime.keyring().decrypt(account.credential, context))


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


def _login(account: EmailAccount, secret: str) -> Login:
    return Login(
        account.host, account.port, account.security, account.username, account.auth, secret
    )


def find(uuid: str) -> EmailAccount | None:
    """The account with this public id, unless it is being deleted."""
    with database.connected():
        return EmailAccount.visible().where(EmailAccount.uuid == uuid).get_or_none()  # type: ignore[no-any-return]


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
    _check_place(login.host, login.port)
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


def _check_place(host: str, port: int) -> None:
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
    _need_server(account)
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


def _place(address: str, host: str | None, port: int | None, security: str | None) -> Place:
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


def _credential(
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


def check_new(
    *,
    address: str,
    password: str | None = None,
    refresh_token: str | None = None,
    oauth_provider: str | None = None,
    host: str | None = None,
    port: int | None = None,
    security: str | None = None,
    auth: str = "password",
    archive: bool = False,
    **_: Any,
) -> None:
    """Look at what can be known of a new account without asking anybody.

    Raises:
      AccountError: a field does not work.
      AccountExists: the address is there already.
    """
    _refuse_known(address)
    if archive:
        return
    if host is not None:
        place = _place(address, host, port, security)
        _check_place(place.host, place.port)
        _credential(place.host, auth, password, refresh_token, oauth_provider, test=False)
    elif password is None and refresh_token is None:
        raise AccountError(PASSWORD, "is required, unless refresh_token is given")


def _refuse_known(address: str) -> None:
    with database.connected():
        if EmailAccount.visible().where(EmailAccount.address == address).exists():
            raise AccountExists("address", "there is an account with this address")


def try_out(
    *, auth: str = "password", folders: list[str] | None = None, **fields: Any
) -> tuple[str, Mailbox]:
    """Log in as a new account with these fields would; its host, and what is found there.

    Raises:
      AccountError: a field does not work.
    """
    names = ("address", "password", "refresh_token", "oauth_provider", "host", "port")
    chosen: dict[str, Any] = {name: fields.get(name) for name in (*names, "security", "username")}
    login, place = new_login(**chosen, auth=auth)
    field = REFRESH_TOKEN if fields.get("refresh_token") else PASSWORD
    return place.host, check_login(login, folders, field)


def create(
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
    folders: list[str] | None = None,
    poll_interval: int | None = None,
    poll_interval_max: int | None = None,
    import_since: datetime | None = None,
    push: bool = False,
    sync_flags: bool = False,
    retention_days: int | None = None,
    retention_expunged_days: int | None = None,
    test: bool = True,
) -> EmailAccount:
    """Add a mailbox, due for its first poll at once.

    Raises:
      AccountError: a field does not work; nothing was saved.
      AccountExists: the address is there already.
    """
    _refuse_known(address)
    place = _place(address, host, port, security)
    _check_place(place.host, place.port)
    uuid = str(uuids.uuid4())
    credential = _credential(place.host, auth, password, refresh_token, oauth_provider, test=test)
    username = username or place.username or address
    size: Estimate | None = None
    if test:
        login = Login(
            place.host, place.port, place.security, username, credential.auth, credential.secret
        )
        found = check_login(login, folders, REFRESH_TOKEN if refresh_token else PASSWORD)
        size = found.estimate
    moment = database.now()
    try:
        with database.transaction():
            account = EmailAccount.create(
                uuid=uuid,
                address=address,
                host=place.host,
                port=place.port,
                security=place.security,
                username=username,
                **credential.columns(uuid),
                data_key=runtime.new_data_key(uuid),
                folders=folders,
                poll_interval=poll_interval or settings().poll_interval,
                poll_interval_max=poll_interval_max,
                import_since=import_since,
                push=push,
                sync_flags=sync_flags,
                retention_days=retention_days,
                retention_expunged_days=retention_expunged_days,
                estimated_messages=size and size.messages,
                estimated_bytes=size and size.bytes,
                next_poll_at=moment,
                # The caller enqueues the first poll; if that is lost, a tick finds it overdue.
                queued_until=moment + timedelta(minutes=2),
                created_at=moment,
                updated_at=moment,
            )
            audit.record("account.create", "account", uuid)
            faults.point("account-written")
    except peewee.IntegrityError:
        raise AccountExists("address", "there is an account with this address") from None
    faults.point("account-added")
    return account  # type: ignore[no-any-return]


def create_archive(address: str) -> EmailAccount:
    """Add a mailbox without a server, whose mail comes by import; it is paused from the begin.

    With a host and a password, given later, it is polled like any other.

    Raises:
      AccountExists: the address is there already.
    """
    uuid, moment = str(uuids.uuid4()), database.now()
    try:
        with database.transaction():
            account = EmailAccount.create(
                uuid=uuid,
                address=address,
                host="",
                port=993,
                security="tls",
                username=address,
                auth="password",
                credential="",
                data_key=runtime.new_data_key(uuid),
                poll_interval=settings().poll_interval,
                state=AccountState.PAUSED,
                next_poll_at=moment,
                imported_at=moment,
                created_at=moment,
                updated_at=moment,
            )
            audit.record("account.create", "account", uuid)
    except peewee.IntegrityError:
        raise AccountExists("address", "there is an account with this address") from None
    return account  # type: ignore[no-any-return]


def _need_server(account: EmailAccount) -> None:
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
    place = _place(address, host, port, security)
    _check_place(place.host, place.port)
    credential = _credential(place.host, auth, password, refresh_token, oauth_provider, test=True)
    user = username or place.username or address
    login = Login(place.host, place.port, place.security, user, credential.auth, credential.secret)
    return login, place


def change(account: EmailAccount, fields: dict[str, Any], *, test: bool) -> EmailAccount:
    """Change the given fields; a new login is tried before it is saved.

    Raises:
      AccountError: a field does not work; nothing was changed.
    """
    fields = dict(fields)
    password, refresh_token = fields.pop("password", None), fields.pop("refresh_token", None)
    provider = fields.pop("oauth_provider", account.oauth_provider)
    login_fields = {"host", "port", "security", "username", "auth"} & fields.keys()
    place = account.host, account.username
    for name, value in fields.items():
        setattr(account, name, value)
    if login_fields:
        _check_place(account.host, account.port)
    if provider != account.oauth_provider and not refresh_token:
        raise AccountError(REFRESH_TOKEN, "is required to change oauth_provider")
    if account.auth == "password" and account.refresh_token and not password:
        raise AccountError(PASSWORD, "is required to change auth")
    new: Credential | None = None
    if password or refresh_token:
        new = _credential(account.host, account.auth, password, refresh_token, provider, test=test)
        account.auth = new.auth
        fields |= new.columns(account.uuid)
    if test and (new or login_fields or "folders" in fields):
        field = REFRESH_TOKEN if account.refresh_token and not password else PASSWORD
        login = _login(account, new.secret) if new else stored_login(account)
        check_login(login, account.folders, field)
    moment = database.now()
    if new or login_fields:
        fields |= {"failures": 0, "auth_failures": 0, "not_before": None, "next_poll_at": moment}
        # A poll that still uses the old login has nothing more to say, least of all about it.
        fields |= {"lease_token": EmailAccount.lease_token + 1, "lease_until": None}
        if account.state == AccountState.AUTH_FAILED:
            fields["state"] = AccountState.ACTIVE
    elif "poll_interval" in fields:
        fields["next_poll_at"] = moment
    if {"retention_days", "retention_expunged_days"} & fields.keys():
        fields["retained_at"] = None
    with database.transaction():
        changed = _update(account, fields, "account.change")
        if "sync_flags" in fields:
            EmailFolder.compare_flags(account.id)
        if place != (changed.host, changed.username):
            EmailFolder.forget_numbers(account.id)
            EmailRawMessage.forget_names(account.id)
    return changed


def pause(account: EmailAccount) -> EmailAccount:
    """Stop polling. A poll that is running cannot commit any more."""
    return _update(
        account,
        {
            "state": AccountState.PAUSED,
            "lease_token": EmailAccount.lease_token + 1,
            "lease_until": None,
        },
        "account.pause",
    )


def resume(account: EmailAccount) -> EmailAccount:
    """Poll again, at once; also after refused logins.

    Raises:
      AccountError: it has no server.
    """
    _need_server(account)
    return _update(
        account,
        {
            "state": AccountState.ACTIVE,
            "failures": 0,
            "auth_failures": 0,
            "token_claimed_until": None,
            "not_before": None,
            **_due(),
        },
        "account.resume",
    )


def expect_poll(account: EmailAccount) -> None:
    """Make an account due now and note that its poll is in the queue."""
    _update(account, _due(), "account.poll")


def expect_reconcile(account: EmailAccount) -> None:
    """Let the next poll compare the server's whole lists with what is stored."""
    table = EmailFolder
    with database.transaction():
        table.update(reconciled_at=None).where(table.account == account.id).execute()
        _update(account, _due(), "account.reconcile")


def _due() -> dict[str, datetime]:
    """An account's columns when its poll is due, and in the queue."""
    moment = database.now()
    return {"next_poll_at": moment, "queued_until": moment + timedelta(minutes=2)}


def _update(account: EmailAccount, fields: dict[str, Any], action: str) -> EmailAccount:
    """Change an account, and write the action down in the audit log."""
    table = EmailAccount
    with database.transaction():
        changed = (
            table.update(**fields, updated_at=database.now())
            .where(table.id == account.id, table.state != AccountState.DELETING)
            .execute()
        )
        if not changed:
            raise AccountGone(account.uuid)
        if fields.get("state", account.state) != account.state:
            account.announce({"state": fields["state"]})
        audit.record(action, "account", account.uuid)
        return table.get_by_id(account.id)  # type: ignore[no-any-return]


def delete(uuid: str) -> EmailJob | None:
    """Fence an account and start its deletion, or find the deletion that was started before.

    From here on nothing of the account can be read or committed; its address, user name and
    credential are gone at once. ``None``: there never was such an account.

    Raises:
      Held: a legal hold is on the account or on a message of it; nothing was done.
    """
    moment = database.now()
    table = EmailAccount
    with database.transaction():
        job = EmailJob.get_or_none(EmailJob.account_uuid == uuid)
        if job is not None:
            return job  # type: ignore[no-any-return]
        account = table.get_or_none(table.uuid == uuid)
        if account is None:
            return None
        holds.lock(account.id)
        holds.check(account.id)
        fenced = table.update(
            state=AccountState.DELETING,
            address=f"deleted:{uuid}",
            username="",
            credential="",
            data_key="",
            **oauth.forgotten(),
            last_error=None,
            lease_token=table.lease_token + 1,
            lease_until=None,
            updated_at=moment,
        ).where(table.id == account.id, table.state != AccountState.DELETING)
        if not fenced.execute():  # another request was first, and has made the job by now
            return EmailJob.get_or_none(EmailJob.account_uuid == uuid)  # type: ignore[no-any-return]
        audit.record("account.delete", "account", uuid)
        job = EmailJob.create(
            uuid=str(uuids.uuid4()),
            kind="delete_account",
            account_uuid=uuid,
            account_id=account.id,
            address_sha256=receipts.address_hash(account.address),
            step="queues",
            counts={},
            created_at=moment,
            updated_at=moment,
        )
    faults.point("deletion-asked")
    return job  # type: ignore[no-any-return]


def empty_if_deleted(account_id: int, uuid: str) -> bool:
    """Remove blobs that were put after a deletion had already emptied the stores.

    Returns:
      whether the account is deleted, or being deleted.

    Raises:
      StoreUnavailable: they are still there.
    """
    with database.connected():
        account = EmailAccount.get_or_none(EmailAccount.id == account_id)
    if account is not None and account.state != AccountState.DELETING:
        return False
    runtime.storage().delete_account(uuid)
    return True


def replay_failed(reason: str, limit: int) -> list[int]:
    """Make messages that failed for one reason ready to be processed again; their ids.

    Parameters:
      limit: how many in this transaction.
    """
    table = EmailRawMessage
    rows = (
        table.select(table.id)
        .join(EmailAccount)
        .where(
            UNFINISHED,
            table.status == MessageStatus.FAILED,
            table.error == reason,
            EmailAccount.state != AccountState.DELETING,
        )
        .order_by(table.id)
        .limit(limit)
    )
    with database.transaction():
        ids = [message_id for (message_id,) in rows.tuples()]
        changed = table.update(
            status=MessageStatus.STORED, attempts=0, error=None, next_attempt_at=database.now()
        ).where(table.id.in_(ids), table.status == MessageStatus.FAILED)
        if not database.is_sqlite():
            changed = changed.returning(table.id)
            ids = [row.id for row in changed.execute()]
        else:  # nobody else writes
            changed.execute()
        for message_id in ids:
            audit.record("message.retry", "message", str(message_id))
    return ids


def replay(message: EmailRawMessage) -> bool:
    """Make a failed message ready to be processed again; false when it has not failed."""
    table = EmailRawMessage
    with database.transaction():
        changed = (
            table.update(
                status=MessageStatus.STORED, attempts=0, error=None, next_attempt_at=database.now()
            )
            .where(table.id == message.id, table.status == MessageStatus.FAILED)
            .execute()
        )
        if changed:
            audit.record("message.retry", "message", str(message.id))
    return bool(changed)
