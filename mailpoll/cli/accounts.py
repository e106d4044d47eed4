"""``mailpoll accounts``: adding mailboxes, looking at them, and what is done with them."""

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from .needs import ask_secret, find_account, needs_database
from .output import (
    Failure,
    counting,
    failing_with_2,
    new_table,
    readable_size,
    refused,
    safe,
    show,
    show_json,
    styled,
)

if TYPE_CHECKING:
    from ..web.schemas import ImportReport, ImportRow


@click.group()
def accounts() -> None:
    """Mailboxes."""


@accounts.command("add")
@click.argument("address")
@click.option("--host", help="IMAP server; default: looked for by the address")
@click.option("--port", type=int, help="default: as found, else 993, or 143 without implicit TLS")
@click.option(
    "--security",
    type=click.Choice(["tls", "starttls", "plain"]),
    help="default: as found, else tls",
)
@click.option("--username", help="default: the address")
@click.option("--folder", "folders", multiple=True, help="only this folder; can be repeated")
@click.option("--interval", "poll_interval", type=int, help="seconds between polls")
@click.option("--interval-max", "poll_interval_max", type=int, help="by the mailbox's rhythm up to")
@click.option(
    "--since", "import_since", type=click.DateTime(["%Y-%m-%d"]), help="import from then on (UTC)"
)
@click.option("--push", is_flag=True, help="keep a connection open that tells of new mail")
@click.option("--sync-flags", is_flag=True, help="follow flags, moves and removals")
@click.option("--retention-days", type=int, help="days that mail is kept; 0: for ever")
@click.option(
    "--retention-expunged-days", type=int, help="the same after it left the server; 0: for ever"
)
@click.option("--new-only", is_flag=True, help="leave out all mail that is there already")
@click.option(
    "--oauth",
    "oauth_provider",
    type=click.Choice(["google", "microsoft", "generic"]),
    help="log in with OAuth 2: asks for a refresh token of this provider",
)
@click.option("--password-stdin", is_flag=True, help="read the secret from standard input")
@click.option("--no-test", is_flag=True, help="save without logging in")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def add(
    *, password_stdin: bool, no_test: bool, as_json: bool, new_only: bool, **fields: Any
) -> None:
    """Add a mailbox: asks for the password, logs in, saves, and polls it."""
    from pydantic import ValidationError

    from .. import accounts as service
    from .. import logins
    from ..web.schemas import NewAccount

    given = {name: value for name, value in fields.items() if value not in (None, ())}
    if "folders" in given:
        given["folders"] = list(given["folders"])
    given["import_since"] = _since(given.get("import_since"), new_only)
    if given.get("oauth_provider"):
        given["refresh_token"] = ask_secret("Refresh token: ", password_stdin)
    else:
        given["password"] = ask_secret("Password: ", password_stdin)
    try:
        new = NewAccount(**given, test=not no_test)
        account = service.create(**new.model_dump(exclude={"archive"}))
    except ValidationError as error:
        raise refused(error) from None
    except logins.AccountError as error:
        raise Failure(str(error)) from None
    enqueue_poll(account.id)
    if as_json:
        show_json({"id": account.uuid, "address": account.address})
    else:
        if account.estimated_bytes is not None:
            size = (account.estimated_messages, account.estimated_bytes)
            click.echo(f"to import: {_estimated(account.host, *size)}")
        click.echo(f"{account.address} added, id {account.uuid}. See: mailpoll stats")


def _since(since: datetime | None, new_only: bool) -> datetime | None:
    from .. import database

    if new_only:
        return database.now()
    return since.replace(tzinfo=UTC) if since else None


