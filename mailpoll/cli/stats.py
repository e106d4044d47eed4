"""``mailpoll stats``: figures of all mailboxes, or of one."""

from dataclasses import asdict
from typing import Any

import click

from .needs import find_account, needs_database
from .output import new_table, readable_size, safe, show, show_json, styled

#: Columns of a folder's proof, as they are shown: these always, and of the others what is not 0.
ALWAYS = ("server", "stored")
PROOF = {
    "server": "server",
    "stored": "stored",
    "to import": "to_import",
    "waiting": "waiting",
    "unreadable": "unreadable",
    "too large": "too_large",
    "left out": "left_out",
    "withheld": "withheld",
    "missing": "missing",
    "gone": "gone",
    "expunged": "expunged",
}


#: Rows of the table of messages that were not fetched.
UNFETCHED = 20


@click.command()
@click.argument("account", required=False)
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def stats(account: str | None, as_json: bool) -> None:
    """Show figures of all mailboxes, or of one."""
    from .. import budgets
    from .. import stats as figures

    if account:
        row = find_account(account)
        found = figures.account_stats(row) | {"budget": asdict(budgets.of(row))}
    else:
        found = figures.overall_stats()
    if as_json:
        show_json(found, indent=2)
        return
    if account:
        _show_account(found)
    else:
        _show_overall(found)


def _show_account(found: dict[str, Any]) -> None:
    show(safe(found["address"]).append(f"  {found['state']}"), style="bold")
    if found["last_error"]:
        show(styled("last error: ").append(safe(found["last_error"])), style="red")
    _show_counts(found)
    _show_budget(found["budget"])
    _show_progress(found)
    proofs = [folder["proof"] or {} for folder in found["folders"]]
    columns = {
        title: part
        for title, part in PROOF.items()
        if part in ALWAYS or any(proof.get(part) for proof in proofs)
    }
    table = new_table("folder", *columns, "proved")
    for folder in found["folders"]:
        proof = folder["proof"] or {}
        when = folder["proved_at"]
        table.add_row(
            safe(folder["name"]),
            *(f"{proof[part]:,}" if part in proof else "?" for part in columns.values()),
            safe(folder["last_error"])
            if folder["last_error"]
            else f"{when:%m-%d %H:%M}"
            if when
            else "not yet",
        )
    show(table)
    _show_unfetched(found)
    for row in found["damaged"]:
        line = f"damaged: message {row['message_id']}, {row['storage_key']}: {row['reason']}"
        show(safe(line), style="red", soft_wrap=True)


def _show_unfetched(found: dict[str, Any]) -> None:
    if not found["unfetched"]:
        return
    table = new_table("folder", "UID", "verdict", "next try", "reason", title="without a message")
    for row in found["unfetched"][:UNFETCHED]:
        when = row["next_attempt_at"]
        tried = row["verdict"] in ("waiting", "unreadable")
        table.add_row(
            safe(row["folder"]),
            str(row["uid"]),
            row["verdict"],
            f"{when:%m-%d %H:%M}" if when and tried else "",
            safe(row["reason"]),
        )
    show(table)


def _show_progress(found: dict[str, Any]) -> None:
    progress = found["import"]
    if progress["left"]:
        left = progress["seconds_left"]
        time_left = f", about {left // 60 + 1:,} minutes" if left is not None else ""
        show(f"import: {progress['messages']:,} done, {progress['left']:,} left{time_left}")
    if found["delay"]:
        show(styled("delay: ").append(safe(found["delay"])), style="yellow")


def _show_budget(budget: dict[str, Any]) -> None:
    limit = f" of {readable_size(budget['bytes_limit'])}" if budget["bytes_limit"] else ""
    show(f"fetched today (UTC): {readable_size(budget['bytes_today'])}{limit}")
    if budget["not_before"]:
        show(f"its provider wants a pause until {budget['not_before']:%Y-%m-%d %H:%M:%S}")


def _show_overall(found: dict[str, Any]) -> None:
    import peewee

    from .. import database
    from ..models import EmailAccount, EmailAccountDay

    states = ", ".join(f"{count} {state}" for state, count in found["accounts"].items() if count)
    show(f"accounts: {states or 'none'}; late: {found['late_accounts']}")
    _show_counts(found)
    _show_scrub(found["scrub"])
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
        table = new_table("address", "state", "messages", "size", "last poll", "error")
        for row in sums:
            last = row.last_success_at.strftime("%H:%M:%S") if row.last_success_at else "never"
            table.add_row(
                safe(row.address),
                row.state,
                f"{int(row.stored):,}",
                readable_size(int(row.size)),
                last,
                safe(row.last_error),
            )
    show(table)


def _show_counts(found: dict[str, Any]) -> None:
    by_status = ", ".join(f"{count:,} {status}" for status, count in found["by_status"].items())
    show(f"messages: {found['messages']:,} ({readable_size(found['bytes'])}): {by_status}")
    stores = ", ".join(f"{count:,} {kind}" for kind, count in found["by_storage_type"].items())
    show(f"attachments: {found['attachments']:,}; blobs: {stores}")


def _show_scrub(scrub: dict[str, Any]) -> None:
    when = scrub["finished_at"]
    last = f"{when:%Y-%m-%d %H:%M}" if when else "never"
    show(
        f"all blobs read back: {last}; this round: {scrub['progress']:.0%}; "
        f"damaged: {scrub['damaged']:,}",
        style="red" if scrub["damaged"] else None,
    )
