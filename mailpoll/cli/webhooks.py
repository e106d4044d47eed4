"""``mailpoll webhooks``: programs that are told of events, and what became of it."""

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from .event_types import types_option
from .needs import find_account, needs_database
from .output import (
    Failure,
    at_most,
    failing_with_2,
    new_table,
    refused,
    safe,
    show,
    show_json,
    styled,
    tell,
)

if TYPE_CHECKING:
    from rich.text import Text

    from ..models import WebhookEndpoint
    from ..web.schemas import Delivery

#: Colours of states and outcomes.
STYLES = {"active": "green", "delivered": "green", "paused": "yellow", "failed": "yellow"}


@click.group("webhooks")
def hooks() -> None:
    """Programs of yours that are told of events.

    A WEBHOOK is named by its id, or by its URL where only one has it.
    """


@hooks.command("list")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@needs_database
def list_hooks(as_json: bool) -> None:
    """List the webhooks: their state, and how many events they are behind."""
    from .. import webhooks as service
    from ..web.webhooks import show as public

    table = new_table("url", "state", "behind", "last success", "error", "id")
    for endpoint in service.listed():
        row = public(endpoint)
        if as_json:
            show_json(row.model_dump(mode="json"))
        last = _when(row.last_success_at) or "never"
        error = safe(row.last_error)
        table.add_row(safe(row.url), _styled(row.state), f"{row.behind:,}", last, error, row.id)
    if not as_json:
        show(table)


@hooks.command("add")
@click.argument("url")
@types_option("tell of this type, such as message.new; can be repeated; default: all")
@click.option(
    "--account",
    "accounts",
    metavar="ADDRESS_OR_ID",
    multiple=True,
    help="tell of this mailbox; can be repeated; default: all",
)
@click.option("--imports", is_flag=True, help="tell of the messages of first imports too")
@click.option(
    "--payload",
    type=click.Choice(["ids", "fields", "bodies"]),
    help="how much of a message is sent; default: ids",
)
@click.option("--body-limit", type=int, help="bytes of text and of HTML with --payload bodies")
@click.option("--rate", type=int, help="deliveries a second, at most")
@click.option("--description", help="what it is for")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def add_hook(
    url: str, types: tuple[str, ...], accounts: tuple[str, ...], as_json: bool, **fields: Any
) -> None:
    """Add a webhook: it is told of what happens from now on.

    Prints the secret that its requests are signed with, which cannot be shown again: the receiver
    verifies them with it, after Standard Webhooks.
    """
    from pydantic import ValidationError

    from .. import webhooks as service
    from ..web.schemas import NewWebhook
    from ..web.webhooks import columns, show_with_secret

    given = {name: value for name, value in fields.items() if value is not None}
    if types:
        given["types"] = list(types)
    if accounts:
        given["accounts"] = [find_account(name).uuid for name in accounts]
    try:
        endpoint, secret = service.create(**columns(NewWebhook(url=url, **given)))
    except ValidationError as error:
        raise refused(error) from None
    except service.EndpointError as error:
        raise Failure(str(error)) from None
    if as_json:
        show_json(show_with_secret(endpoint, secret).model_dump(mode="json"))
    else:
        click.echo(secret)
        click.echo(f"added, id {endpoint.uuid}: keep the secret now, it is shown once", err=True)
        click.echo(f"try it with: mailpoll webhooks test {endpoint.uuid}", err=True)


@hooks.command("show")
@click.argument("webhook")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def show_hook(webhook: str, as_json: bool) -> None:
    """Show a webhook with all its settings, and where it is in the log of events."""
    from ..web.webhooks import show as public

    found = public(_find(webhook)).model_dump(mode="json")
    if as_json:
        show_json(found, indent=2)
        return
    for name, value in found.items():
        line = styled(f"{name.replace('_', ' '):<16}")
        show(line.append(_value(name, value)), soft_wrap=True)


def _value(name: str, value: Any) -> "Text":
    if isinstance(value, list):
        return safe(", ".join(value))
    if isinstance(value, bool):
        return styled("yes" if value else "no")
    if value in (None, ""):
        return styled("all" if name in ("types", "accounts") else "none")
    return _styled(value) if name == "state" else safe(str(value))


@hooks.command("test")
@click.argument("webhook")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@failing_with_2
@needs_database
def test_hook(webhook: str, as_json: bool) -> None:
    """Send a test event now, and tell what the receiver answers.

    Exit code 0: it took it; 1: it did not.
    """
    from .. import webhooks as service
    from ..web.webhooks import sent

    done = service.test(_find(webhook))
    if as_json:
        show_json(sent(done, None, service.TEST).model_dump(mode="json"))
    else:
        answer = f"the receiver answers {done.status}" if done.status else ""
        line = _styled(done.outcome).append(f" in {done.duration_ms} ms: ")
        show(line.append(safe(done.error or answer)), soft_wrap=True)
    sys.exit(0 if done.delivered else 1)


