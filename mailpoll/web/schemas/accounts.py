"""Accounts, their discovery, and many of them at once."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

from .deletion import Hold
from .fields import MAX_PAGE, Filter, Folders, Moment, Page, Request, Secret, Text

#: An address as people write it: something, @, a domain. The server's login is the real test.
ADDRESS = re.compile(r"[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+")
Host = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:\[\]%-]+$")
]
Port = Annotated[int, Field(ge=1, le=65_535, strict=True)]
Days = Annotated[int, Field(ge=0, le=36_500, strict=True)]
Interval = Annotated[int, Field(ge=5, le=86_400, strict=True)]
Security = Literal["tls", "starttls", "plain"]
Auth = Literal["password", "oauth2"]
OauthProvider = Literal["google", "microsoft", "generic"]
State = Literal["active", "paused", "auth_failed"]


def _address(value: str) -> str:
    if not ADDRESS.fullmatch(value):
        raise ValueError("should look like name@example.org")
    return value


class NewAccount(Request):
    """A mailbox to poll. Without a host its server is looked for by the address."""

    address: Text = Field(examples=["me@example.org"])
    refresh_token: Secret | None = Field(
        None, description="OAuth 2 refresh token: mailpoll gets access tokens with it"
    )
    oauth_provider: OauthProvider | None = Field(
        None, description="Whose token server; goes by the host where that is known"
    )
    password: Secret | None = Field(
        None,
        description="Password, app password, or an OAuth 2 access token that nobody renews",
    )
    host: Host | None = None
    port: Port | None = None
    security: Security | None = Field(None, description="As discovered, else tls")
    username: Text | None = Field(None, description="Defaults to the address")
    auth: Auth = "password"
    folders: Folders | None = Field(
        None, description="Folders to poll, as people read them; null polls all"
    )
    poll_interval: Interval | None = Field(None, description="Seconds")
    poll_interval_max: Interval | None = Field(
        None, description="Seconds; polls follow the mailbox's own rhythm up to this"
    )
    import_since: Moment | None = Field(
        None, description="Leave out mail that arrived before; null imports all"
    )
    push: bool = Field(
        False,
        strict=True,
        description="Keep a connection open on which the server tells of new mail",
    )
    sync_flags: bool = Field(False, strict=True, description="Follow flags, moves and removals")
    retention_days: Days | None = Field(
        None, description="Days that mail is kept; 0: for ever, null: as configured"
    )
    retention_expunged_days: Days | None = Field(
        None, description="Days that it is kept after it left the server; 0 and null as above"
    )
    archive: bool = Field(
        False, strict=True, description="Without a server: its mail comes by import only"
    )
    test: bool = Field(True, description="Log in before saving, and refuse what does not work")

    _address = field_validator("address")(_address)

    @model_validator(mode="after")
    def _alone(self) -> Self:
        if self.archive and self.model_fields_set - {"address", "archive", "test"}:
            raise ValueError("archive: an account without a server takes an address only")
        return self


class AccountChange(Request):
    """Only the fields that are given change."""

    refresh_token: Secret | None = None
    oauth_provider: OauthProvider | None = None
    password: Secret | None = None
    host: Host | None = None
    port: Port | None = None
    security: Security | None = None
    username: Text | None = None
    auth: Auth | None = None
    folders: Folders | None = None
    poll_interval: Interval | None = None
    poll_interval_max: Interval | None = None
    push: Annotated[bool, Field(strict=True)] | None = None
    sync_flags: Annotated[bool, Field(strict=True)] | None = None
    retention_days: Days | None = None
    retention_expunged_days: Days | None = None
    test: bool = True


class Discovery(Request):
    """An address whose server is looked for."""

    address: Text = Field(examples=["me@example.org"])

    _address = field_validator("address")(_address)


class Place(BaseModel):
    """Where the server of an address is, ``source`` says by what it was found.

    ``provider``, ``auth`` (what it takes, best first) and ``help`` are those of a known provider.
    """

    host: str
    port: int
    security: str
    username: str | None
    source: str
    provider: str | None
    auth: list[str]
    help: str | None


class Kept(BaseModel):
    """Days after which mail is deleted, as the account says or else as configured; 0 is never."""

    days: int
    expunged_days: int


class AccountFigures(BaseModel):
    """Since ever, and ``days``: messages of the latest 30 days (UTC), today last."""

    messages: int
    bytes: int
    failures: int
    days: list[int]


class Account(BaseModel):
    """A mailbox as the API shows it. The password never comes back."""

    id: str
    address: str
    archive: bool = Field(description="It has no server: its mail comes by import only")
    host: str
    port: int
    security: str
    username: str
    auth: str
    oauth_provider: str | None
    folders: list[str] | None
    poll_interval: int
    poll_interval_max: int | None
    adapted_interval: int | None = Field(description="Seconds, by the mailbox's rhythm")
    import_since: datetime | None
    push: bool
    watched: bool = Field(description="The server tells of new mail by itself now")
    watch_error: str | None = Field(description="Why it does not, or ended it last")
    sync_flags: bool
    retention_days: int | None
    retention_expunged_days: int | None
    kept: Kept
    hold: Hold | None = Field(description="A legal hold: nothing is deleted")
    state: str
    created_at: datetime
    updated_at: datetime
    next_poll_at: datetime | None
    last_poll_at: datetime | None
    last_success_at: datetime | None
    imported_at: datetime | None
    last_error: str | None
    last_error_kind: str | None
    last_error_at: datetime | None
    failures: int


class ListedAccount(Account):
    """``figures``: where they were asked for."""

    figures: AccountFigures | None


class AccountPage(Page):
    items: list[ListedAccount]


class AccountQuery(Request):
    # That of a list by address holds one, of up to 320 characters.
    cursor: str | None = Field(None, max_length=2_000)
    limit: int = Field(50, ge=1, le=MAX_PAGE)
    state: State | None = None
    address: Filter | None = Field(None, description="Part of the address")
    sort: Literal["added", "address", "next_poll", "failures"] = Field(
        "added", description="Pages of next_poll and failures are of a moment: they change"
    )
    descending: bool = False
    figures: bool = Field(False, description="With messages, and those of 30 days")


class Estimate(BaseModel):
    """What an import would bring in, and how long that takes at least."""

    messages: int
    bytes: int
    exact: bool = Field(description="False: the bytes are from a sample")
    days: int | None = Field(description="Under the provider's limit of bytes a day; null: none")


class LoginTest(BaseModel):
    """The result of a login: the folders that can be polled, and how much is in them."""

    ok: bool
    folders: list[str]
    estimate: Estimate | None


class ImportRow(BaseModel):
    """What became of one row. ``outcome``: fine (in a dry run), added, or refused with ``errors``.

    ``row`` counts from 1.
    """

    row: int
    address: str | None
    outcome: Literal["fine", "added", "refused"]
    account_id: str | None
    errors: list[dict[str, str]]


class ImportReport(BaseModel):
    dry_run: bool
    added: int
    refused: int
    items: list[ImportRow]


class AccountImport(Request):
    """Many mailboxes at once, each as a new one is given; a wrong one does not hold up others."""

    accounts: list[dict[str, Any]] = Field(min_length=1, max_length=500)
    dry_run: bool = Field(
        True, strict=True, description="Only check: neither servers nor logins are tried"
    )
