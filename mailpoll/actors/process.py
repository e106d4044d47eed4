"""Process messages: read the raw blobs, parse, store the attachments, fill in the fields."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import dramatiq
import structlog

from .. import (
    accounts,
    counters,
    database,
    doomed,
    faults,
    parsing,
    runtime,
    search,
    spool,
    threads,
    turns,
)
from ..blobs import BlobCorrupt, BlobMissing, NewBlob, StorageType, StoreUnavailable, blob_key
from ..broker import IMPORT, PROCESS, Queued
from ..crypto import DataKeyError
from ..imap import is_placeholder
from ..models import (
    EmailAccountDay,
    EmailEvent,
    EmailRawMessage,
    EventType,
    MessageStatus,
)
from ..parsing.replies import preview
from ..settings import settings

log = structlog.get_logger()

#: Raw messages up to this many bytes are parsed in memory, larger ones from a file.
IN_MEMORY = 1_000_000
#: Seconds that an attempt may take before the sweeper gives the message to another worker.
ATTEMPT = 300
#: The same for messages of a group: they are small, and nobody but the sweeper brings them back.
GROUP_ATTEMPT = 60
#: Seconds that messages may keep their process busy without waiting for anything, and seconds for
#: each of their bytes: 10 to 40 times what the worst of mail takes.
PARSING, PARSING_BYTE = 30.0, 1e-6


#: Why messages fail for good.
QUARANTINED = ("attempts", "unparsable", "missing", "corrupt")

#: A message with what stands in it.
Parsed = tuple["Claimed", parsing.ParsedMessage]


class Failed(Exception):
    """The message cannot be processed; trying again would not help.

    Parameters:
      kind: one of ``QUARANTINED``.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


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
    except (StoreUnavailable, DataKeyError):
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
      StoreUnavailable, DataKeyError, database.AWAY: to be tried again, without counting as an
        attempt of the messages.
      turns.TurnTooLong: one of them takes for ever.
    """
    claimed = _claim(message_ids)
    faults.point("claimed")
    parsed: list[Parsed] = []
    limit = PARSING + PARSING_BYTE * sum(message.size for message in claimed)
    try:
        with turns.working(limit), ExitStack() as files:
            for message in claimed:
                try:
                    raw = files.enter_context(_raw(message))
                    parsed.append((message, parsing.parse(raw)))
                except (Failed, parsing.Unparsable) as error:
                    kind = error.kind if isinstance(error, Failed) else "unparsable"
                    _fail(message.id, message.account_id, message.day, kind, str(error))
            late = _finish(parsed, _store_attachments(parsed))
        for message, _ in late:
            accounts.empty_if_deleted(message.account_id, message.account_uuid)
    except (StoreUnavailable, DataKeyError):
        # What is stored may be some of the attachments.
        if _deleted(claimed):
            return
        _give_back(claimed)
        raise
    except database.AWAY as error:
        if database.is_away(error):
            with suppress(*database.AWAY):  # then the attempt counts
                _give_back(claimed)
        raise
    except OSError:
        # A deletion takes an account's temporary files from under whatever still works on it.
        if not _deleted(claimed):
            raise


def _deleted(claimed: Sequence["Claimed"]) -> bool:
    """Whether the messages' account is gone; then the stores have nothing of it any more."""
    return any(accounts.empty_if_deleted(one.account_id, one.account_uuid) for one in claimed[:1])


#: Counts the attempt and tells what to work on; no row when there is nothing to do.
CLAIM = database.Statement("""
    UPDATE email_raw_messages SET attempts = attempts + 1, next_attempt_at = ?
    WHERE id IN [] AND status = 'stored' AND attempts <= ? AND EXISTS (
        SELECT 1 FROM email_accounts WHERE email_accounts.id = account_id AND state <> 'deleting')
    RETURNING id, account_id,
        (SELECT uuid FROM email_accounts WHERE email_accounts.id = account_id),
        sha256, size, storage_type, internal_date, imported
""")

#: So that the attempt does not count.
GIVE_BACK = database.Statement("""
    UPDATE email_raw_messages SET attempts = attempts - 1, next_attempt_at = ?
    WHERE id IN [] AND status = 'stored'
""")