@accounts.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--dry-run", is_flag=True, help="only check: no server is asked, nothing is added")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@failing_with_2
@needs_database
def import_accounts(file: str, dry_run: bool, as_json: bool) -> None:
    """Add the mailboxes of a CSV file, and tell what becomes of each line; - reads standard input.

    \b
      address,password,host,folders
      me@example.org,secret,imap.example.org,INBOX;Sent

    The first line names the columns, separated by commas or semicolons: address, password, host,
    port, security, username, auth, refresh_token, oauth_provider, folders (separated by
    semicolons), poll_interval, poll_interval_max, import_since, push, sync_flags, retention_days,
    retention_expunged_days, test. Without a host the server is looked for by the address. Logins
    are tried where test is yes; else the first poll finds a wrong one. A line that is refused does
    not hold up the others, and lines of mailboxes that are there are refused: correct the file and
    run it again.

    Exit code 0: all were added, or are fine; 1: some were refused; 2: it is no such file.
    """
    from ..web import account_files
    from ..web.accounts import import_report, import_rows

    try:
        with click.open_file(file, "rb") as content:
            found = account_files.accounts_of(content.read().decode("utf-8-sig"))
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failure(f"{file}: should be UTF-8") from None
    except ValueError as error:
        raise Failure(f"{file}: {error}") from None
    rows: list[ImportRow] = []
    with counting(lambda done: f"{done:,} of {len(found):,} mailboxes") as tell:
        for row in import_rows(found, dry_run=dry_run):
            rows.append(row)
            tell(len(rows))
    report = import_report(rows, dry_run=dry_run)
    if as_json:
        show_json(report.model_dump(mode="json"))
    else:
        _show_import(report)
    sys.exit(1 if report.refused else 0)


def _show_import(report: "ImportReport") -> None:
    styles = {"fine": "green", "added": "green", "refused": "red"}
    table = new_table("line", "address", "outcome", "why")
    for row in report.items:
        why = "; ".join(f"{error['field']}: {error['reason']}" for error in row.errors)
        outcome = styled(row.outcome, styles[row.outcome])
        # The first line of the file is that of the columns.
        table.add_row(str(row.row + 1), safe(row.address), outcome, safe(why))
    show(table)
    fine = len(report.items) - report.refused
    if report.dry_run:
        click.echo(f"{fine:,} would be added, {report.refused:,} refused; nothing is added yet")
    else:
        click.echo(f"{fine:,} added, {report.refused:,} refused. See: mailpoll accounts list")


@accounts.command("list")
@click.option(
    "--state", type=click.Choice(["active", "paused", "auth_failed", "archive"]), help="only those"
)
@click.option("--address", metavar="TEXT", help="with this in the address")
@click.option("--limit", type=click.IntRange(1), help="default: all")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@needs_database
def list_accounts(state: str | None, address: str | None, limit: int | None, as_json: bool) -> None:
    """List the mailboxes, in the order in which they were added."""
    from .. import database
    from ..models import EmailAccount

    rows = EmailAccount.visible().order_by(EmailAccount.id).limit(limit)
    if state == "archive":
        rows = rows.where(EmailAccount.host == "")
    elif state:
        rows = rows.where(EmailAccount.state == state)
    if address:
        rows = rows.where(EmailAccount.address.contains(address))
    with database.connected():
        found = list(rows)
    if as_json:
        names = ("address", "state", "host", "poll_interval", "last_success_at", "last_error")
        for row in found:
            shown = {"id": row.uuid, **{name: getattr(row, name) for name in names}}
            show_json(shown)
        return
    table = new_table("address", "state", "host", "every", "last poll", "error")
    for row in found:
        last = row.last_success_at.strftime("%Y-%m-%d %H:%M:%S") if row.last_success_at else "never"
        table.add_row(
            safe(row.address),
            row.state,
            safe(row.host),
            f"{row.poll_interval} s",
            last,
            safe(row.last_error),
        )
    show(table)


@accounts.command("show")
@click.argument("account")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def show_account(account: str, as_json: bool) -> None:
    """Show how a mailbox is set up and how its polls go. Its mail: mailpoll stats ACCOUNT."""
    from ..web.accounts import show as public

    document = public(find_account(account)).model_dump(mode="json")
    if as_json:
        show_json(document)
        return
    table = new_table("", "")
    for name, value in document.items():
        table.add_row(name.replace("_", " "), safe(_words(value)))
    show(table)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return "" if value is None else str(value)


