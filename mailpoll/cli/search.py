"""``mailpoll search`` and ``mailpoll reindex``: stored mail by its words."""

from typing import TYPE_CHECKING, Any

import click

from .needs import find_account, needs_database
from .output import Failure, safe, show, show_json, styled

if TYPE_CHECKING:
    from rich.text import Text


@click.command("search")
@click.argument("query")
@click.option("--account", metavar="ADDRESS_OR_ID", help="only this mailbox")
@click.option(
    "--sort",
    type=click.Choice(["rank", "date"]),
    default="rank",
    show_default=True,
    help="what comes first",
)
@click.option(
    "--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="how many at most"
)
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@needs_database
def find(query: str, account: str | None, sort: str, limit: int, as_json: bool) -> None:
    """Search all mail: from:ana invoice has:attachment after:2026-01-01 -draft "exact phrase"."""
    from .. import search
    from ..web.search import hits

    only = find_account(account) if account else None
    asked = parsed(query)
    results = search.find(asked, only, by_date=sort == "date", limit=limit, after=None)
    for hit in hits(asked, results.hits):
        if as_json:
            click.echo(hit.model_dump_json(by_alias=True))
            continue
        sender = hit.from_[0] if hit.from_ else None
        name = sender.name or sender.address if sender else ""
        line = styled(f"{hit.id:>8}  {hit.internal_date:%Y-%m-%d}  ").append(safe(name))
        show(line.append("  ").append(_marked(hit.subject_pieces)), soft_wrap=True)
        show(styled(" " * 10).append(_marked(hit.excerpt)), soft_wrap=True)
    if results.next and not as_json:
        show("there are more: --limit", style="dim")


def parsed(query: str) -> Any:
    """A query, or one line that says where it is wrong."""
    from .. import search

    try:
        return search.parse(query)
    except search.QueryError as error:
        raise Failure(f"query: {error}") from None


def _marked(pieces: list[Any]) -> "Text":
    line = styled()
    for piece in pieces:
        line.append(safe(piece.text).plain, style="bold" if piece.match else None)
    return line


@click.command()
@click.option("--account", metavar="ADDRESS_OR_ID", help="only this mailbox")
@click.option("--all", "everything", is_flag=True, help="also what is indexed already")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def reindex(account: str | None, everything: bool, as_json: bool) -> None:
    """Bring the search index and the threads up to date from what is stored.

    Can be ended at any time and run again, while everything else runs: it goes on where it was,
    also with --all, of one mailbox or of all.
    """
    from .. import search

    only = find_account(account) if account else None

    def told(progress: Any) -> None:
        if not as_json:
            click.echo(f"{progress.done:,} of {progress.total:,} messages", err=True)

    progress = search.catch_up(only, told, everything=everything)
    if as_json:
        show_json({"messages": progress.done})
    else:
        click.echo(f"{progress.done:,} messages indexed")
