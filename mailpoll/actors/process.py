"""Process one message: read its raw blob, parse, store the attachments, fill in the fields."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dramatiq
import structlog

from .. import accounts, database, parsing, runtime, spool
from ..blobs import BlobMissing, NewBlob, StorageType, StoreUnavailable, blob_key
from ..broker import IMPORT, PROCESS
from ..imap import is_placeholder
from ..models import (
    EmailAccountDay,
    EmailAttachment,
    EmailRawMessage,
    MessageStatus,
)
from ..settings import settings

log = structlog.get_logger()

#: Raw messages up to this many bytes are parsed in memory, larger ones from a file.
IN_MEMORY = 1_000_000
#: Seconds that an attempt may take before the sweeper gives the message to another worker.
ATTEMPT = 300


class Failed(Exception):
    """The message cannot be processed; trying again would not help."""


@dramatiq.actor(queue_name=PROCESS, priority=0)
def process_message(message_id: int) -> None:
    """Process a new message."""
    process(message_id)


@dramatiq.actor(queue_name=IMPORT, priority=50)
def import_message(message_id: int) -> None:
    """Process a message of a first import: the same, behind all new mail."""
    process(message_id)


def process(message_id: int) -> None:
    """One message from claim to row. Running it twice, or twice at once, changes nothing.

    Raises:
      StoreUnavailable: to be tried again, without counting as an attempt of the message.
    """
    message = _claim(message_id)
    if message is None:
        return
    try:
        with _raw(message) as raw:
            parsed = parsing.parse(raw)
            finished = _finish(message, parsed, _store_attachments(message, parsed))
        if not finished and parsed.attachments:
            accounts.empty_if_deleted(message.account_id, message.account_uuid)
    except (Failed, parsing.Unparsable) as error:
        _fail(message.id, message.account_id, message.day, str(error))
    except StoreUnavailable:
        _give_back(message)
        raise


#: Counts the attempt and tells what to work on; no row when there is nothing to do.
CLAIM = database.Statement("""
    UPDATE email_raw_messages SET attempts = attempts + 1, next_attempt_at = ?
    WHERE id = ? AND status = 'stored' AND attempts <= ? AND EXISTS (
        SELECT 1 FROM email_accounts WHERE email_accounts.id = account_id AND state <> 'deleting')
    RETURNING account_id, (SELECT uuid FROM email_accounts WHERE email_accounts.id = account_id),
        sha256, size, storage_type, storage_key, internal_date
""")

#: By whoever is first: the row changes only while it is stored.
FINISH = database.Statement("""
    UPDATE email_raw_messages SET status = 'processed', processed_at = ?, next_attempt_at = NULL,
        error = NULL, parser = ?, defects = ?, subject = ?, from_addresses = ?, to_addresses = ?,
        cc_addresses = ?, bcc_addresses = ?, reply_to_addresses = ?, date = ?, message_id = ?,
        in_reply_to = ?, reference_ids = ?, attachment_count = ?, text_derived = ?, headers = ?,
        text_body = ?, html_body = ?
    WHERE id = ? AND status = 'stored'
""")


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message that this run works on."""

    id: int
    account_id: int
    account_uuid: str
    sha256: str
    size: int
    storage_type: StorageType
    storage_key: str
    day: str


def _claim(message_id: int) -> Claimed | None:
    """Count the attempt before the work: a message that kills its worker is caught by the count."""
    pause = database.now() + timedelta(seconds=ATTEMPT)
    allowed = settings().max_attempts
    with database.transaction(durable=False):
        row = CLAIM.run(database.timestamp(pause), message_id, allowed).fetchone()
    if row is None:
        return None
    account_id, uuid, sha256, size, storage_type, key, internal_date = row
    day = str(internal_date)[:10] if isinstance(internal_date, str) else _utc_day(internal_date)
    return Claimed(message_id, account_id, uuid, sha256, size, StorageType(storage_type), key, day)


def _utc_day(moment: datetime) -> str:
    return moment.astimezone(UTC).date().isoformat()


def exhausted(message: EmailRawMessage) -> bool:
    """Whether all attempts that a message is allowed have begun."""
    return bool(message.attempts > settings().max_attempts)


def give_up(message: EmailRawMessage) -> None:
    """Fail a message whose last attempt did not end in its time: it kills its workers.

    Only the sweeper can tell, when that time is over. A delivery cannot: the attempts before it
    may be under way still, because a queue may deliver a message many times at once.
    """
    reason = f"given up after {message.attempts} attempts that did not end"
    _fail(message.id, message.account_id, _utc_day(message.internal_date), reason)


