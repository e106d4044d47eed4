"""Which messages an archive gets, in the order of their arrival, read page by page.

What a search finds comes newest first, as the search has it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, NamedTuple

from peewee import Tuple, fn

from .. import database, search
from ..models import (
    ARCHIVED,
    EmailAccount,
    EmailFolder,
    EmailLocation,
    EmailRawMessage,
    count,
)

#: Messages asked for in one statement, and hits of a search.
PAGE, HITS = 500, 5_000

#: The places of messages: the folder, whether it still has the message, whether flags and labels
#: are known there (somebody follows them, or an import has brought them), and these.
PLACES = database.Statement("""
    SELECT l.message_id, f.name, l.expunged_at IS NULL AND f.gone_at IS NULL,
        a.sync_flags OR substr(f.wire_name, 1, 1) = ?, l.flags, l.labels
    FROM email_locations l JOIN email_folders f ON f.id = l.folder_id
    JOIN email_accounts a ON a.id = f.account_id
    WHERE l.message_id IN [] ORDER BY l.message_id, l.id
""")

#: Where a reading goes on: ``internal_date`` and id, the number of ids that were read, or the place
#: of what a search found last.
Position = list[Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A message as archives have it.

    Parameters:
      folders: where it lies, or lay, if it is nowhere any more.
      flags: as IMAP spells them, and Gmail's labels; ``None`` where they are not known.
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
    labels: tuple[str, ...] | None
    position: Position


@dataclass(frozen=True, slots=True)
class Selection:
    """What is chosen of an account's messages.

    Parameters:
      folder: only of the folder of this name.
      since, until: arrived at or after, and before.
      ids: only these; they go out in this order.
      last_id: none that were stored later.
      query: only what this search finds; ``search.QueryError`` if it is none.
    """

    folder: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    ids: tuple[int, ...] | None = None
    last_id: int | None = None
    query: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For the row of an export."""
        return {
            "folder": self.folder,
            "since": self.since and self.since.isoformat(),
            "until": self.until and self.until.isoformat(),
            "ids": self.ids,
            "last_id": self.last_id,
            "query": self.query,
        }

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> "Selection":
        times = {
            name: datetime.fromisoformat(found[name]) if found[name] else None
            for name in ("since", "until")
        }
        ids = None if found["ids"] is None else tuple(found["ids"])
        return cls(**found | times | {"ids": ids})


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
    pages = _pages if selection.query is None else _pages_found
    for page in pages(account, selection, after):
        with database.connected():
            places = _places([row.id for row, _ in page])
        for row, position in page:
            yield _entry(row, places, position)


def _pages(
    account: EmailAccount, selection: Selection, after: Position | None
) -> Iterator[list[tuple[EmailRawMessage, Position]]]:
    """Rows in the order of their arrival, with their positions."""
    rows = _chosen(account, selection)
    order = (EmailRawMessage.internal_date, EmailRawMessage.id)
    while True:
        page = rows
        if after:
            page = page.where(Tuple(*order) > (database.timestamp(_moment(after[0])), after[1]))
        with database.connected():
            found = list(page.order_by(*order).limit(PAGE))
        yield [(row, [row.internal_date.isoformat(), row.id]) for row in found]
        if len(found) < PAGE:
            return
        after = [found[-1].internal_date.isoformat(), found[-1].id]


def _pages_found(
    account: EmailAccount, selection: Selection, after: Position | None
) -> Iterator[list[tuple[EmailRawMessage, Position]]]:
    """Rows that a search finds, newest first, with their positions."""
    query, rows = search.parse(selection.query or ""), _chosen(account, selection)
    place = search.Place(-1, after[0], 0, 0) if after else None
    while True:
        found = search.find(query, account, by_date=True, limit=HITS, after=place)
        for start in range(0, len(found.hits), PAGE):
            hits = found.hits[start : start + PAGE]
            ids = [hit.message_id for hit in hits]
            with database.connected():
                by_id = {row.id: row for row in rows.where(EmailRawMessage.id.in_(ids))}
            yield [(by_id[one.message_id], [one.place]) for one in hits if one.message_id in by_id]
        place = found.next
        if place is None:
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
            places = _places(list(found))
        for number, message_id in enumerate(page, start + 1):
            if message_id in found:
                yield _entry(found[message_id], places, [number])
        start += len(page)


def number(account: EmailAccount, selection: Selection) -> int | None:
    """How many messages are chosen now; ``None``: only the whole search would tell."""
    if selection.ids is not None:
        return len(selection.ids)
    if selection.query is not None:
        return None
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


class _Where(NamedTuple):
    """Where a message lies, or lay, if it is nowhere any more, and its flags and labels there."""

    folders: tuple[str, ...] = ()
    flags: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None


def _places(ids: Sequence[int]) -> dict[int, _Where]:
    """Of each message, those of all its places as one."""
    rows = PLACES.run(ARCHIVED, list(ids)).fetchall() if ids else []
    found: dict[int, _Where] = {}
    for message_id, group in groupby(rows, key=itemgetter(0)):
        ever = list(group)
        there = [row for row in ever if row[2]] or ever
        folders = tuple(dict.fromkeys(row[1] for row in there))
        known = [row for row in there if row[3]]
        found[message_id] = _Where(folders, *(_all(known, column) for column in (4, 5)))
    return found


def _all(rows: Sequence[Any], column: int) -> tuple[str, ...] | None:
    """The flags, or labels, of all rows; ``None`` if none tells any."""
    read = EmailLocation.flags.python_value
    told = [read(row[column]) for row in rows if row[column] is not None]
    return tuple(dict.fromkeys(flag for flags in told for flag in flags)) if told else None


def _entry(row: EmailRawMessage, places: dict[int, _Where], position: Position) -> Entry:
    return Entry(
        row.id,
        row.sha256,
        row.size,
        row.internal_date,
        row.storage_type,
        row.storage_key,
        *places.get(row.id, _Where()),
        position,
    )
