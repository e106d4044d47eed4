"""``mailpoll fsck``: database, blobs and servers against each other."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from .needs import find_account, needs_database
from .output import Failure, console, failing_with_2, readable_size, safe, show, show_json, styled

#: What became of differences, as a check's summary says it.
OUTCOMES = {
    "repaired": "repaired",
    "asked": "under way",
    "lost": "lost",
    "left": "left",
    "found": "found",
}


@click.command()
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
    from .. import audit
    from .. import fsck as checking

    if offline and contents:
        raise Failure("--bytes: asks the mail servers, and --offline says not to")
    only = find_account(account) if account else None
    if repair:
        audit.record("fsck.repair", only and "account", only and only.uuid)
    tally = checking.Tally()
    found = checking.check(only, tally, repair=repair, offline=offline, contents=contents)
    if as_json:
        for difference in found:
            show_json(difference.as_dict())
        show_json(tally.as_dict())
    else:
        with _progress(tally):
            for difference in found:
                show(safe(difference.as_line()), soft_wrap=True)
        _show_tally(tally, offline)
    sys.exit(tally.exit_code)


def _progress(tally: Any) -> AbstractContextManager[Any]:
    """What is being checked, on a terminal."""
    if not console().is_terminal:
        return nullcontext()
    from rich.live import Live
    from rich.spinner import Spinner

    spinner = Spinner("dots")

    def render() -> Spinner:
        read = f"blobs: {tally.blobs:,} ({readable_size(tally.bytes)})"
        line = f"{read}; differences: {tally.differences:,}  {tally.now}"
        spinner.update(text=safe(line))
        return spinner

    return Live(get_renderable=render, console=console(), refresh_per_second=5, transient=True)


def _show_tally(tally: Any, offline: bool) -> None:
    show(
        f"accounts: {tally.accounts:,}; messages: {tally.messages:,}; "
        f"attachments: {tally.attachments:,}; "
        f"blobs read back: {tally.blobs:,} ({readable_size(tally.bytes)})",
        soft_wrap=True,
    )
    if offline:
        show("no server was asked")
    else:
        show(
            f"folders compared with their servers: {tally.folders:,}; messages there that came "
            f"since the last poll: {tally.newer:,}, still to be imported: {tally.to_import:,}, "
            f"counted but not listed: {tally.withheld:,}",
            soft_wrap=True,
        )
    for reason in tally.unchecked:
        show(styled("not checked: ").append(safe(reason)), style="yellow", soft_wrap=True)
    parts = ", ".join(
        f"{tally.outcomes[name]:,} {words}"
        for name, words in OUTCOMES.items()
        if tally.outcomes[name]
    )
    style = "red" if tally.remaining else "green"
    show(f"differences: {tally.differences:,}{parts and f' ({parts})'}", style=style)