@accounts.command("edit")
@click.argument("account")
@click.option("--password", "asks", flag_value="password", help="asks for a new password")
@click.option("--refresh-token", "asks", flag_value="refresh_token", help="asks for a new one")
@click.option("--password-stdin", is_flag=True, help="read the secret from standard input")
@click.option("--host", help="IMAP server")
@click.option("--port", type=int, help="of the IMAP server")
@click.option(
    "--security", type=click.Choice(["tls", "starttls", "plain"]), help="how it is encrypted"
)
@click.option("--username", help="what the server knows it by")
@click.option("--folder", "folders", multiple=True, help="only this folder; can be repeated")
@click.option("--all-folders", is_flag=True, help="no longer only some")
@click.option("--interval", "poll_interval", type=int, help="seconds between polls")
@click.option("--interval-max", "poll_interval_max", type=int, help="by the mailbox's rhythm up to")
@click.option("--push/--no-push", default=None, help="a connection that tells of new mail")
@click.option("--sync-flags/--no-sync-flags", default=None, help="follow flags, moves, removals")
@click.option("--retention-days", type=int, help="days that mail is kept; 0: for ever")
@click.option("--retention-expunged-days", type=int, help="the same after it left the server")
@click.option("--no-test", is_flag=True, help="save without logging in")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def edit(
    account: str,
    *,
    asks: str | None,
    password_stdin: bool,
    all_folders: bool,
    no_test: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Change a mailbox: only what is given; a changed login is tried before it is saved."""
    from pydantic import ValidationError

    from .. import accounts as service
    from .. import logins
    from ..models import AccountState
    from ..web.accounts import show as public
    from ..web.schemas import AccountChange

    row = find_account(account)
    given = {name: value for name, value in fields.items() if value not in (None, ())}
    if "folders" in given:
        given["folders"] = list(given["folders"])
    if all_folders:
        given["folders"] = None
    if asks or password_stdin:
        asks = asks or "password"
        prompt = f"{asks.replace('_', ' ').capitalize()}: "
        given[asks] = ask_secret(prompt, password_stdin)
    if not given:
        raise click.UsageError("say what is to change")
    try:
        change = AccountChange(**given).model_dump(exclude_unset=True)
        row = service.change(row, change, test=not no_test)
    except ValidationError as error:
        raise refused(error) from None
    except logins.AccountError as error:
        raise Failure(str(error)) from None
    if row.state == AccountState.ACTIVE:
        enqueue_poll(row.id)
    if as_json:
        show_json(public(row).model_dump(mode="json"))
    else:
        click.echo(f"{row.address} changed")


@accounts.command("test")
@click.argument("account")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def test_login(account: str, as_json: bool) -> None:
    """Log in with the stored password and list the folders."""
    from .. import logins

    row = find_account(account)
    try:
        found = logins.test_login(row)
    except logins.AccountError as error:
        raise Failure(str(error)) from None
    if as_json:
        estimate = found.estimate and asdict(found.estimate)
        show_json({"ok": True, "folders": found.folders, "estimate": estimate})
        return
    for name in found.folders:
        click.echo(safe(name).plain)
    if found.estimate:
        click.echo(_estimated(row.host, found.estimate.messages, found.estimate.bytes), err=True)


def _estimated(host: str, messages: int, size: int) -> str:
    from .. import budgets

    days = budgets.import_days(host, size)
    limit = f", {days:,} days under the provider's limit of bytes a day" if days else ""
    return f"{messages:,} messages, about {readable_size(size)}{limit}"


def enqueue_poll(account_id: int) -> None:
    """Have an account polled now, or say that it is polled later."""
    from .. import queues
    from ..actors import poll_account
    from ..models import EmailAccount

    if not queues.offer(poll_account, account_id):
        EmailAccount.mark_unqueued([account_id])
        click.echo("the queue does not answer: it is polled when `mailpoll up` runs", err=True)
