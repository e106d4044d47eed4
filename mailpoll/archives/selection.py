"""Which messages an archive gets, in the order of their arrival, read page by page."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from peewee import Tuple, fn

from .. import database
from ..models import EmailAccount, EmailFolder, EmailLocation, EmailRawMessage, count

#: Messages asked for in one statement.
PAGE = 500

#: The folders of messages, and whether each still has it.
FOLDERS_OF = database.Statement("""
    SELECT l.message_id, f.name, l.expunged_at IS NULL AND f.gone_at IS NULL
    FROM email_locations l JOIN email_folders f ON f.id = l.folder_id
    WHERE l.message_id IN [] ORDER BY l.message_id, l.id
""")

#: Where a reading goes on: ``internal_date`` and id, or the number of ids that were read.
Position = list[Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A message as archives have it.

    Parameters:
      folders: where it lies, or lay, if it is nowhere any more.
      flags: as IMAP spells them; ``None`` where they are not known.
      position: where a reading goes on behind it.
    """

    id: int
    sha256: str
    size: int
    internal_date: datetime
    storage_type: str
    storage_key: str
    folders: tuple[str, ...]
    flags: tuple[str, ...] | None
    position: Position


@dataclass(frozen=True, slots=True)
class Selection:
    """What is chosen of an account's messages.

    Parameters:
      folder: only of the folder of this name.
      since, until: arrived at or after, and before.
      ids: only these; they go out in this order.
      last_id: none that were stored later.
    """

    folder: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    ids: tuple[int, ...] | None = None
    last_id: int | None = None

    def as_json(self) -> dict[str, Any]:
        """For the row of an export."""
        return {
            "folder": self.folder,
            "since": self.since and self.since.isoformat(),
            "until": self.until and self.until.isoformat(),
            "ids": self.ids,
            "last_id": self.last_id,
        }

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> "Selection":
        times = {
            name: datetime.fromisoformat(found[name]) if found[name] else None
            for name in ("since", "until")
        }
        ids = None if found["ids"] is None else tuple(found["ids"])
        return cls(found["folder"], times["since"], times["until"], ids, found["last_id"])


def entries(
    account: EmailAccount, selection: Selection, after: Position | None = None
) -> Iterator[Entry]:
    """The chosen messages; memory stays flat whatever their number.

    Parameters:
      after: where an earlier reading ended.
    """
    if selection.ids is not None:
        start = after[0] if after else 0
        yield from of_ids(account, selection.ids[start:], start)
        return
    rows = _chosen(account, selection)
    order = (EmailRawMessage.internal_date, EmailRawMessage.id)
    while True:
        page = rows
        if after:
            page = page.where(Tuple(*order) > (database.timestamp(_moment(after[0])), after[1]))
        with database.connected():
            found = list(page.order_by(*order).limit(PAGE))
            places = _folders([row.id for row in found])
        for row in found:
            after = [row.internal_date.isoformat(), row.id]
            yield _entry(row, places, after)
        if len(found) < PAGE:
            return


def of_ids(account: EmailAccount, ids: Iterable[int], start: int = 0) -> Iterator[Entry]:
    """These messages of an account, in this order; ids that are not its own are passed over.

    Parameters:
      start: how many ids came before these.
    """
    table, source = EmailRawMessage, iter(ids)
    while page := list(islice(source, PAGE)):
        with database.connected():
            query = table.select(*COLUMNS).where(table.account == account.id, table.id.in_(page))
            found = {row.id: row for row in query}
            places = _folders(list(found))
        for number, message_id in enumerate(page, start + 1):
            if message_id in found:
                yield _entry(found[message_id], places, [number])
        start += len(page)


def number(account: EmailAccount, selection: Selection) -> int:
    """How many messages are chosen now."""
    if selection.ids is not None:
        return len(selection.ids)
    with database.connected():
        return count(_chosen(account, selection))


def newest_id(account: EmailAccount) -> int:
    """The id of the message of the account that was stored last; 0 when it has none."""
    table = EmailRawMessage
    with database.connected():
        query = table.select(fn.MAX(table.id)).where(table.account == account.id)
        return int(query.scalar() or 0)


COLUMNS = (
    EmailRawMessage.id,
    EmailRawMessage.sha256,
    EmailRawMessage.size,
    EmailRawMessage.internal_date,
    EmailRawMessage.storage_type,
    EmailRawMessage.storage_key,
)


def _chosen(account: EmailAccount, selection: Selection) -> Any:
    table, place = EmailRawMessage, EmailLocation
    rows = table.select(*COLUMNS).where(table.account == account.id)
    if selection.since:
        rows = rows.where(table.internal_date >= selection.since)
    if selection.until:
        rows = rows.where(table.internal_date < selection.until)
    if selection.last_id is not None:
        rows = rows.where(table.id <= selection.last_id)
    if selection.folder is not None:
        folders = EmailFolder.select(EmailFolder.id).where(
            EmailFolder.account == account.id, EmailFolder.name == selection.folder
        )
        lies = place.select(place.id).where(place.message == table.id, place.folder.in_(folders))
        rows = rows.where(fn.EXISTS(lies))
    return rows


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _folders(ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """The names of the folders that have each message, or had it."""
    there: dict[int, dict[str, None]] = {}
    ever: dict[int, dict[str, None]] = {}
    if ids:
        for message_id, name, present in FOLDERS_OF.run(list(ids)).fetchall():
            ever.setdefault(message_id, {})[name] = None
            if present:
                there.setdefault(message_id, {})[name] = None
    return {message_id: tuple(there.get(message_id) or names) for message_id, names in ever.items()}


def _entry(row: EmailRawMessage, places: dict[int, tuple[str, ...]], position: Position) -> Entry:
    return Entry(
        row.id,
        row.sha256,
        row.size,
        row.internal_date,
        row.storage_type,
        row.storage_key,
        places.get(row.id, ()),
        None,
        position,
    )
