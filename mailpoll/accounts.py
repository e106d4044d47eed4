"""What people do to accounts: add, change, test, pause, delete. The API and the CLI share it."""

import uuid as uuids
from datetime import datetime, timedelta
from typing import Any

import peewee

from . import audit, database, faults, holds, logins, oauth, receipts, runtime
from .imap import (
    Estimate,
    Login,
)
from .logins import PASSWORD, REFRESH_TOKEN, AccountError
from .models import (
    AccountState,
    EmailAccount,
    EmailFolder,
    EmailJob,
    EmailRawMessage,
)
from .settings import settings


class AccountExists(AccountError):
    """The address is polled already."""


class AccountGone(Exception):
    """The account was deleted while something was being done to it."""


def find(uuid: str) -> EmailAccount | None:
    """The account with this public id, unless it is being deleted."""
    with database.connected():
        found = database.select(EmailAccount, "uuid = ? AND state <> 'deleting'", uuid)
    return next(iter(found), None)


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
    poll_interval: int | None = None,
    poll_interval_max: int | None = None,
    archive: bool = False,
    **_: Any,
) -> None:
    """Look at what can be known of a new account without asking anybody.

    Raises:
      AccountError: a field does not work.
      AccountExists: the address is there already.
    """
    _refuse_known(address)
    _check_intervals(poll_interval, poll_interval_max)
    if archive:
        return
    if host is not None:
        place = logins.place_of(address, host, port, security)
        logins.check_place(place.host, place.port)
        logins.credential_of(place.host, auth, password, refresh_token, oauth_provider, test=False)
    elif password is None and refresh_token is None:
        raise AccountError(PASSWORD, "is required, unless refresh_token is given")


def _check_intervals(least: int | None, most: int | None) -> None:
    if most is not None and most < (least or settings().poll_interval):
        raise AccountError("poll_interval_max", "should not be below poll_interval")


def _refuse_known(address: str) -> None:
    with database.connected():
        if EmailAccount.visible().where(EmailAccount.address == address).exists():
            raise AccountExists("address", "there is an account with this address")


def try_out(
    *, auth: str = "password", folders: list[str] | None = None, **fields: Any
) -> tuple[str, logins.Mailbox]:
    """Log in as a new account with these fields would; its host, and what is found there.

    Raises:
      AccountError: a field does not work.
    """
    names = ("address", "password", "refresh_token", "oauth_provider", "host", "port")
    chosen: dict[str, Any] = {name: fields.get(name) for name in (*names, "security", "username")}
    login, place = logins.new_login(**chosen, auth=auth)
    field = REFRESH_TOKEN if fields.get("refresh_token") else PASSWORD
    return place.host, logins.check_login(login, folders, field)


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
    _check_intervals(poll_interval, poll_interval_max)
    place = logins.place_of(address, host, port, security)
    logins.check_place(place.host, place.port)
    uuid = str(uuids.uuid4())
    credential = logins.credential_of(
        place.host, auth, password, refresh_token, oauth_provider, test=test
    )
    username = username or place.username or address
    size: Estimate | None = None
    if test:
        login = Login(
            place.host, place.port, place.security, username, credential.auth, credential.secret
        )
        found = logins.check_login(login, folders, REFRESH_TOKEN if refresh_token else PASSWORD)
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
    _check_intervals(account.poll_interval, account.poll_interval_max)
    if login_fields:
        logins.check_place(account.host, account.port)
    if provider != account.oauth_provider and not refresh_token:
        raise AccountError(REFRESH_TOKEN, "is required to change oauth_provider")
    if account.auth == "password" and account.refresh_token and not password:
        raise AccountError(PASSWORD, "is required to change auth")
    new: logins.Credential | None = None
    if password or refresh_token:
        new = logins.credential_of(
            account.host, account.auth, password, refresh_token, provider, test=test
        )
        account.auth = new.auth
        fields |= new.columns(account.uuid)
    if test and (new or login_fields or "folders" in fields):
        field = REFRESH_TOKEN if account.refresh_token and not password else PASSWORD
        login = logins.login_with(account, new.secret) if new else logins.stored_login(account)
        logins.check_login(login, account.folders, field)
    if new or login_fields:
        fields |= _anew(account)
    elif "poll_interval" in fields:
        fields["next_poll_at"] = database.now()
    if new or login_fields or "folders" in fields:
        # A watcher has the old login, host or folder: whoever claims it next has the new.
        fields |= {"watcher": None, "watched_until": None, "watch_interval": None}
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


def _anew(account: EmailAccount) -> dict[str, Any]:
    """An account's columns when its login is another."""
    columns: dict[str, Any] = {
        "failures": 0,
        "auth_failures": 0,
        "not_before": None,
        "next_poll_at": database.now(),
        # A poll that still uses the old login has nothing more to say, least of all about it.
        "lease_token": EmailAccount.lease_token + 1,
        "lease_until": None,
    }
    if account.state == AccountState.AUTH_FAILED:
        columns["state"] = AccountState.ACTIVE
    return columns


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
    logins.need_server(account)
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


def expect_poll(account: EmailAccount) -> EmailAccount:
    """Make an account due now and note that its poll is in the queue."""
    return _update(account, _due(), "account.poll")


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
        (current,) = database.select(table, "id = ?", account.id)
        return current


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
