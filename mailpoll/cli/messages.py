"""``mailpoll messages``: stored mail, one by one; attachments, and blobs."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from .needs import find_account, needs_database
from .output import (
    Failure,
    at_most,
    new_table,
    readable_size,
    refused,
    safe,
    show,
    show_json,
    styled,
)

if TYPE_CHECKING:
    from ..models import EmailAccount, EmailRawMessage
    from ..web.schemas import Message, MessageSummary, Person

#: Messages made ready in one transaction, when many are tried again.
PAGE = 500


@click.group()
def messages() -> None:
    """Stored mail: list it, read it, take it out, try again what failed.

    ID is the number of a message, as lists and `mailpoll search` show it.
    """


@messages.command("list")
@click.argument("account")
@click.option("--folder", help="only of the folder of this name")
@click.option("--status", type=click.Choice(["stored", "processed", "failed"]), help="only those")
@click.option("--since", metavar="MOMENT", help="arrived then or later, such as 2026-01-31")
@click.option("--before", metavar="MOMENT", help="arrived before")
@click.option("--message-id", help="with this Message-ID")
@click.option(
    "--flag", help="with this flag or keyword, such as \\Flagged, where they are followed"
)
@click.option("--unseen", is_flag=True, default=None, help="without the flag \\Seen")
@at_most
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@needs_database
def list_messages(account: str, limit: int, as_json: bool, **filters: Any) -> None:
    """List a mailbox's messages, newest first."""
    row = find_account(account)
    for name in ("flag", "unseen"):
        if filters[name] is not None and not row.sync_flags:
            raise Failure(f"--{name}: the account does not follow flags")
    table = new_table("id", "arrived (UTC)", "from", "subject", "size", "flags", "status")
    for one in _listed(row, limit, filters):
        if as_json:
            click.echo(one.model_dump_json(by_alias=True))
        else:
            table.add_row(*_columns(one))
    if not as_json:
        show(table)


def _listed(
    account: "EmailAccount", limit: int, filters: dict[str, Any]
) -> Iterator["MessageSummary"]:
    """Page by page, so that memory stays flat."""
    from pydantic import ValidationError

    from ..web import messages, schemas

    cursor = None
    while limit > 0:
        try:
            query = schemas.MessageQuery(
                **filters, cursor=cursor, limit=min(limit, schemas.MAX_PAGE)
            )
        except ValidationError as error:
            raise refused(error) from None
        page = messages.page(account, query)
        yield from page.items
        limit, cursor = limit - len(page.items), page.next
        if cursor is None:
            return


def _columns(one: "MessageSummary") -> Iterator[Any]:
    yield str(one.id)
    yield f"{one.internal_date:%Y-%m-%d %H:%M}"
    yield safe(_people(one.from_[:1]))
    yield safe(one.subject)
    yield readable_size(one.size)
    yield safe(", ".join([*(one.flags or []), *(one.labels or [])]))
    yield one.status


def _people(found: list["Person"]) -> str:
    return ", ".join(f"{one.name} <{one.address}>" if one.name else one.address for one in found)


@messages.command("show")
@click.argument("number", metavar="ID", type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="all that is known of it, also the HTML")
@needs_database
def show_message(number: int, as_json: bool) -> None:
    """Show a message: its head, where it lies, its attachments and its text."""
    from ..web.messages import whole

    found = whole(_message(number))
    if as_json:
        click.echo(found.model_dump_json(by_alias=True))
        return
    for name, value in _head(found):
        if value:
            show(styled(f"{name}: ", "bold").append(safe(value)), soft_wrap=True)
    show("")
    for line in (found.text or "").splitlines():
        show(safe(line), soft_wrap=True)


def _head(found: "Message") -> Iterator[tuple[str, str | None]]:
    yield "From", _people(found.from_)
    yield "To", _people(found.to)
    yield "Cc", _people(found.cc)
    yield "Subject", found.subject
    yield "Date", str(found.date or found.internal_date)
    yield "Status", f"{found.status}{f': {found.error}' if found.error else ''}"
    for place in found.locations:
        gone = f", until {place.expunged_at:%Y-%m-%d %H:%M}" if place.expunged_at else ""
        flags = "".join(f", {flag}" for flag in [*(place.flags or []), *(place.labels or [])])
        yield "Folder", f"{place.folder}{flags}{gone}"
    for one in found.attachments:
        yield f"Attachment {one.n}", f"{one.name or one.safe_name}, {readable_size(one.size)}"
    if found.hold:
        yield "Legal hold", found.hold.reason


@messages.command("raw")
@click.argument("number", metavar="ID", type=click.IntRange(1))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="a new file")
@needs_database
def write_raw(number: int, output: Path | None) -> None:
    """Write a message's exact bytes, as the server sent them, to standard output or a file."""
    row = _message(number)
    _write(row.storage_key, output, "message.download", "message", str(number))


