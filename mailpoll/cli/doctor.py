"""``mailpoll doctor``: what is wrong with the installation, or with the way to a mailbox."""

import sys
from dataclasses import asdict
from typing import Any

import click

from .needs import ask_secret, needs_settings, reaching_database
from .output import failing_with_2, safe, show, show_json, styled


@click.command()
@click.argument("address", required=False)
@click.option("--host", help="IMAP server; default: looked for by the address")
@click.option("--port", type=int, help="default: as found")
@click.option(
    "--security", type=click.Choice(["tls", "starttls", "plain"]), help="default: as found"
)
@click.option("--username", help="default: the address")
@click.option(
    "--oauth",
    "oauth_provider",
    type=click.Choice(["google", "microsoft", "generic"]),
    help="log in with OAuth 2: asks for a refresh token of this provider",
)
@click.option("--password-stdin", is_flag=True, help="read the secret from standard input")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@failing_with_2
@needs_settings
def doctor(*, address: str | None, password_stdin: bool, as_json: bool, **fields: Any) -> None:
    """Find out what is wrong, and what to do about it.

    Without ADDRESS: whether the installation is set up well, from settings and database over Redis,
    the store and the clocks to the mail servers. Exit code 1: something is wrong.

    With ADDRESS: why a mailbox cannot be connected, step by step. Takes everything from the stored
    account, if there is one and no option is given; else asks for the secret. Logs in once, and
    changes nothing.
    """
    from .. import logins
    from ..doctor import Examination, Finding
    from ..settings import settings

    given = {name: value for name, value in fields.items() if value is not None}
    if address is None:
        if given or password_stdin:
            raise click.UsageError("options are about a mailbox: say its ADDRESS")
        sys.exit(_check_up(as_json))
    account = None if given else _stored(address)
    report = Report(address, as_json)
    try:
        if account is not None:
            login = logins.stored_login(account)
            source = "the stored account"
        else:
            prompt = "Refresh token: " if given.get("oauth_provider") else "Password: "
            field = "refresh_token" if given.get("oauth_provider") else "password"
            given[field] = ask_secret(prompt, password_stdin)
            login, place = logins.new_login(address=address, **given)
            source = place.source
    except logins.AccountError as error:
        report.add(Finding("where", False, str(error), error.field))
        sys.exit(report.end(None))
    where = f"{login.host}:{login.port}, {login.security} ({source})"
    report.add(Finding("where", True, where))
    examination = Examination(login, settings())
    for finding in examination.run():
        report.add(finding)
    sys.exit(report.end(examination))


def _check_up(as_json: bool) -> int:
    """Show each finding as it comes; the exit code."""
    from .. import checkup
    from ..settings import settings

    marks = {
        checkup.State.OK: styled("ok    ", style="green"),
        checkup.State.CONCERN: styled("note  ", style="yellow"),
        checkup.State.WRONG: styled("WRONG ", style="bold red"),
    }
    found = []
    for finding in checkup.run(settings()):
        found.append(finding)
        if not as_json:
            line = styled(f"{finding.check:<13}").append(safe(finding.detail))
            show(marks[finding.state] + line, soft_wrap=True)
            if finding.advice:
                show(styled(f"{'':<19}-> ").append(safe(finding.advice)), soft_wrap=True)
    ok = all(finding.state is not checkup.State.WRONG for finding in found)
    if as_json:
        show_json({"ok": ok, "checks": [asdict(finding) for finding in found]}, indent=2)
    return 0 if ok else 1


def _stored(address: str) -> Any:
    """The account of an address, if there is a database and it knows it."""
    from .. import database, migrate
    from ..models import EmailAccount

    with reaching_database():
        if migrate.pending():
            return None
        with database.connected():
            named = (EmailAccount.address == address) | (EmailAccount.uuid == address)
            return EmailAccount.visible().where(named).get_or_none()


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
        mark = styled("ok  " if finding.ok else "FAIL", style="green" if finding.ok else "bold red")
        line = styled(f"  {finding.step:<13}").append(safe(finding.detail))
        show(mark + line, soft_wrap=True)

    def end(self, examination: Any) -> int:
        """Show what belongs to the whole; the exit code."""
        from ..doctor import login_is_to_blame

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
            show_json(document, indent=2)
        else:
            for note in notes:
                show(styled("note  ").append(safe(note)), soft_wrap=True)
            if advice:
                show(styled("do    ").append(safe(advice)), soft_wrap=True)
        return 0 if last.ok else 1