#: Which of them nobody has finished yet, and whether that was done before, and is to be done anew.
UNFINISHED = database.Statement("""
    SELECT id, parser IS NOT NULL FROM email_raw_messages
    WHERE id IN [] AND status = 'stored' ORDER BY id FOR UPDATE
""")

FINISH = database.Statement("""
    UPDATE email_raw_messages SET status = 'processed', processed_at = ?, next_attempt_at = NULL,
        error = NULL, parser = ?, defects = ?, subject = ?, from_addresses = ?, to_addresses = ?,
        cc_addresses = ?, bcc_addresses = ?, reply_to_addresses = ?, date = ?, message_id = ?,
        in_reply_to = ?, reference_ids = ?, attachment_count = ?, preview = ?, text_derived = ?,
        headers = ?, text_body = ?, html_body = ?, thread_id = ?
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
    moment: datetime
    imported: bool

    @property
    def day(self) -> str:
        return _utc_day(self.moment)


def _claim(message_ids: Sequence[int]) -> list[Claimed]:
    """Count the attempts before the work: a message that kills its worker is caught by the count.

    What was begun before may be the one that kills: it is not worked on beside others any more,
    but comes again alone, from the sweeper.
    """
    alone = len(message_ids) == 1
    before = settings().max_attempts if alone else 0
    with database.transaction(durable=False):
        pause = database.now() + timedelta(seconds=ATTEMPT if alone else GROUP_ATTEMPT)
        rows = CLAIM.run(database.timestamp(pause), list(message_ids), before).fetchall()
    if len(rows) < len(message_ids):
        counters.add("duplicate_delivery", len(message_ids) - len(rows), "message")
    return [_claimed(row) for row in rows]


def _claimed(row: tuple[Any, ...]) -> Claimed:
    message_id, account_id, uuid, sha256, size, storage_type, internal_date, imported = row
    moment, kind = database.moment(internal_date), StorageType(storage_type)
    return Claimed(message_id, account_id, uuid, sha256, size, kind, moment, bool(imported))


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
    _fail(message.id, message.account_id, _utc_day(message.internal_date), "attempts", reason)


@contextmanager
def _raw(message: Claimed) -> Iterator[bytes | Path]:
    """The raw message, checked against its hash: bytes, or a temporary file when it is large.

    Raises:
      Failed: the blob is missing or its bytes changed.
    """
    with ExitStack() as stack:
        try:
            raw = _read(message, stack)
        except BlobMissing:
            raise Failed("missing", "the raw message is missing from the store") from None
        except BlobCorrupt:
            counters.add("checksum_mismatch")
            reason = "the stored bytes differ from those that were fetched"
            raise Failed("corrupt", reason) from None
        yield raw


def _read(message: Claimed, files: ExitStack) -> bytes | Path:
    """A blob's bytes; a wrong one on the way is right at the second look, one in the store is not.

    Raises:
      BlobMissing, BlobCorrupt: it is not there, or not what was stored.
    """
    try:
        return _read_once(message, files)
    except BlobCorrupt:
        log.warning("read other bytes than were stored; reading again", message=message.id)
        return _read_once(message, files)


def _read_once(message: Claimed, files: ExitStack) -> bytes | Path:
    key = blob_key(message.account_uuid, message.sha256)
    with runtime.storage().open(key, message.storage_type) as stream:
        small = message.size <= IN_MEMORY
        return stream.read() if small else _copied(stream, message, files)


def _copied(stream: BinaryIO, message: Claimed, files: ExitStack) -> Path:
    """A temporary file of a stream's bytes that lasts as long as ``files``."""
    path = Path(files.enter_context(spool.new_directory(message.account_uuid))) / "raw"
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file, 262_144)
    return path


def _store_attachments(parsed: Sequence[Parsed]) -> StorageType | None:
    """Put the attachments of all messages into the store together; where they lie then."""
    parts = {
        blob_key(message.account_uuid, part.sha256): part
        for message, content in parsed
        for part in content.attachments
    }
    if not parts:
        return None
    for account_id, digests in _contents(parsed).items():
        doomed.before_put(account_id, digests)
    with ExitStack() as files:
        blobs = [
            NewBlob(key, part.size, part.sha256, _content(key, part, files))
            for key, part in parts.items()
        ]
        kind = runtime.storage().put(blobs)
    faults.point("attachments-stored")
    return kind


