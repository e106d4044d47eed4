"""What attachments hold that people want to see in the message: invitations, ``winmail.dat``.

Worked out when a message is looked at, from the stored bytes and within limits: nothing of it is
stored, so that better reading of old mail needs no second processing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from . import runtime
from .blobs import BlobCorrupt, BlobMissing, StorageType, StoreUnavailable
from .crypto import DataKeyError
from .models import EmailAttachment
from .parsing import calendars, tnef
from .parsing.calendars import Calendar
from .parsing.tnef import NotTnef, Tnef

log = structlog.get_logger()

#: Attachments of each kind that are read for one message.
MOST = 5
CALENDAR_TYPES = frozenset(("text/calendar", "application/ics"))
TNEF_TYPES = frozenset(("application/ms-tnef", "application/vnd.ms-tnef"))
TNEF_NAME = "winmail.dat"


@dataclass(frozen=True, slots=True)
class Inside:
    """What was found, by the position of the attachment. ``failed``: those not to be read now."""

    calendars: dict[int, Calendar]
    tnef: dict[int, Tnef]
    failed: list[int]


def look(attachments: Sequence[EmailAttachment]) -> Inside:
    """Read what is an invitation or a ``winmail.dat``; costs nothing for any other message."""
    found = Inside({}, {}, [])
    for row in [one for one in attachments if _is_calendar(one)][:MOST]:
        data = _read(row, calendars.MAX_BYTES + 1, found)
        if data is not None:
            found.calendars[row.position] = calendars.read_calendar(data)
    for row in [one for one in attachments if is_tnef(one)][:MOST]:
        data = _read(row, tnef.MAX_BYTES + 1, found)
        if data is not None:
            try:
                found.tnef[row.position] = tnef.read_tnef(data)
            except NotTnef:
                continue
    return found


def files_of(row: EmailAttachment) -> list[tnef.File]:
    """The files in a ``winmail.dat``; none of anything else.

    Raises:
      BlobMissing, BlobCorrupt, StoreUnavailable, DataKeyError: it cannot be read.
    """
    if not is_tnef(row):
        return []
    kind = StorageType(row.storage_type)
    with runtime.storage().open(row.storage_key, kind) as stream:
        data = stream.read(tnef.MAX_BYTES + 1)
    try:
        return tnef.read_tnef(data).files
    except NotTnef:
        return []


def is_tnef(row: EmailAttachment) -> bool:
    return row.content_type in TNEF_TYPES or row.name.lower() == TNEF_NAME


def _is_calendar(row: EmailAttachment) -> bool:
    return row.content_type in CALENDAR_TYPES or row.name.lower().endswith(".ics")


def _read(row: EmailAttachment, limit: int, found: Inside) -> bytes | None:
    """As much as is looked at; the message is shown all the same when that cannot be read."""
    try:
        kind = StorageType(row.storage_type)
        with runtime.storage().open(row.storage_key, kind) as stream:
            return stream.read(limit)
    except (BlobMissing, BlobCorrupt, StoreUnavailable, DataKeyError) as error:
        log.warning("an attachment could not be looked into", error=type(error).__name__)
        found.failed.append(row.position)
        return None