@contextmanager
def _raw(message: Claimed) -> Iterator[bytes | Path]:
    """The raw message, checked against its hash: bytes, or a temporary file when it is large.

    Raises:
      Failed: the blob is missing or its bytes changed.
    """
    digest = hashlib.sha256()
    try:
        stream = runtime.storage().open(message.storage_key, message.storage_type)
    except BlobMissing:
        raise Failed("the raw message is missing from the store") from None
    with stream, ExitStack() as stack:
        if message.size <= IN_MEMORY:
            content = stream.read()
            digest.update(content)
            raw: bytes | Path = content
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory(dir=spool.directory()))
            raw = Path(directory) / "raw"
            with raw.open("wb") as file:
                while chunk := stream.read(262_144):
                    digest.update(chunk)
                    file.write(chunk)
        if digest.hexdigest() != message.sha256:
            raise Failed("the stored bytes differ from those that were fetched")
        yield raw


def _store_attachments(message: Claimed, parsed: parsing.ParsedMessage) -> list[dict[str, Any]]:
    """Put the attachments into the store; tells the columns of their rows."""
    if not parsed.attachments:
        return []
    keys = {part.sha256: blob_key(message.account_uuid, part.sha256) for part in parsed.attachments}
    with tempfile.TemporaryDirectory(dir=spool.directory()) as directory:
        fresh = {
            part.sha256: NewBlob(
                keys[part.sha256], part.size, part.sha256, _content(part, Path(directory))
            )
            for part in parsed.attachments
        }
        storage_type = runtime.storage().put(list(fresh.values()))
    return [
        {
            "account": message.account_id,
            "message": message.id,
            "position": position,
            "name": part.name,
            "safe_name": part.safe_name,
            "content_type": part.content_type,
            "content_id": part.content_id,
            "inline": part.inline,
            "size": part.size,
            "sha256": part.sha256,
            "storage_type": str(storage_type),
            "storage_key": keys[part.sha256],
        }
        for position, part in enumerate(parsed.attachments)
    ]


def _content(part: parsing.Attachment, directory: Path) -> bytes | Path:
    if part.size <= IN_MEMORY:
        return b"".join(part.chunks())
    path = directory / part.sha256
    with path.open("wb") as file:
        for chunk in part.chunks():
            file.write(chunk)
    return path


def _finish(
    message: Claimed, parsed: parsing.ParsedMessage, attachments: Sequence[dict[str, Any]]
) -> bool:
    """Fields, attachment rows and the day's counters in one transaction, by whoever is first.

    Returns:
      false when another was, or when the message is gone.
    """
    with database.transaction(durable=False):
        if not FINISH.run(*_fields(parsed), message.id).rowcount:
            return False
        if attachments:
            EmailAttachment.insert_many(attachments).execute()
            EmailAccountDay.add(
                message.account_id,
                message.day,
                attachments=len(attachments),
                attachment_bytes=sum(row["size"] for row in attachments),
            )
    return True


def _fields(parsed: parsing.ParsedMessage) -> tuple[Any, ...]:
    """The parameters of ``FINISH``, in its order."""
    return (
        database.timestamp(database.now()),
        parsed.parser,
        database.json(_defects(parsed)),
        parsed.subject,
        _people(parsed.from_),
        _people(parsed.to),
        _people(parsed.cc),
        _people(parsed.bcc),
        _people(parsed.reply_to),
        parsed.date and database.timestamp(parsed.date),
        parsed.message_id,
        parsed.in_reply_to,
        database.json(parsed.references),
        len(parsed.attachments),
        parsed.text_derived,
        database.json(parsed.headers),
        parsed.text,
        parsed.html,
    )


def _defects(parsed: parsing.ParsedMessage) -> list[str]:
    """What had to be repaired, and whether it is the message at all."""
    return [*parsed.defects, *(["server-placeholder"] if is_placeholder(parsed.subject) else [])]


def _people(addresses: Sequence[parsing.Address]) -> str:
    return database.json([{"name": one.name, "address": one.address} for one in addresses])


def _fail(message_id: int, account_id: int, day: str, reason: str) -> None:
    """Keep the raw message, say why it was not processed, and let it be replayed."""
    table = EmailRawMessage
    with database.transaction(durable=False):
        failed = (
            table.update(
                status=MessageStatus.FAILED,
                error=reason,
                processed_at=database.now(),
                next_attempt_at=None,
            )
            .where(table.id == message_id, table.status == MessageStatus.STORED)
            .execute()
        )
        if failed:
            EmailAccountDay.add(account_id, day, failures=1)
            log.warning("message failed", message=message_id, reason=reason)


def _give_back(message: Claimed) -> None:
    """The store is away, which is not the message's fault: the attempt does not count."""
    table = EmailRawMessage
    pause = database.now() + timedelta(seconds=settings().sweep_after)
    with database.transaction(durable=False):
        table.update(attempts=table.attempts - 1, next_attempt_at=pause).where(
            table.id == message.id, table.status == MessageStatus.STORED
        ).execute()
