"""Process one message: read its raw blob, parse, store the attachments, fill in the fields."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import dramatiq
import structlog

from .. import database, parsing, runtime
from ..blobs import BlobMissing, NewBlob, StoreUnavailable, blob_key
from ..broker import IMPORT, PROCESS
from ..models import (
    AccountState,
    EmailAccount,
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
            _finish(message, parsed, _store_attachments(message, parsed))
    except (Failed, parsing.Unparsable) as error:
        _fail(message, str(error))
    except StoreUnavailable:
        _give_back(message)
        raise


def _claim(message_id: int) -> EmailRawMessage | None:
    """Count the attempt before the work: a message that kills its worker is caught by the count."""
    table = EmailRawMessage
    with database.transaction(durable=False):
        message = (
            table.select(
                table.id,
                table.account,
                table.sha256,
                table.size,
                table.storage_type,
                table.storage_key,
                table.internal_date,
                table.attempts,
                table.status,
                EmailAccount.id,
                EmailAccount.uuid,
                EmailAccount.state,
            )
            .join(EmailAccount)
            .where(table.id == message_id)
            .get_or_none()
        )
        if message is None or message.status != MessageStatus.STORED:
            return None
        if message.account.state == AccountState.DELETING:
            return None
        if message.attempts > settings().max_attempts:
            reason = f"given up after {message.attempts} attempts that did not end"
        else:
            reason = None
            pause = database.now() + timedelta(seconds=ATTEMPT)
            table.update(attempts=table.attempts + 1, next_attempt_at=pause).where(
                table.id == message_id
            ).execute()
    if reason:
        _fail(message, reason)
        return None
    return message  # type: ignore[no-any-return]


@contextmanager
def _raw(message: EmailRawMessage) -> Iterator[bytes | Path]:
    """The raw message, checked against its hash: bytes, or a temporary file when it is large.

    Raises:
      Failed: the blob is missing or its bytes changed.
    """
    digest = hashlib.sha256()
    try:
        stream = runtime.storage().open(message.storage_key, message.storage_type)
    except BlobMissing:
        raise Failed("the raw message is missing from the store") from None
    with stream, tempfile.TemporaryDirectory(dir=_spool()) as directory:
        if message.size <= IN_MEMORY:
            raw: bytes | Path = stream.read()
            digest.update(raw)
        else:
            raw = Path(directory) / "raw"
            with raw.open("wb") as file:
                while chunk := stream.read(262_144):
                    digest.update(chunk)
                    file.write(chunk)
        if digest.hexdigest() != message.sha256:
            raise Failed("the stored bytes differ from those that were fetched")
        yield raw


def _spool() -> Path:
    directory = settings().spool_dir
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory


def _store_attachments(
    message: EmailRawMessage, parsed: parsing.ParsedMessage
) -> list[dict[str, Any]]:
    """Put the attachments into the store; tells the columns of their rows."""
    if not parsed.attachments:
        return []
    uuid = message.account.uuid
    with tempfile.TemporaryDirectory(dir=_spool()) as directory:
        fresh = {
            part.sha256: NewBlob(
                blob_key(uuid, part.sha256), part.size, part.sha256, _content(part, Path(directory))
            )
            for part in parsed.attachments
        }
        storage_type = runtime.storage().put(list(fresh.values()))
    return [
        {
            "account": message.account.id,
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
            "storage_key": fresh[part.sha256].key,
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
    message: EmailRawMessage, parsed: parsing.ParsedMessage, attachments: Sequence[dict[str, Any]]
) -> None:
    """Fields, attachment rows and the day's counters in one transaction, by whoever is first."""
    with database.transaction(durable=False):
        if not _turn(message, MessageStatus.PROCESSED, **_fields(parsed)):
            return
        if attachments:
            EmailAttachment.insert_many(attachments).execute()
            EmailAccountDay.add(
                message.account.id,
                message.internal_date.date().isoformat(),
                attachments=len(attachments),
                attachment_bytes=sum(row["size"] for row in attachments),
            )


def _turn(message: EmailRawMessage, status: MessageStatus, **columns: Any) -> bool:
    """Move a stored message to its final status; false when another run already did."""
    table = EmailRawMessage
    changed = (
        table.update(status=status, processed_at=database.now(), next_attempt_at=None, **columns)
        .where(table.id == message.id, table.status == MessageStatus.STORED)
        .execute()
    )
    return bool(changed)


def _fields(parsed: parsing.ParsedMessage) -> dict[str, Any]:
    return {
        "subject": parsed.subject,
        "from_addresses": [asdict(address) for address in parsed.from_],
        "to_addresses": [asdict(address) for address in parsed.to],
        "cc_addresses": [asdict(address) for address in parsed.cc],
        "bcc_addresses": [asdict(address) for address in parsed.bcc],
        "reply_to_addresses": [asdict(address) for address in parsed.reply_to],
        "date": parsed.date,
        "message_id": parsed.message_id,
        "in_reply_to": parsed.in_reply_to,
        "reference_ids": parsed.references,
        "attachment_count": len(parsed.attachments),
        "headers": parsed.headers,
        "text_body": parsed.text,
        "html_body": parsed.html,
        "parser": parsed.parser,
        "defects": parsed.defects,
        "error": None,
    }


def _fail(message: EmailRawMessage, reason: str) -> None:
    """Keep the raw message, say why it was not processed, and let it be replayed."""
    with database.transaction(durable=False):
        if _turn(message, MessageStatus.FAILED, error=reason):
            day = message.internal_date.date().isoformat()
            EmailAccountDay.add(message.account.id, day, failures=1)
            log.warning("message failed", message=message.id, reason=reason)


def _give_back(message: EmailRawMessage) -> None:
    """The store is away, which is not the message's fault: the attempt does not count."""
    table = EmailRawMessage
    pause = database.now() + timedelta(seconds=settings().sweep_after)
    with database.transaction(durable=False):
        table.update(attempts=table.attempts - 1, next_attempt_at=pause).where(
            table.id == message.id, table.status == MessageStatus.STORED
        ).execute()
