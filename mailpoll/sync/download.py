"""Bodies from the server: small ones many at a time, large ones in parts into a file.

A UID whose body does not come gets a reason instead, so that none is passed over in silence.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from .. import faults, spool
from ..imap import Fault, Fetched, ImapError, Part, Session
from ..models import FetchVerdict
from ..settings import Settings

#: Bytes of a header section that are kept of a message which is too large.
HEADERS = 64_000


@dataclass(frozen=True, slots=True)
class Body:
    """A downloaded message, in memory or, when it is large, in a spooled file.

    ``told_size`` and ``told_date`` are what the server says of it; ``size`` is what came.
    """

    uid: int
    internal_date: datetime
    sha256: str
    size: int
    source: bytes | Path
    told_size: int | None
    told_date: datetime | None
    email_id: str | None
    flags: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A UID without a body."""

    uid: int
    size: int | None
    verdict: FetchVerdict
    reason: str
    headers: bytes = b""


@dataclass(frozen=True, slots=True)
class Copy:
    """A UID whose content the server calls by the name of a message that is stored already."""

    entry: Fetched
    message_id: int
    size: int


@dataclass(slots=True)
class Batch:
    """What goes into one transaction: bodies, reasons, and UIDs that the account does not want."""

    bodies: list[Body] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.bodies or self.copies or self.failures or self.left_out)


class Broken(Exception):
    """The connection broke in the middle of a download.

    Parameters:
      batch: what had come whole before.
      error: how it broke.
    """

    def __init__(self, batch: Batch, error: ImapError) -> None:
        super().__init__(str(error))
        self.batch = batch
        self.error = error


def batches(
    entries: Sequence[Fetched], settings: Settings, most: int | None = None
) -> Iterator[list[Fetched]]:
    """Split by number and bytes; a message larger than a part goes alone.

    Parameters:
      most: messages in a batch, instead of the configured number.
    """
    limit = most or settings.batch_messages
    batch: list[Fetched] = []
    size = 0
    for entry in entries:
        # A message of unknown size may be large.
        expected = settings.part_bytes + 1 if entry.size is None else entry.size
        full = len(batch) >= limit or size + expected > settings.batch_bytes
        if batch and (full or expected > settings.part_bytes):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += expected
    if batch:
        yield batch


class Downloader:
    """Fetches bodies of the session's open folder, a mailbox of this account."""

    def __init__(self, session: Session, settings: Settings, account_uuid: str) -> None:
        self._session = session
        self._settings = settings
        self._account_uuid = account_uuid

    def fetch(self, entries: Sequence[Fetched], *, in_parts: bool = False) -> Batch:
        """The bodies of a batch, or a reason for each that does not come.

        Parameters:
          in_parts: whatever size is announced; asked for whole it has broken the connection.

        Raises:
          Broken: the connection cannot be used any more.
        """
        batch = Batch()
        size = entries[0].size
        large = size is None or size > self._settings.part_bytes
        if len(entries) > 1 or not (in_parts or large):
            try:
                self._fetch_small(entries, batch)
            except ImapError as error:
                # A server that refuses many, because one of them is broken, is asked for each.
                if not _declined(error):
                    raise Broken(batch, error) from None
        got = {body.uid for body in batch.bodies}
        for entry in entries:
            if entry.uid not in got:
                self._fetch_single(entry, batch)
        return batch

    def _fetch_small(self, entries: Sequence[Fetched], batch: Batch) -> None:
        told = {entry.uid: entry for entry in entries}
        for uid, data in self._session.bodies([entry.uid for entry in entries if entry.uid]):
            digest = hashlib.sha256(data).hexdigest()
            batch.bodies.append(_body(told[uid], digest, len(data), data))

    def _fetch_single(self, entry: Fetched, batch: Batch) -> None:
        """A large message, or one that the server left out of a batch: in parts, to a file."""
        uid = entry.uid or 0
        limit = self._settings.max_message_bytes
        try:
            # Announced sizes are not always true, so a byte beyond the limit is asked for.
            if (entry.size or 0) > limit and self._has_byte(uid, limit):
                reason = f"{entry.size} bytes; the limit is {limit}"
                headers = self._session.headers([uid]).get(uid, b"")[:HEADERS]
                verdict = FetchVerdict.TOO_LARGE
                batch.failures.append(Failure(uid, entry.size, verdict, reason, headers))
                return
            body = self._spool(entry, limit)
            listed = body is None and uid in self._session.uids(uid, uid)
        except ImapError as error:
            if not _declined(error):
                raise Broken(batch, error) from None
            batch.failures.append(Failure(uid, entry.size, FetchVerdict.WAITING, str(error)))
            return
        if body is not None:
            batch.bodies.append(body)
        elif listed:
            reason = "the server lists the message but does not send it"
            batch.failures.append(Failure(uid, entry.size, FetchVerdict.WAITING, reason))
        else:
            reason = "removed at the server before it could be fetched"
            batch.failures.append(Failure(uid, entry.size, FetchVerdict.GONE, reason))

    def _has_byte(self, uid: int, offset: int) -> bool:
        part = self._session.part(uid, offset, 1)
        return part is not None and bool(part.data)

    def _spool(self, entry: Fetched, limit: int) -> Body | None:
        """Download in parts into a file; ends at a short part, whatever size was announced."""
        uid = entry.uid or 0
        digest, size = hashlib.sha256(), 0
        path = spool.new_file(self._account_uuid)
        try:
            with path.open("r+b") as file:
                while True:
                    part = self._session.part(uid, size, self._settings.part_bytes)
                    if part is None and size == 0:
                        path.unlink()
                        return None
                    # No part past the end of the message says that it has ended.
                    part = part or Part(b"", last=True)
                    file.write(part.data)
                    digest.update(part.data)
                    size += len(part.data)
                    if size > limit:
                        raise ImapError(Fault.REFUSED, f"more than {limit} bytes")
                    if part.last:
                        faults.point("file-written")
                        return _body(entry, digest.hexdigest(), size, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _declined(error: ImapError) -> bool:
    """Whether the server would not send it, and can still be asked for something else."""
    return error.fault in (Fault.REFUSED, Fault.UNAVAILABLE) and not error.ended


def _body(entry: Fetched, sha256: str, size: int, source: bytes | Path) -> Body:
    arrived = entry.internal_date or datetime.now(UTC)
    told = (entry.size, entry.internal_date, entry.email_id, entry.flags, entry.labels)
    return Body(entry.uid or 0, arrived, sha256, size, source, *told)
