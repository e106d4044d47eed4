"""``mailpoll accounts deletions`` and ``receipt``: what became of deleted accounts."""

import sys
from typing import Any

import click

from .needs import needs_database
from .output import Failure, at_most, failing_with_2, new_table, show, show_json


@click.command("deletions")
@at_most
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def deletions(limit: int, as_json: bool) -> None:
    """List the accounts that were deleted, or are being deleted, newest first."""
    from .. import receipts

    found = [receipts.of(job) for job in receipts.latest(limit)]
    if as_json:
        for receipt in found:
            show_json(receipt)
        return
    table = new_table("job", "account", "state", "asked for", "done", "messages", "nothing left")
    for receipt in found:
        done = receipt["finished_at"]
        table.add_row(
            receipt["id"],
            receipt["account_id"],
            f"{receipt['state']}: {receipt['step']}" if done is None else receipt["state"],
            f"{receipt['requested_at']:%Y-%m-%d %H:%M:%S}",
            f"{done:%Y-%m-%d %H:%M:%S}" if done else "",
            f"{receipt['rows'].get('email_raw_messages', 0):,}",
            "yes" if done and receipt["scan"]["empty"] else "not yet",
        )
    show(table)


@click.command("receipt")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@failing_with_2
@needs_database
def receipt(name: str, as_json: bool) -> None:
    """Show what was removed of a deleted account: by the id of the deletion or of the account.

    Its address will do where MAILPOLL_RECEIPT_ADDRESS_HASH was set when it was deleted.

    Exit code 0: the deletion is done; 1: it is still running; 2: there is no such receipt.
    """
    from .. import receipts

    job = receipts.find(name)
    if job is None:
        raise Failure(f"there is no receipt of {name}")
    found = receipts.of(job)
    if as_json:
        show_json(found, indent=2)
    else:
        _show_receipt(found)
    sys.exit(0 if found["finished_at"] else 1)


def _show_receipt(found: dict[str, Any]) -> None:
    show(f"account {found['account_id']}, deletion {found['id']}: {found['state']}")
    show(f"asked for {found['requested_at']}, done {found['finished_at'] or 'not yet'}")
    table = new_table("removed", "how many", "bytes")
    for name, amount in found["rows"].items():
        table.add_row(name, f"{amount:,}", "")
    for name, store in found["stores"].items():
        table.add_row(f"blobs ({name})", f"{store['objects']:,}", f"{store['bytes']:,}")
    for name in ("temporary_files", "queue_entries", "redis_keys"):
        table.add_row(name, f"{found[name]:,}", "")
    show(table)
    scan = found["scan"]
    if scan is None:
        show("nobody has looked for what is left yet", style="yellow")
        return
    left = ", ".join(f"{amount:,} {name}" for name, amount in scan["found"].items() if amount)
    places = f"in {len(scan['found'])} places, with the files of {scan['machine']}"
    looked = f"looked at {scan['at']} {places}, look {scan['rounds']}"
    words = f"found {left}" if left else "nothing was left"
    show(f"{looked}: {words}", style="yellow" if left else "green", soft_wrap=True)