@messages.command("attachment")
@click.argument("number", metavar="ID", type=click.IntRange(1))
@click.argument("n", metavar="N", type=click.IntRange(0))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="a new file")
@needs_database
def write_attachment(number: int, n: int, output: Path | None) -> None:
    """Write a message's N-th attachment, decoded, to standard output or a file."""
    from .. import database
    from ..models import EmailAttachment

    row, table = _message(number), EmailAttachment
    with database.connected():
        found = table.get_or_none(table.message == row, table.position == n)
    if found is None:
        raise Failure(f"message {number} has no attachment {n}")
    _write(found.storage_key, output, "attachment.download", "attachment", f"{number}/{n}")


def _message(number: int) -> "EmailRawMessage":
    from ..web.messages import find_message

    row = find_message(number)
    if row is None:
        raise Failure(f"there is no message {number}")
    return row


def _write(key: str, output: Path | None, *done: str) -> None:
    """Write a blob, and then into the audit log that it was."""
    from .. import audit

    if output is None:
        _copy(key, _standard_output())
    else:
        try:
            with output.open("xb") as file:
                _copy(key, file)
        except OSError as error:
            raise Failure(f"{output}: {error.strerror}") from None
    audit.record(*done)


def _standard_output() -> BinaryIO:
    if sys.stdout.isatty():
        raise Failure("standard output is a terminal: write to a file with `> file`")
    return sys.stdout.buffer


def _copy(key: str, target: BinaryIO) -> None:
    """Write a blob out of whichever store has it.

    Raises:
      Failure: none has it, or it cannot be read.
    """
    import shutil

    from .. import runtime
    from ..blobs import BlobCorrupt, BlobMissing, StoreUnavailable
    from ..crypto import DataKeyError

    for store in runtime.storage().stores.values():
        try:
            with store.open(key) as content:
                shutil.copyfileobj(content, target)
            return
        except BlobMissing:
            continue
        except (ValueError, BlobCorrupt, StoreUnavailable, DataKeyError) as error:
            raise Failure(str(error)) from None
    raise Failure(f"{key}: is in no store")


@messages.command("failed")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@needs_database
def list_failed(as_json: bool) -> None:
    """List why messages failed, the most frequent reason first."""
    from ..web.failures import reasons

    table = new_table("messages", "accounts", "newest", "reason")
    for one in reasons():
        if as_json:
            show_json(one.model_dump(mode="json"))
        table.add_row(f"{one.messages:,}", f"{one.accounts:,}", str(one.newest), safe(one.error))
    if not as_json:
        show(table)


@messages.command("retry")
@click.argument("numbers", metavar="[ID]…", type=click.IntRange(1), nargs=-1)
@click.option("--error", help="all that failed for this reason, as `messages failed` shows it")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def retry(numbers: tuple[int, ...], error: str | None, as_json: bool) -> None:
    """Process failed messages again: some of them, or all that failed for one reason."""
    if bool(numbers) == (error is not None):
        raise click.UsageError("say which: some IDs, or --error REASON")
    done = _retry_reason(error) if error is not None else sum(map(_retry_one, numbers))
    if as_json:
        show_json({"enqueued": done})
    else:
        click.echo(f"{done:,} {'message' if done == 1 else 'messages'} enqueued")


def _retry_one(number: int) -> bool:
    from .. import queues, replay
    from ..actors import process_message

    row = _message(number)
    if not replay.one(row):
        raise Failure(f"message {number} is {row.status}, not failed")
    queues.offer(process_message, row.id)
    return True


def _retry_reason(error: str) -> int:
    from .. import queues, replay
    from ..actors import process_message

    done = 0
    while ids := replay.for_reason(error, PAGE):
        queues.offer_all(process_message, ids)
        done += len(ids)
    return done


@click.command("attachments")
@click.argument("account")
@click.option("--name", help="a part of the name")
@click.option("--type", "kind", help="such as application/pdf or image/")
@click.option("--min-size", type=click.IntRange(0), help="bytes")
@at_most
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@needs_database
def list_attachments(
    account: str,
    name: str | None,
    kind: str | None,
    min_size: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """List a mailbox's attachments, those that were stored last first."""
    from .. import attachments

    found = attachments.find(find_account(account), limit, name=name, kind=kind, min_size=min_size)
    if as_json:
        for row in found:
            names = ("name", "content_type", "size", "sha256", "inline")
            shown = {one: getattr(row, one) for one in names}
            show_json({"message_id": row.message.id, "n": row.position, **shown})
        return
    table = new_table("message", "n", "name", "type", "size", "subject")
    for row in found:
        table.add_row(
            str(row.message.id),
            str(row.position),
            safe(row.name or row.safe_name),
            safe(row.content_type),
            readable_size(row.size),
            safe(row.message.subject),
        )
    show(table)


@click.command()
@click.argument("key")
@needs_database
def blob(key: str) -> None:
    """Write a stored blob to standard output, decompressed and decrypted.

    KEY is its name in the store: ACCOUNT/XX/SHA256.
    """
    _copy(key, _standard_output())
