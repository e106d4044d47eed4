"""Commands for operators: the audit log, messages to them, and the API's document."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from .needs import needs_database, needs_settings
from .output import Failure, at_most, failing_with_2, new_table, safe, show, show_json, tell


@click.command("audit")
@click.option("--who", help="a key's name, or: api token, command line, nobody")
@click.option("--action", help="such as account.delete")
@click.option("--target", help="the id of an account, a message …")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="from this day on (UTC)")
@at_most
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@needs_database
def show_audit(limit: int, as_json: bool, since: datetime | None, **filters: Any) -> None:
    """Show who did what, newest first."""
    from .. import audit

    rows = audit.find(limit, since=since and since.replace(tzinfo=UTC), **filters)
    names = ("at", "who", "action", "kind", "target", "request_id", "client")
    if as_json:
        for row in rows:
            show_json({name: getattr(row, name) for name in names})
        return
    table = new_table("at (UTC)", "who", "action", "target", "client")
    for row in rows:
        at = f"{row.at:%Y-%m-%d %H:%M:%S}"
        table.add_row(at, safe(row.who), row.action, safe(row.target), safe(row.client))
    show(table)


@click.group()
def notify() -> None:
    """Messages to operators."""


@notify.command("test")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per receiver")
@failing_with_2
@needs_settings
def notify_test(as_json: bool) -> None:
    """Send a message to every receiver of MAILPOLL_NOTIFY_URLS.

    Exit code 1: one did not take it; 2: none is set.
    """
    from .. import notify as service
    from ..settings import settings

    receivers = service.receivers(settings().notify_urls)
    if not receivers:
        raise Failure("MAILPOLL_NOTIFY_URLS: is not set")
    failed = False
    for receiver in receivers:
        words = "If you read this, mailpoll's alarms reach you."
        sent = receiver.send("mailpoll: test", words, service.INFO)
        told = f"{receiver.name}: {'sent' if sent else 'not taken'}"
        tell({"receiver": receiver.name, "sent": bool(sent)}, told, as_json=as_json)
        failed = failed or not sent
    sys.exit(int(failed))


@click.command()
@click.argument("target", type=click.Path(path_type=Path), required=False)
@needs_settings
def openapi(target: Path | None) -> None:
    """Print the API's OpenAPI document, or write it to a file."""
    import falcon

    from ..web.app import install_all
    from ..web.documents import document

    install_all(falcon.App())
    text = json.dumps(document(), indent=2)
    if target is None:
        click.echo(text)
        return
    try:
        target.write_text(text)
    except OSError as error:
        raise Failure(f"{target}: {error.strerror}") from None