@hooks.command("replay")
@click.argument("webhook")
@click.option("--after", type=click.IntRange(0), metavar="ID", help="what is behind this event")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="what happened then or later (UTC)",
)
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def replay_hook(webhook: str, after: int | None, since: datetime | None, as_json: bool) -> None:
    """Send events again that were delivered before, with the same ids.

    Takes either --after or --since. --after 0 sends everything that is in the log.
    """
    from .. import webhooks as service

    if (after is None) == (since is None):
        raise click.UsageError("give either --after or --since")
    endpoint = _find(webhook)
    service.replay(endpoint, after, since and since.replace(tzinfo=UTC))
    _deliver(endpoint)
    _done(endpoint, as_json, "{behind:,} events are sent again")


@hooks.command("enable")
@click.argument("webhook")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def enable_hook(webhook: str, as_json: bool) -> None:
    """Let a webhook be told again, also one that mailpoll has disabled; it goes on where it was."""
    endpoint = _change(webhook, "active")
    _deliver(endpoint)
    _done(endpoint, as_json, "enabled, {behind:,} events behind")


@hooks.command("disable")
@click.argument("webhook")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def disable_hook(webhook: str, as_json: bool) -> None:
    """Tell a webhook nothing until it is enabled again; its events wait in the log.

    Its state is `paused` then: mailpoll itself sets `disabled` where a receiver is gone.
    """
    _done(_change(webhook, "paused"), as_json, "paused; go on with: mailpoll webhooks enable {id}")


@hooks.command("remove")
@click.argument("webhook")
@click.option("--yes", is_flag=True, help="do not ask")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def remove_hook(webhook: str, yes: bool, as_json: bool) -> None:
    """Remove a webhook with the log of its deliveries."""
    from .. import webhooks as service

    endpoint = _find(webhook)
    if not yes:
        click.confirm(f"Remove {safe(endpoint.url).plain} and its log?", abort=True)
    service.delete(endpoint)
    tell({"id": endpoint.uuid, "removed": True}, "removed", as_json=as_json)


@hooks.command("deliveries")
@click.argument("webhook")
@click.option("--outcome", type=click.Choice(["delivered", "failed", "refused"]), help="only those")
@at_most
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@needs_database
def list_deliveries(webhook: str, outcome: str | None, limit: int, as_json: bool) -> None:
    """List what was sent to a webhook, newest first.

    An outcome is `delivered`, `failed` (it is tried again) or `refused` (set aside, as the receiver
    does not want it). --json has the beginnings of requests and answers too.
    """
    from .. import webhooks as service
    from ..web.webhooks import delivery

    found = [delivery(row) for row in service.deliveries(_find(webhook), limit, outcome)]
    if as_json:
        for row in found:
            show_json(row.model_dump(mode="json"))
    else:
        _show_deliveries(found)


def _show_deliveries(found: list["Delivery"]) -> None:
    table = new_table("at (UTC)", "event", "type", "attempt", "outcome", "status", "ms", "error")
    for row in found:
        table.add_row(
            _when(row.created_at),
            str(row.event),
            row.type,
            str(row.attempt),
            _styled(row.outcome),
            str(row.status or ""),
            f"{row.duration_ms:,}",
            safe(row.error),
        )
    show(table)


def _find(name: str) -> "WebhookEndpoint":
    """The endpoint with this id, or the only one with this URL."""
    from .. import webhooks as service

    found = [row for row in service.listed() if name in (row.uuid, row.url)]
    if not found:
        raise Failure(f"there is no webhook {name}; see: mailpoll webhooks list")
    if len(found) > 1:
        raise Failure(f"{len(found)} webhooks have this URL: name one by its id")
    return found[0]


def _change(name: str, state: str) -> "WebhookEndpoint":
    from .. import webhooks as service

    return service.change(_find(name), {"state": state})


def _deliver(endpoint: "WebhookEndpoint") -> None:
    from .. import queues
    from ..actors import deliver_events

    if not queues.offer(deliver_events, endpoint.id):
        click.echo("the queue does not answer: it is told when `mailpoll up` runs", err=True)


def _done(endpoint: "WebhookEndpoint", as_json: bool, words: str) -> None:
    """What has become of an endpoint: ``words`` with its fields, or all of them as JSON."""
    from .. import webhooks as service
    from ..web.webhooks import show as public

    now = service.find(endpoint.uuid)
    if now is None:
        raise Failure("the webhook was removed meanwhile")
    found = public(now).model_dump(mode="json")
    if as_json:
        show_json(found)
    else:
        click.echo(words.format(**found))


def _styled(word: str) -> "Text":
    return styled(word, STYLES.get(word, "red"))


def _when(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else ""
