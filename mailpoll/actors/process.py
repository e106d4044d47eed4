"""Process messages: read the raw blobs, parse, store the attachments, fill in the fields."""

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

from .. import accounts, database, parsing, runtime, spool, turns
from ..blobs import BlobMissing, NewBlob, StorageType, StoreUnavailable, blob_key
from ..broker import IMPORT, PROCESS, Queued
from ..imap import is_placeholder
from ..models import (
    EmailAccountDay,
    EmailRawMessage,
    MessageStatus,
)
from ..settings import settings

log = structlog.get_logger()

#: Raw messages up to this many bytes are parsed in memory, larger ones from a file.
IN_MEMORY = 1_000_000
#: Seconds that an attempt may take before the sweeper gives the message to another worker.
ATTEMPT = 300


#: A message with what stands in it.
Parsed = tuple["Claimed", parsing.ParsedMessage]


class Failed(Exception):
    """The message cannot be processed; trying again would not help."""


@dramatiq.actor(queue_name=PROCESS, priority=0)
def process_message(message_id: int) -> None:
    """Process a new message."""
    process([message_id])


@dramatiq.actor(queue_name=IMPORT, priority=50)
def import_messages(message_ids: list[int]) -> None:
    """Process messages of a first import: the same, behind all new mail.

    As many at once as were committed at once: the queue's own cost would be half of the work.
    """
    try:
        process(message_ids)
    except StoreUnavailable:
        raise
    except Exception as error:
        if len(message_ids) == 1:
            raise
        log.warning("messages are tried one by one", error=type(error).__name__)
        alone: list[Queued] = [(import_messages.message([one]), None) for one in message_ids]
        import_messages.broker.enqueue_all(alone)


def process(message_ids: Sequence[int]) -> None:
    """Messages of one account from claim to row. Running it twice, or at once, changes nothing.

    Raises:
      StoreUnavailable: to be tried again, without counting as an attempt of the messages.
    """
    claimed = _claim(message_ids)
    parsed: list[Parsed] = []
    try:
        with turns.working(), ExitStack() as files:
            for message in claimed:
                try:
                    raw = files.enter_context(_raw(message))
                    parsed.append((message, parsing.parse(raw)))
                except (Failed, parsing.Unparsable) as error:
                    _fail(message.id, message.account_id, message.day, str(error))
            late = _finish(parsed, _store_attachments(parsed))
        for message, _ in late:
            accounts.empty_if_deleted(message.account_id, message.account_uuid)
    except StoreUnavailable:
        _give_back(claimed)
        raise


#: Counts the attempt and tells what to work on; no row when there is nothing to do.
CLAIM = database.Statement("""
    UPDATE email_raw_messages SET attempts = attempts + 1, next_attempt_at = ?
    WHERE id IN [] AND status = 'stored' AND attempts <= ? AND EXISTS (
        SELECT 1 FROM email_accounts WHERE email_accounts.id = account_id AND state <> 'deleting')
    RETURNING id, account_id,
        (SELECT uuid FROM email_accounts WHERE email_accounts.id = account_id),
        sha256, size, storage_type, storage_key, internal_date
""")

#: Which of them nobody has finished yet.
UNFINISHED = database.Statement("""
    SELECT id FROM email_raw_messages WHERE id IN [] AND status = 'stored' ORDER BY id FOR UPDATE
""")

FINISH = database.Statement("""
    UPDATE email_raw_messages SET status = 'processed', processed_at = ?, next_attempt_at = NULL,
        error = NULL, parser = ?, defects = ?, subject = ?, from_addresses = ?, to_addresses = ?,
        cc_addresses = ?, bcc_addresses = ?, reply_to_addresses = ?, date = ?, message_id = ?,
        in_reply_to = ?, reference_ids = ?, attachment_count = ?, text_derived = ?, headers = ?,
        text_body = ?, html_body = ?
    WHERE id = ?
""")

