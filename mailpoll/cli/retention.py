"""``mailpoll retention`` and ``mailpoll holds``: what is deleted, and what must not be."""

from dataclasses import asdict
from typing import Any

import click

from .needs import find_account, needs_database
from .output import Failure, new_table, readable_size, refused, safe, show, show_json, tell


@click.command("retention")
@click.option("--account", metavar="ADDRESS_OR_ID", help="only this mailbox")
@click.option("--dry-run", is_flag=True, help="say what would be deleted, and delete nothing")
@click.option("--list", "listed", is_flag=True, help="with --dry-run: each message too")
@click.option("--yes", is_flag=True, help="do not ask")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@needs_database
def show_retention(
    account: str | None, dry_run: bool, listed: bool, yes: bool, as_json: bool
) -> None:
    """Delete the mail whose time is over, or say first what that is.

    Workers do the same by themselves, every six hours for each mailbox.
    """
    from .. import database, policy
    from ..models import EmailAccount

    if listed and not dry_run:
        raise click.UsageError("--list: goes with --dry-run")
    if account:
        rows = [find_account(account)]
    else:
        with database.connected():
            rows = list(EmailAccount.visible().order_by(EmailAccount.id))
    if not dry_run and not yes:
        click.confirm("Delete the mail whose time is over?", abort=True)
    total = 0
    for row in rows:
        tally = _survey(row, listed, as_json) if dry_run else _retain(row)
        total += tally.messages.total()
        for rule in policy.Rule:
            _show_rule(row, rule, tally, as_json)
        if not dry_run and not tally.done:
            click.echo(safe(f"{row.address}: workers go on later").plain, err=True)
        if tally.unproved:
            line = f"{row.address}: no expunged mail is deleted: {tally.unproved}"
            click.echo(safe(line).plain, err=True)
    if not as_json:
        click.echo(f"{total:,} messages {'would be' if dry_run else 'are'} deleted")


def _survey(row: Any, listed: bool, as_json: bool) -> Any:
    from .. import database, retention

    survey = retention.Survey(row, database.now())
    for due in survey.due():
        if listed and as_json:
            shown = {"kind": "message", "account": row.uuid, **asdict(due)}
            show_json(shown)
        elif listed:
            where = f"{row.address}: message {due.id}, arrived {due.internal_date:%Y-%m-%d %H:%M}"
            click.echo(safe(f"{where}, {due.size:,} bytes, {due.rule}").plain)
    return survey.tally


def _retain(row: Any) -> Any:
    import time

    from .. import policy, retention

    total = retention.Tally(done=not policy.of(row))
    while not total.done:
        tally = retention.go_through(row.id, time.monotonic() + retention.TURN, patience=60)
        if tally is None:
            raise Failure(f"{row.address}: a poll is running; try again")
        total.messages += tally.messages
        total.bytes += tally.bytes
        total.unproved = tally.unproved
        total.done = tally.done
        if not tally.done:
            if not tally.messages and not tally.blobs:
                break  # the store is away, or mail is being processed: a worker goes on later
            time.sleep(1)  # polls get their turn
    return total


def _show_rule(row: Any, rule: Any, tally: Any, as_json: bool) -> None:
    from .. import policy

    kept = policy.of(row)
    days = kept.days if rule is policy.Rule.AGE else kept.expunged_days
    if not days:
        return
    amounts = (tally.messages[rule], tally.bytes[rule], tally.held[rule])
    if as_json:
        names = ("messages", "bytes", "held")
        found = {"kind": "summary", "account": row.uuid, "address": row.address}
        found |= {"rule": str(rule), "days": days, **dict(zip(names, amounts, strict=True))}
        show_json(found | {"unproved": tally.unproved})
        return
    words = "arrived" if rule is policy.Rule.AGE else "left the server"
    held = f", {amounts[2]:,} held" if amounts[2] else ""
    line = f"{row.address}: {amounts[0]:,} messages ({readable_size(amounts[1])}{held})"
    click.echo(safe(f"{line} {words} over {days} days ago").plain)


@click.group("holds")
def legal_holds() -> None:
    """Legal holds: what must not be deleted."""


@legal_holds.command("list")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@needs_database
def list_holds(as_json: bool) -> None:
    """List the holds, newest first."""
    from .. import holds

    table = new_table("mailbox", "message", "since (UTC)", "by", "reason")
    for row in holds.listed(100_000):
        if as_json:
            names = ("message_id", "reason", "held_by", "held_at")
            found = {name: getattr(row, name) for name in names}
            shown = {"account": row.account.uuid, "address": row.account.address, **found}
            show_json(shown)
        what = "all" if row.message_id is None else str(row.message_id)
        when = f"{row.held_at:%Y-%m-%d %H:%M}"
        address = safe(row.account.address)
        table.add_row(address, what, when, safe(row.held_by), safe(row.reason))
    if not as_json:
        show(table)


@legal_holds.command("set")
@click.argument("account")
@click.option("--message", type=int, help="only this message of it, by its id")
@click.option("--reason", required=True, help="why, as an audit will want to know")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def set_hold(account: str, message: int | None, reason: str, as_json: bool) -> None:
    """Let nothing of a mailbox be deleted, or not this message."""
    from pydantic import ValidationError

    from .. import holds
    from ..web.schemas import NewHold

    row = find_account(account)
    try:
        holds.hold(row, NewHold(reason=reason).reason, _message_of(row, message))
    except ValidationError as error:
        raise refused(error) from None
    except LookupError as error:
        raise Failure(f"there is no such {error}") from None
    done = {"account_id": row.uuid, "message_id": message, "held": True}
    tell(done, "held", as_json=as_json)


@legal_holds.command("lift")
@click.argument("account")
@click.option("--message", type=int, help="only that on this message, by its id")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def lift_hold(account: str, message: int | None, as_json: bool) -> None:
    """End a hold: on the whole mailbox, or on a message."""
    from .. import holds

    row = find_account(account)
    if not holds.lift(row, _message_of(row, message)):
        raise Failure("there is no such hold")
    done = {"account_id": row.uuid, "message_id": message, "held": False}
    tell(done, "lifted", as_json=as_json)


def _message_of(account: Any, message_id: int | None) -> Any:
    from .. import database
    from ..models import EmailRawMessage

    if message_id is None:
        return None
    table = EmailRawMessage
    with database.connected():
        found = table.get_or_none(table.id == message_id, table.account == account.id)
    if found is None:
        raise Failure(f"the account has no message {message_id}")
    return found
