"""The command line: thin, calls the layers below."""

import getpass
import json
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import peewee
from pydantic import ValidationError
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from . import __version__, database, runtime
from .settings import SettingsError, new_key, new_token, settings

console = Console()
UNREACHABLE = (peewee.OperationalError, peewee.InterfaceError, peewee.ProgrammingError)


#: Columns of a folder's proof, as they are shown.
PROOF = {
    "server": "server",
    "stored": "stored",
    "to import": "to_import",
    "waiting": "waiting",
    "unreadable": "unreadable",
    "missing": "missing",
    "gone": "gone",
}


#: Rows of the table of messages that were not fetched.
UNFETCHED = 20
#: What became of differences, as a check's summary says it.
OUTCOMES = {
    "repaired": "repaired",
    "asked": "under way",
    "lost": "lost",
    "left": "left",
    "found": "found",
}


class Failure(click.ClickException):
    """One line on standard error, exit code 1."""

    def show(self, file: Any = None) -> None:  # noqa: ARG002
        click.echo(f"mailpoll: {self.message}", err=True)


def needs_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Read the configuration first; a wrong variable ends the command with one line."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            _start()
            return command(*args, **kwargs)
        except SettingsError as error:
            raise Failure(str(error)) from None

    return wrapper


def _start() -> None:
    """Set the process up, and find every wrong variable now rather than at its first use."""
    from .broker import redis_client

    config = settings()
    try:
        runtime.start()
    except OSError as error:
        name = "DATABASE_URL" if config.database_url else "MAILPOLL_DATA_DIR"
        raise Failure(f"{name}: the directory cannot be made ({error.strerror})") from None
    try:
        redis_client(config)
    except ValueError:
        raise Failure(
            "REDIS_URL: should be redis://[:password@]host:port/0, rediss://… or unix:///socket"
        ) from None
    try:
        runtime.storage()
    except OSError as error:
        raise Failure(f"STORAGE_URL: the directory cannot be made ({error.strerror})") from None


def needs_database(command: Callable[..., Any]) -> Callable[..., Any]:
    """Check that the database is there and up to date before the command uses it."""

    @needs_settings
    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        from . import migrate

        try:
            if migrate.pending():
                raise Failure("the database is not ready: run `mailpoll migrate` or `mailpoll up`")
            return command(*args, **kwargs)
        except UNREACHABLE as error:
            raise _away(error) from None

    return wrapper


def _away(error: Exception) -> Failure:
    """The driver's reason, unless the URL is so wrong that it could quote the password."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    password = urlsplit(settings().database).netloc.rpartition("@")[0].partition(":")[2]
    if password and any(part in reason for part in re.split("[@:/]", password) if part):
        reason = "is it a URL with its password percent-encoded?"
    return Failure(f"DATABASE_URL: the database does not answer ({reason})")


def _shown(text: str | None) -> Text:
    """A server's words for the terminal: no markup, no control sequences."""
    return Text("".join(c if c.isprintable() else "\ufffd" for c in text or ""))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mailpoll")
def cli() -> None:
    """Bring the mail of many IMAP mailboxes into your own database and object store."""


@cli.command()
@needs_settings
def up() -> None:
    """Run everything on this machine until Ctrl-C."""
    from . import migrate, processes

    config = settings()
    config.create_secrets()
    runtime.storage()
    migrate.migrate()
    token = config.require_tokens()[0]
    shown = token if sys.stderr.isatty() else f"in {config.data_dir / 'api.token'}"
    address = f"http://{config.bind}:{config.port}"
    click.echo(f"mailpoll {__version__}: {address}/docs and {address}/dashboard", err=True)
    click.echo(f"user admin, password or bearer token {shown}", err=True)
    click.echo("add a mailbox with: mailpoll accounts add me@example.org", err=True)
    sys.exit(processes.up(config))