INSERT_ATTACHMENT = database.Statement("""
    INSERT INTO email_attachments (account_id, message_id, position, name, safe_name, content_type,
        content_id, inline, size, sha256, storage_type, storage_key)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
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


def _claim(message_ids: Sequence[int]) -> list[Claimed]:
    """Count the attempts before the work: a message that kills its worker is caught by the count.

    What was begun before may be the one that kills: it is not worked on beside others any more,
    but comes again alone, from the sweeper.
    """
    pause = database.now() + timedelta(seconds=ATTEMPT)
    before = settings().max_attempts if len(message_ids) == 1 else 0
    with database.transaction(durable=False):
        rows = CLAIM.run(database.timestamp(pause), list(message_ids), before).fetchall()
    return [_claimed(row) for row in rows]


def _claimed(row: tuple[Any, ...]) -> Claimed:
    message_id, account_id, uuid, sha256, size, storage_type, key, internal_date = row
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


def _store_attachments(parsed: Sequence[Parsed]) -> StorageType | None:
    """Put the attachments of all messages into the store together; where they lie then."""
    parts = {
        blob_key(message.account_uuid, part.sha256): part
        for message, content in parsed
        for part in content.attachments
    }
    if not parts:
        return None
    with tempfile.TemporaryDirectory(dir=spool.directory()) as directory:
        return runtime.storage().put(
            [
                NewBlob(key, part.size, part.sha256, _content(part, Path(directory)))
                for key, part in parts.items()
            ]
        )


def _content(part: parsing.Attachment, directory: Path) -> bytes | Path:
    if part.size <= IN_MEMORY:
        return b"".join(part.chunks())
    path = directory / part.sha256
    with path.open("wb") as file:
        for chunk in part.chunks():
            file.write(chunk)
    return path


def _finish(parsed: Sequence[Parsed], storage_type: StorageType | None) -> list[Parsed]:
    """Fields, attachment rows and the days' counters in one transaction, by whoever is first.

    Parameters:
      storage_type: where the attachments lie.

    Returns:
      those with attachments that another run has finished, or that are gone.
    """
    if not parsed:
        return []
    with database.transaction(durable=False):
        rows = UNFINISHED.run([message.id for message, _ in parsed]).fetchall()
        unfinished = {message_id for (message_id,) in rows}
        mine = [one for one in parsed if one[0].id in unfinished]
        FINISH.run_many([(*_fields(content), message.id) for message, content in mine])
        INSERT_ATTACHMENT.run_many(
            [row for one in mine for row in _attachment_rows(one, str(storage_type))]
        )
        _count_attachments(mine)
    return [
        (message, content)
        for message, content in parsed
        if content.attachments and message.id not in unfinished
    ]


def _attachment_rows(one: Parsed, storage_type: str) -> list[tuple[Any, ...]]:
    """The parameters of ``INSERT_ATTACHMENT``, in its order."""
    message, content = one
    return [
        (
            message.account_id,
            message.id,
            position,
            part.name,
            part.safe_name,
            part.content_type,
            part.content_id,
            part.inline,
            part.size,
            part.sha256,
            storage_type,
            blob_key(message.account_uuid, part.sha256),
        )
        for position, part in enumerate(content.attachments)
    ]


def _count_attachments(parsed: Sequence[Parsed]) -> None:
    days: dict[tuple[int, str], list[int]] = {}
    for message, content in parsed:
        if content.attachments:
            sizes = days.setdefault((message.account_id, message.day), [])
            sizes += [part.size for part in content.attachments]
    for (account_id, day), sizes in sorted(days.items()):
        EmailAccountDay.add(account_id, day, attachments=len(sizes), attachment_bytes=sum(sizes))


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


def _give_back(claimed: Sequence[Claimed]) -> None:
    """The store is away, which is not the messages' fault: the attempt does not count."""
    table = EmailRawMessage
    pause = database.now() + timedelta(seconds=settings().sweep_after)
    with database.transaction(durable=False):
        table.update(attempts=table.attempts - 1, next_attempt_at=pause).where(
            table.id.in_([message.id for message in claimed]), table.status == MessageStatus.STORED
        ).execute()