def _contents(parsed: Sequence[Parsed]) -> dict[int, list[str]]:
    """The SHA-256 of all attachments by account."""
    found: dict[int, list[str]] = {}
    for message, content in parsed:
        found.setdefault(message.account_id, []).extend(one.sha256 for one in content.attachments)
    return found


def _content(key: str, part: parsing.Attachment, files: ExitStack) -> bytes | Path:
    """The decoded bytes, or a file of them that lasts as long as ``files``."""
    if part.size <= IN_MEMORY:
        return b"".join(part.chunks())
    account_uuid = key.partition("/")[0]
    path = Path(files.enter_context(spool.new_directory(account_uuid))) / part.sha256
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
    words = [_words(one) for one in parsed]
    with database.transaction(durable=False):
        rows = UNFINISHED.run([message.id for message, _ in parsed]).fetchall()
        unfinished = {message_id: bool(again) for message_id, again in rows}
        mine = [one for one in parsed if one[0].id in unfinished]
        INSERT_ATTACHMENT.run_many(
            [row for one in mine for row in _attachment_rows(one, str(storage_type))]
        )
        _count_attachments(mine)
        search.add(one for one in words if one.message_id in unfinished)
        EmailEvent.add_many([_news(message) for message, _ in mine if not unfinished[message.id]])
        found = _threads(mine)  # late: nobody else can thread the account's messages meanwhile
        FINISH.run_many(
            [(*_fields(content), found[message.id], message.id) for message, content in mine]
        )
        faults.point("before-finish")
    faults.point("finished")
    return [
        (message, content)
        for message, content in parsed
        if content.attachments and message.id not in unfinished
    ]


def _words(one: Parsed) -> search.Prepared:
    message, content = one
    return search.prepare(
        message.account_id,
        message.id,
        message.size,
        message.moment,
        search.Content(
            subject=content.subject,
            senders=_texts(content.from_),
            recipients=_texts([*content.to, *content.cc, *content.bcc]),
            others=_texts(content.reply_to),
            files=[part.name or part.safe_name for part in content.attachments],
            text=content.text,
            attached=any(not part.inline for part in content.attachments),
            reply=bool(content.in_reply_to or content.references),
        ),
    )


def _texts(addresses: Sequence[parsing.Address]) -> list[str]:
    return [f"{one.name} {one.address}" for one in addresses]


def _threads(messages: Sequence[Parsed]) -> dict[int, int]:
    """The thread of each message."""
    by_account: dict[int, list[threads.Member]] = {}
    for message, content in messages:
        one = threads.member(
            message.id,
            message.account_uuid,
            own=content.message_id,
            in_reply_to=content.in_reply_to,
            references=content.references,
            subject=content.subject,
            sender=content.from_[0].address if content.from_ else None,
            recipients=[each.address for each in (*content.to, *content.cc)],
            moment=content.date or message.moment,
        )
        by_account.setdefault(message.account_id, []).append(one)
    found: dict[int, int] = {}
    for account_id, members in sorted(by_account.items()):
        found |= threads.assign(account_id, members)
    return found


def _news(message: Claimed) -> tuple[EventType, int, int, dict[str, bool]]:
    """A message is announced when it becomes ``processed`` first, with the same commit."""
    data = {"imported": message.imported}
    return EventType.MESSAGE_NEW, message.account_id, message.id, data


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
        preview(parsed.text),
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


def _fail(message_id: int, account_id: int, day: str, kind: str, reason: str) -> None:
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
            data = {"reason": reason}
            EmailEvent.add(EventType.MESSAGE_FAILED, account_id, message_id, data)
            counters.add("quarantined", 1, kind)
            log.warning("message failed", message=message_id, reason=reason)


def _give_back(claimed: Sequence[Claimed]) -> None:
    """Store or database is away, which is not the messages' fault: the attempt does not count."""
    pause = database.now() + timedelta(seconds=settings().sweep_after)
    with database.transaction(durable=False):
        GIVE_BACK.run(database.timestamp(pause), [message.id for message in claimed])