@cli.command()
@needs_settings
def migrate() -> None:
    """Bring the database up to date."""
    from . import migrate as migrations

    try:
        done = migrations.migrate()
    except UNREACHABLE as error:
        raise _away(error) from None
    click.echo("\n".join(done) if done else "nothing to do")


@cli.command()
@needs_settings
def web() -> None:
    """Run the web process."""
    from . import processes

    settings().require_tokens()
    settings().require_keys()
    processes.run(processes.web_command(settings()))


@cli.command()
@needs_settings
def scheduler() -> None:
    """Run the scheduler. Two of them do no harm."""
    from . import processes

    sys.exit(processes.supervise_scheduler())


@cli.command()
@needs_settings
def poller() -> None:
    """Run a poller: it fetches mail."""
    from . import processes

    settings().require_keys()
    runtime.storage()
    processes.run(processes.poller_command(settings()))


@cli.command()
@needs_settings
def worker() -> None:
    """Run a worker: it parses mail and keeps house."""
    from . import processes

    runtime.storage()
    processes.run(processes.worker_command(settings()))


@cli.group()
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
@click.option(
    "--since", "import_since", type=click.DateTime(["%Y-%m-%d"]), help="import from then on"
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
@click.option("--json", "as_json", is_flag=True)
@needs_database
def add(
    *, password_stdin: bool, no_test: bool, as_json: bool, new_only: bool, **fields: Any
) -> None:
    """Add a mailbox: asks for the password, logs in, saves, and polls it."""
    from . import accounts as service
    from .web.schemas import NewAccount

    given = {name: value for name, value in fields.items() if value not in (None, ())}
    if "folders" in given:
        given["folders"] = list(given["folders"])
    given["import_since"] = _since(given.get("import_since"), new_only)
    if given.get("oauth_provider"):
        given["refresh_token"] = _secret("Refresh token: ", password_stdin)
    else:
        given["password"] = _secret("Password: ", password_stdin)
    try:
        new = NewAccount(**given, test=not no_test)
        account = service.create(**new.model_dump())
    except ValidationError as error:
        raise Failure("; ".join(map(_wrong, error.errors()))) from None
    except service.AccountError as error:
        raise Failure(str(error)) from None
    _enqueue_poll(account.id)
    if as_json:
        click.echo(json.dumps({"id": account.uuid, "address": account.address}))
    else:
        if account.estimated_bytes is not None:
            size = (account.estimated_messages, account.estimated_bytes)
            click.echo(f"to import: {_estimated(account.host, *size)}")
        click.echo(f"{account.address} added, id {account.uuid}. See: mailpoll stats")


def _wrong(error: Any) -> str:
    return f"{error['loc'][0]}: {error['msg'].removeprefix('Value error, ')}"


def _since(since: datetime | None, new_only: bool) -> datetime | None:
    if new_only:
        return database.now()
    return since.astimezone() if since else None


def _secret(prompt: str, from_stdin: bool) -> str:
    if from_stdin:
        try:
            return sys.stdin.buffer.readline().decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise Failure("password: should be UTF-8") from None
    return getpass.getpass(prompt)


def _enqueue_poll(account_id: int) -> None:
    from . import queues
    from .actors import poll_account
    from .models import EmailAccount

    if not queues.offer(poll_account, account_id):
        EmailAccount.mark_unqueued(account_id)
        click.echo("the queue does not answer: it is polled when `mailpoll up` runs", err=True)


@accounts.command("list")
@click.option("--json", "as_json", is_flag=True)
@needs_database
def list_accounts(as_json: bool) -> None:
    """List the mailboxes."""
    from .models import EmailAccount

    with database.connected():
        rows = list(EmailAccount.visible().order_by(EmailAccount.id))
    if as_json:
        names = ("address", "state", "host", "poll_interval", "last_success_at", "last_error")
        for row in rows:
            shown = {"id": row.uuid, **{name: getattr(row, name) for name in names}}
            click.echo(json.dumps(shown, default=str))
        return
    table = Table("address", "state", "host", "every", "last poll", "error")
    for row in rows:
        last = row.last_success_at.strftime("%Y-%m-%d %H:%M:%S") if row.last_success_at else "never"
        table.add_row(
            _shown(row.address),
            row.state,
            _shown(row.host),
            f"{row.poll_interval} s",
            last,
            _shown(row.last_error),
        )
    console.print(table)


def _find(name: str) -> Any:
    from .models import EmailAccount

    with database.connected():
        account = (
            EmailAccount.visible()
            .where((EmailAccount.address == name) | (EmailAccount.uuid == name))
            .get_or_none()
        )
    if account is None:
        raise Failure(f"there is no account {name}")
    return account


@accounts.command("pause")
@click.argument("account")
@needs_database
def pause(account: str) -> None:
    """Stop polling a mailbox (its address or id)."""
    from . import accounts as service

    service.pause(_find(account))
    click.echo("paused")


@accounts.command("resume")
@click.argument("account")
@needs_database
def resume(account: str) -> None:
    """Poll a mailbox again."""
    from . import accounts as service

    row = service.resume(_find(account))
    _enqueue_poll(row.id)
    click.echo("resumed")


@accounts.command("poll")
@click.argument("account")
@needs_database
def poll(account: str) -> None:
    """Poll a mailbox now."""
    from . import accounts as service

    row = _find(account)
    service.expect_poll(row)
    _enqueue_poll(row.id)
    click.echo("enqueued")


@accounts.command("reconcile")
@click.argument("account")
@needs_database
def reconcile(account: str) -> None:
    """Compare the server's whole lists with what is stored, now."""
    from . import accounts as service

    row = _find(account)
    service.expect_reconcile(row)
    _enqueue_poll(row.id)
    click.echo("enqueued; see the proof with: mailpoll stats " + row.address)


@accounts.command("test")
@click.argument("account")
@needs_database
def test_login(account: str) -> None:
    """Log in with the stored password and list the folders."""
    from . import accounts as service

    row = _find(account)
    try:
        found = service.test_login(row)
    except service.AccountError as error:
        raise Failure(str(error)) from None
    for name in found.folders:
        click.echo(_shown(name).plain)
    if found.estimate:
        click.echo(_estimated(row.host, found.estimate.messages, found.estimate.bytes), err=True)


def _estimated(host: str, messages: int, size: int) -> str:
    from . import budgets

    days = budgets.import_days(host, size)
    limit = f", {days:,} days under the provider's limit of bytes a day" if days else ""
    return f"{messages:,} messages, about {_size(size)}{limit}"


@accounts.command("delete")
@click.argument("account")
@click.option("--yes", is_flag=True, help="do not ask")
@needs_database
def delete(account: str, yes: bool) -> None:
    """Delete a mailbox here with all its stored mail; nothing changes at its server."""
    from . import accounts as service
    from . import queues

    row = _find(account)
    if not yes:
        click.confirm(f"Delete {row.address} and all its stored mail?", abort=True)
    job = service.delete(row.uuid)
    from .actors import delete_account

    if job is None:
        raise Failure(f"there is no account {account}")
    if not queues.offer(delete_account, job.id):
        click.echo("the queue does not answer: it is deleted when `mailpoll up` runs", err=True)
    click.echo(f"deletion started, job {job.uuid}")


@cli.command()
@click.argument("address")
@click.option("--host", help="IMAP server; default: looked for by the address")
@click.option("--port", type=int)
@click.option("--security", type=click.Choice(["tls", "starttls", "plain"]))
@click.option("--username", help="default: the address")
@click.option(
    "--oauth",
    "oauth_provider",
    type=click.Choice(["google", "microsoft", "generic"]),
    help="log in with OAuth 2: asks for a refresh token of this provider",
)
@click.option("--password-stdin", is_flag=True, help="read the secret from standard input")
@click.option("--json", "as_json", is_flag=True)
@needs_settings
def doctor(*, address: str, password_stdin: bool, as_json: bool, **fields: Any) -> None:
    """Find out why a mailbox cannot be connected, step by step.

    Takes everything from the stored account, if there is one and no option is given; else asks
    for the secret. Logs in once, and changes nothing.
    """
    from . import accounts as service
    from .doctor import Examination, Finding

    given = {name: value for name, value in fields.items() if value is not None}
    account = None if given else _stored(address)
    report = Report(address, as_json)
    try:
        if account is not None:
            login = service.stored_login(account)
            source = "the stored account"
        else:
            prompt = "Refresh token: " if given.get("oauth_provider") else "Password: "
            field = "refresh_token" if given.get("oauth_provider") else "password"
            given[field] = _secret(prompt, password_stdin)
            login, place = service.new_login(address=address, **given)
            source = place.source
    except service.AccountError as error:
        report.add(Finding("where", False, str(error), error.field))
        sys.exit(report.end(None))
    where = f"{login.host}:{login.port}, {login.security} ({source})"
    report.add(Finding("where", True, where))
    examination = Examination(login, settings())
    for finding in examination.run():
        report.add(finding)
    sys.exit(report.end(examination))


def _stored(address: str) -> Any:
    """The account of an address, if there is a database and it knows it."""
    from . import migrate
    from .models import EmailAccount

    try:
        if migrate.pending():
            return None
        with database.connected():
            named = (EmailAccount.address == address) | (EmailAccount.uuid == address)
            return EmailAccount.visible().where(named).get_or_none()
    except UNREACHABLE as error:
        raise _away(error) from None


class Report:
    """Findings as they come: lines for people, or one JSON object at the end."""

    def __init__(self, address: str, as_json: bool) -> None:
        self._address = address
        self._as_json = as_json
        self._findings: list[Any] = []

    def add(self, finding: Any) -> None:
        self._findings.append(finding)
        if self._as_json:
            return
        mark = Text("ok  " if finding.ok else "FAIL", style="green" if finding.ok else "bold red")
        line = Text(f"  {finding.step:<13}").append(_shown(finding.detail))
        console.print(mark + line, soft_wrap=True)

    def end(self, examination: Any) -> int:
        """Show what belongs to the whole; the exit code."""
        from .doctor import login_is_to_blame

        last = self._findings[-1]
        to_blame = not last.ok and login_is_to_blame(last)
        advice = examination.advice if examination and to_blame else None
        notes = examination.notes if examination else []
        if self._as_json:
            document = {
                "address": self._address,
                "ok": last.ok,
                "steps": [asdict(finding) for finding in self._findings],
                "advice": advice,
                "extensions": examination.extensions if examination else [],
                "notes": notes,
            }
            click.echo(json.dumps(document, indent=2))
        else:
            for note in notes:
                console.print(Text("note  ").append(_shown(note)), soft_wrap=True)
            if advice:
                console.print(Text("do    ").append(_shown(advice)), soft_wrap=True)
        return 0 if last.ok else 1


@cli.command()
@click.argument("account", required=False)
@click.option("--json", "as_json", is_flag=True)
@needs_database
def stats(account: str | None, as_json: bool) -> None:
    """Show figures of all mailboxes, or of one."""
    from . import budgets
    from . import stats as figures

    if account:
        row = _find(account)
        found = figures.account_stats(row) | {"budget": asdict(budgets.of(row))}
    else:
        found = figures.overall_stats()
    if as_json:
        click.echo(json.dumps(found, default=str, indent=2))
        return
    if account:
        _show_account(found)
    else:
        _show_overall(found)


def _show_account(found: dict[str, Any]) -> None:
    console.print(_shown(found["address"]).append(f"  {found['state']}"), style="bold")
    if found["last_error"]:
        console.print(Text("last error: ").append(_shown(found["last_error"])), style="red")
    _show_counts(found)
    _show_budget(found["budget"])
    _show_progress(found)
    table = Table(
        "folder",
        *PROOF,
        "proved",
    )
    for folder in found["folders"]:
        proof = folder["proof"] or {}
        when = folder["proved_at"]
        table.add_row(
            _shown(folder["name"]),
            *(f"{proof[part]:,}" if part in proof else "?" for part in PROOF.values()),
            _shown(folder["last_error"])
            if folder["last_error"]
            else f"{when:%m-%d %H:%M}"
            if when
            else "not yet",
        )
    console.print(table)
    _show_unfetched(found)


def _show_unfetched(found: dict[str, Any]) -> None:
    if not found["unfetched"]:
        return
    table = Table("folder", "UID", "verdict", "next try", "reason", title="without a message")
    for row in found["unfetched"][:UNFETCHED]:
        when = row["next_attempt_at"]
        tried = row["verdict"] in ("waiting", "unreadable")
        table.add_row(
            _shown(row["folder"]),
            str(row["uid"]),
            row["verdict"],
            f"{when:%m-%d %H:%M}" if when and tried else "",
            _shown(row["reason"]),
        )
    console.print(table)


def _show_progress(found: dict[str, Any]) -> None:
    progress = found["import"]
    if progress["left"]:
        left = progress["seconds_left"]
        time_left = f", about {left // 60 + 1:,} minutes" if left is not None else ""
        console.print(
            f"import: {progress['messages']:,} done, {progress['left']:,} left{time_left}"
        )
    if found["delay"]:
        console.print(Text("delay: ").append(_shown(found["delay"])), style="yellow")


def _show_budget(budget: dict[str, Any]) -> None:
    limit = f" of {_size(budget['bytes_limit'])}" if budget["bytes_limit"] else ""
    console.print(f"fetched today (UTC): {_size(budget['bytes_today'])}{limit}")
    if budget["not_before"]:
        console.print(f"its provider wants a pause until {budget['not_before']:%Y-%m-%d %H:%M:%S}")


def _show_overall(found: dict[str, Any]) -> None:
    from .models import EmailAccount, EmailAccountDay

    states = ", ".join(f"{count} {state}" for state, count in found["accounts"].items() if count)
    console.print(f"accounts: {states or 'none'}; late: {found['late_accounts']}")
    _show_counts(found)
    day = EmailAccountDay
    with database.connected():
        sums = (
            EmailAccount.visible()
            .select(
                EmailAccount,
                peewee.fn.COALESCE(peewee.fn.SUM(day.messages), 0).alias("stored"),
                peewee.fn.COALESCE(peewee.fn.SUM(day.bytes), 0).alias("size"),
            )
            .join(day, peewee.JOIN.LEFT_OUTER)
            .group_by(EmailAccount.id)
            .order_by(EmailAccount.id)
        )
        table = Table("address", "state", "messages", "size", "last poll", "error")
        for row in sums:
            last = row.last_success_at.strftime("%H:%M:%S") if row.last_success_at else "never"
            table.add_row(
                _shown(row.address),
                row.state,
                f"{int(row.stored):,}",
                _size(int(row.size)),
                last,
                _shown(row.last_error),
            )
    console.print(table)


def _show_counts(found: dict[str, Any]) -> None:
    by_status = ", ".join(f"{count:,} {status}" for status, count in found["by_status"].items())
    console.print(f"messages: {found['messages']:,} ({_size(found['bytes'])}): {by_status}")
    stores = ", ".join(f"{count:,} {kind}" for kind, count in found["by_storage_type"].items())
    console.print(f"attachments: {found['attachments']:,}; blobs: {stores}")


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1_000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1_000
    return f"{size:.1f} TB"


class CouldNotRun(Failure):
    """The same with exit code 2, where 1 has a meaning of its own."""

    exit_code = 2


def failing_with_2(command: Callable[..., Any]) -> Callable[..., Any]:
    """Tell a command that could not run from one that found something."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except Failure as failure:
            raise CouldNotRun(failure.message) from None

    return wrapper


@cli.command()
@click.option("--account", metavar="ADDRESS_OR_ID", help="only this mailbox")
@click.option("--repair", is_flag=True, help="repair what can be repaired")
@click.option("--offline", is_flag=True, help="ask no mail server")
@click.option("--bytes", "contents", is_flag=True, help="fetch all mail again and compare it")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@failing_with_2
@needs_database
def fsck(account: str | None, repair: bool, offline: bool, contents: bool, as_json: bool) -> None:
    """Check database, blobs and servers against each other.

    Exit code 0: no difference is left; 1: some are; 2: something could not be checked.
    """
    from . import fsck as checking

    if offline and contents:
        raise Failure("--bytes: asks the mail servers, and --offline says not to")
    only = _find(account) if account else None
    tally = checking.Tally()
    found = checking.check(only, tally, repair=repair, offline=offline, contents=contents)
    if as_json:
        for difference in found:
            click.echo(json.dumps(difference.as_dict()))
        click.echo(json.dumps(tally.as_dict()))
    else:
        with _progress(tally):
            for difference in found:
                console.print(_shown(difference.as_line()), soft_wrap=True)
        _show_tally(tally, offline)
    sys.exit(tally.exit_code)


def _progress(tally: Any) -> AbstractContextManager[Any]:
    """What is being checked, on a terminal."""
    if not console.is_terminal:
        return nullcontext()
    spinner = Spinner("dots")

    def render() -> Spinner:
        read = f"blobs: {tally.blobs:,} ({_size(tally.bytes)}); differences: {tally.differences:,}"
        spinner.update(text=_shown(f"{read}  {tally.now}"))
        return spinner

    return Live(get_renderable=render, console=console, refresh_per_second=5, transient=True)


def _show_tally(tally: Any, offline: bool) -> None:
    console.print(
        f"accounts: {tally.accounts:,}; messages: {tally.messages:,}; "
        f"attachments: {tally.attachments:,}; "
        f"blobs read back: {tally.blobs:,} ({_size(tally.bytes)})",
        soft_wrap=True,
    )
    if offline:
        console.print("no server was asked")
    else:
        console.print(
            f"folders compared with their servers: {tally.folders:,}; messages there that came "
            f"since the last poll: {tally.newer:,}, still to be imported: {tally.to_import:,}, "
            f"counted but not listed: {tally.withheld:,}",
            soft_wrap=True,
        )
    for reason in tally.unchecked:
        console.print(Text("not checked: ").append(_shown(reason)), style="yellow", soft_wrap=True)
    parts = ", ".join(
        f"{tally.outcomes[name]:,} {words}"
        for name, words in OUTCOMES.items()
        if tally.outcomes[name]
    )
    style = "red" if tally.remaining else "green"
    console.print(f"differences: {tally.differences:,}{parts and f' ({parts})'}", style=style)


@cli.group()
def keys() -> None:
    """Encryption keys."""


@keys.command("new")
def keys_new() -> None:
    """Print a new key for MAILPOLL_SECRET_KEY; put it before the old ones, with a comma."""
    click.echo(new_key())


@cli.group()
def tokens() -> None:
    """API tokens."""


@tokens.command("new")
def tokens_new() -> None:
    """Print a new token for MAILPOLL_API_TOKEN."""
    click.echo(new_token())


@cli.command()
@click.argument("target", type=click.Path(path_type=Path), required=False)
def openapi(target: Path | None) -> None:
    """Print the API's OpenAPI document, or write it to a file."""
    from .web.app import create_app
    from .web.documents import document

    create_app()  # which adds the routes to it
    text = json.dumps(document(), indent=2)
    if target:
        target.write_text(text)
    else:
        click.echo(text)


def main() -> None:
    """The ``mailpoll`` command."""
    cli()
