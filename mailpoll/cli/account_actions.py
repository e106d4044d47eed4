"""What ``mailpoll accounts`` does with one or more mailboxes: poll, pause, resume, delete."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .accounts import enqueue_poll
from .needs import find_account, needs_database
from .output import Failure, show_json

if TYPE_CHECKING:
    from ..models import EmailAccount

#: Does it to one mailbox, and says what was done.
Deed = Callable[["EmailAccount"], dict[str, Any]]


def _to_each(names: tuple[str, ...], as_json: bool, deed: Deed) -> None:
    """All are looked up first: a name that nobody has leaves the others as they are."""
    from ..logins import AccountError

    for row in [find_account(name) for name in names]:
        try:
            done = deed(row)
        except AccountError as error:
            raise Failure(f"{row.address}: {error}") from None
        if as_json:
            show_json({"id": row.uuid, "address": row.address, **done})
        else:
            click.echo(f"{row.address}: {', '.join(map(str, done.values()))}")


def _command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command that takes mailboxes by address or id."""

    def declare(function: Callable[..., None]) -> click.Command:
        function = needs_database(function)
        as_json = click.option(
            "--json", "as_json", is_flag=True, help="one JSON object per mailbox"
        )
        some = click.argument("names", metavar="ACCOUNT…", nargs=-1, required=True)
        command: click.Command = click.command(name)(some(as_json(function)))
        return command

    return declare


def _need_active(row: "EmailAccount") -> None:
    from ..models import AccountState

    if row.state != AccountState.ACTIVE:
        raise Failure(f"{row.address} is {row.state}: resume it first")


@_command("pause")
def pause(names: tuple[str, ...], as_json: bool) -> None:
    """Stop polling mailboxes (addresses or ids)."""
    from .. import accounts as service

    def deed(row: "EmailAccount") -> dict[str, Any]:
        service.pause(row)
        return {"state": "paused"}

    _to_each(names, as_json, deed)


@_command("resume")
def resume(names: tuple[str, ...], as_json: bool) -> None:
    """Poll mailboxes again."""
    from .. import accounts as service

    def deed(row: "EmailAccount") -> dict[str, Any]:
        enqueue_poll(service.resume(row).id)
        return {"state": "resumed"}

    _to_each(names, as_json, deed)


@_command("poll")
def poll(names: tuple[str, ...], as_json: bool) -> None:
    """Poll mailboxes now."""
    from .. import accounts as service

    def deed(row: "EmailAccount") -> dict[str, Any]:
        _need_active(row)
        service.expect_poll(row)
        enqueue_poll(row.id)
        return {"poll": "enqueued"}

    _to_each(names, as_json, deed)


@_command("reconcile")
def reconcile(names: tuple[str, ...], as_json: bool) -> None:
    """Compare the servers' whole lists with what is stored, now: see mailpoll stats ACCOUNT."""
    from .. import accounts as service

    def deed(row: "EmailAccount") -> dict[str, Any]:
        _need_active(row)
        service.expect_reconcile(row)
        enqueue_poll(row.id)
        return {"poll": "enqueued"}

    _to_each(names, as_json, deed)


@_command("delete")
@click.option("--yes", is_flag=True, help="do not ask")
def delete(names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete mailboxes here with all their stored mail; nothing changes at their servers."""
    from .. import accounts as service
    from .. import holds, queues
    from ..actors import delete_account

    addresses = [find_account(name).address for name in names]
    if not yes:
        click.confirm(f"Delete {', '.join(addresses)} and all their stored mail?", abort=True)

    def deed(row: "EmailAccount") -> dict[str, Any]:
        try:
            job = service.delete(row.uuid)
        except holds.Held as held:
            raise Failure(str(held)) from None
        if job is None:
            raise Failure(f"there is no account {row.address}")
        if not queues.offer(delete_account, job.id):
            click.echo("the queue does not answer: deleted when `mailpoll up` runs", err=True)
        return {"deletion": "started", "job": job.uuid}

    _to_each(names, as_json, deed)
