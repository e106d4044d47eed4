"""``mailpoll export`` and ``mailpoll import``: mailboxes as files of other programs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from .needs import find_account, needs_database
from .output import Failure, counting, failing_with_2, readable_size, refused, safe, show_json
from .search import parsed


@click.command("export")
@click.argument("account")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["mbox", "zip", "maildir"]),
    default="mbox",
    show_default=True,
    help="one file, a file for each message, or a directory",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="a file; for maildir a directory, or a file that ends in .tar",
)
@click.option("--folder", help="only of the folder of this name")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="arrived then or later (UTC)")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="arrived before (UTC)")
@click.option("--query", help="only what this search finds, newest first")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@failing_with_2
@needs_database
def export_account(
    account: str,
    kind: str,
    output: Path,
    folder: str | None,
    since: datetime | None,
    until: datetime | None,
    query: str | None,
    as_json: bool,
) -> None:
    """Write a mailbox's messages (its address or id) to files that other programs read.

    A directory that was begun is continued. Exit code 0: all are written; 1: some could not be
    read, and are named in the manifest; 2: it could not be done.
    """
    from .. import audit
    from ..archives import Selection, selection, writing

    if query is not None:
        parsed(query)
    row = find_account(account)
    times = (since and since.replace(tzinfo=UTC), until and until.replace(tzinfo=UTC))
    chosen = Selection(folder, *times, last_id=selection.newest_id(row), query=query)
    total = selection.number(row, chosen)
    audit.record("account.export", "account", row.uuid)
    entries = selection.entries(row, chosen)

    def words(done: writing.Written) -> str:
        of = "" if total is None else f" of {total:,}"
        return f"{done.messages + done.skipped:,}{of} messages"

    with counting(words) as show, _failing_archives():
        if kind == "maildir" and output.suffix != ".tar":
            written = writing.to_directory(row.uuid, entries, output, show)
        else:
            written = writing.to_file(kind, row.uuid, entries, output, show)
    if as_json:
        reasons = [{"message_id": one, "reason": reason} for one, reason in written.reasons]
        show_json({**asdict(written), "reasons": reasons})
    else:
        already = f", {written.skipped:,} were there already" if written.skipped else ""
        click.echo(f"{written.messages:,} messages written to {output}{already}")
        for message_id, reason in written.reasons:
            click.echo(f"message {message_id}: {reason}", err=True)
    sys.exit(1 if written.unreadable else 0)


@click.command("import")
@click.argument("account")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--create", is_flag=True, help="add the mailbox, without a server, if it is not there"
)
@click.option("--folder", help="where all messages go; default: as the archive says")
@click.option("--mboxo", is_flag=True, help="mbox files quote From alone, and not >From")
@click.option("--dry-run", is_flag=True, help="read everything, and store nothing")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@failing_with_2
@needs_database
def import_files(
    account: str,
    paths: tuple[Path, ...],
    create: bool,
    folder: str | None,
    mboxo: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Store messages of files in a mailbox (its address or id).

    Takes mbox, zip, Maildir (a directory or a tar), single messages, and directories of these.
    Repeating it changes nothing. Exit code 0: all messages are stored; 1: something was left out;
    2: it could not be done, or not to the end.
    """
    from ..archives import intake

    row = _find_or_create(account, create and not dry_run)
    shown = "{0.new:,} new, {0.known:,} known, {0.left_out:,} left out"
    with counting(shown.format) as show, _failing_archives():
        tally = intake.run(
            row, paths, folder=folder, quoted_once=mboxo, dry_run=dry_run, progress=show
        )
    if as_json:
        show_json({"account_id": row.uuid, **tally.as_dict()})
    else:
        would = " would be" if dry_run else ""
        click.echo(
            f"{tally.new:,} messages{would} stored ({readable_size(tally.bytes)}), "
            f"{tally.known:,} were there already, {tally.left_out:,} left out"
        )
        for source, reason in tally.reasons:
            click.echo(safe(f"{source}: {reason}").plain, err=True)
    sys.exit(1 if tally.left_out else 0)


def _find_or_create(name: str, create: bool) -> Any:
    from pydantic import ValidationError

    from .. import accounts as service
    from .. import logins
    from ..web.schemas import NewAccount

    try:
        return find_account(name)
    except Failure:
        if not create:
            raise Failure(f"there is no account {name}; --create adds one") from None
    try:
        given: dict[str, Any] = {"address": name, "archive": True}
        return service.create_archive(NewAccount(**given).address)
    except ValidationError as error:
        raise refused(error) from None
    except logins.AccountError as error:
        raise Failure(str(error)) from None


@contextmanager
def _failing_archives() -> Iterator[None]:
    """One line for what stops an export or an import."""
    from ..accounts import AccountGone
    from ..archives import Unreadable
    from ..archives.intake import AccountFull
    from ..blobs import StoreUnavailable
    from ..crypto import DataKeyError

    try:
        yield
    except (Unreadable, AccountFull, StoreUnavailable, DataKeyError) as error:
        raise Failure(safe(str(error)).plain) from None
    except AccountGone:
        raise Failure("the account was deleted meanwhile") from None
    except OSError as error:
        raise Failure(f"{error.filename or 'a file'}: {error.strerror or error}") from None
