"""What is written down of a folder's UIDs, as far as its present UIDVALIDITY gives them out."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from peewee import fn

from .. import database
from ..models import (
    EmailFetchFailure,
    EmailFolder,
    EmailLocation,
    EmailRawMessage,
    FetchVerdict,
)

#: The counters of a folder of which nothing is stored.
NOTHING = {"messages": 0, "bytes": 0, "expunged": 0}
OF_WINDOW = "folder_id = ? AND uidvalidity = ? AND generation = ?"
#: The UIDs of a window that messages lie under, as far as is known, from one downward.
PRESENT = database.Statement("""
    SELECT uid FROM email_locations
    WHERE folder_id = ? AND uidvalidity = ? AND generation = ? AND uid <= ?
        AND expunged_at IS NULL
    ORDER BY uid DESC LIMIT ?
""")
PRESENT_BETWEEN = database.Statement("""
    SELECT uid FROM email_locations
    WHERE folder_id = ? AND uidvalidity = ? AND generation = ? AND uid BETWEEN ? AND ?
        AND expunged_at IS NULL
    ORDER BY uid
""")
#: UIDs of a range of which something is written down.
WRITTEN = database.Statement(f"""
    SELECT uid FROM email_locations WHERE {OF_WINDOW} AND uid BETWEEN ? AND ?
    UNION ALL SELECT uid FROM email_fetch_failures WHERE {OF_WINDOW} AND uid BETWEEN ? AND ?
""")  # noqa: S608
VERDICTS = database.Statement(f"""
    SELECT verdict, COUNT(*) FROM email_fetch_failures WHERE {OF_WINDOW} GROUP BY verdict
    UNION ALL SELECT 'left_out', COALESCE(SUM(last_uid - first_uid + 1), 0) FROM email_left_out
    WHERE {OF_WINDOW}
""")  # noqa: S608
#: Runs of UIDs left out that touch a range.
RUNS = database.Statement(f"""
    SELECT first_uid, last_uid FROM email_left_out
    WHERE {OF_WINDOW} AND first_uid <= ? AND last_uid >= ?
""")  # noqa: S608
DUE = "folder_id IN [] AND verdict IN ('waiting', 'unreadable') AND next_attempt_at <= ?"
INSERT_LEFT_OUT = database.Statement("""
    INSERT INTO email_left_out (folder_id, uidvalidity, generation, first_uid, last_uid)
    VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
""")


def written_uids(folder: EmailFolder, first: int, last: int) -> set[int]:
    """The UIDs from ``first`` to ``last`` of which something is written down already."""
    with database.connected():
        span = (*folder.numbering, first, last)
        known = {uid for (uid,) in WRITTEN.run(*span, *span).fetchall()}
        for low, high in _runs(folder, first, last):
            known.update(range(max(low, first), min(high, last) + 1))
    return known


def newest_place(folder: EmailFolder) -> EmailLocation | None:
    """The place with the highest UID whose date the server told, unless it has left."""
    with database.connected():
        newest = f"{OF_WINDOW} ORDER BY uid DESC LIMIT 1"
        (row,) = database.select(EmailLocation, newest, *folder.numbering) or (None,)
    return row if row and row.internal_date and not row.expunged_at else None


def present_uids(folder: EmailFolder, uid: int, limit: int) -> list[int]:
    """The highest UIDs of known messages up to one, ascending."""
    with database.connected():
        rows = PRESENT.run(*folder.numbering, uid, limit).fetchall()
    return [uid for (uid,) in reversed(rows)]


def present_between(folder: EmailFolder, first: int, last: int) -> list[int]:
    """The UIDs of known messages in a range, ascending."""
    with database.connected():
        rows = PRESENT_BETWEEN.run(*folder.numbering, first, last).fetchall()
    return [uid for (uid,) in rows]


def known_uids(folder: EmailFolder, first: int, last: int) -> tuple[set[int], set[int], set[int]]:
    """UIDs of a folder by what is written down of them.

    Returns:
      (those that should be at the server, those that have left it, those left out).
    """
    place, failure = EmailLocation, EmailFetchFailure
    present: set[int] = set()
    gone: set[int] = set()
    left_out: set[int] = set()
    with database.connected():
        rows = place.select(place.uid, place.expunged_at).where(
            rows_of(place, folder), place.uid.between(first, last)
        )
        for uid, expunged_at in rows.tuples():
            (gone if expunged_at else present).add(uid)
        verdicts = failure.select(failure.uid, failure.verdict).where(
            rows_of(failure, folder), failure.uid.between(first, last)
        )
        for uid, verdict in verdicts.tuples():
            (gone if verdict == FetchVerdict.GONE else present).add(uid)
        for low, high in _runs(folder, first, last):
            left_out.update(range(max(low, first), min(high, last) + 1))
    return present, gone, left_out


def verdicts_of(folder: EmailFolder) -> dict[str, int]:
    """UIDs of the folder without a message by verdict, and those left out."""
    with database.connected():
        rows = VERDICTS.run(*folder.numbering, *folder.numbering).fetchall()
    found = {str(verdict): 0 for verdict in FetchVerdict}
    return found | {verdict: int(count) for verdict, count in rows}


def counters_of(folder: EmailFolder, uidvalidity: int, generation: int) -> dict[str, int]:
    """A folder's counters, counted from its places."""
    place = EmailLocation
    sums = (
        place.select(
            fn.COUNT(place.id),
            fn.COALESCE(fn.SUM(EmailRawMessage.size), 0),
            fn.COUNT(place.expunged_at),
        )
        .join(EmailRawMessage)
        .where(
            place.folder == folder.id,
            place.uidvalidity == uidvalidity,
            place.generation == generation,
        )
    )
    return dict(zip(NOTHING, map(int, sums.tuples().get()), strict=True))


def due_failures(folders: Sequence[EmailFolder], moment: datetime) -> list[EmailFetchFailure]:
    """What could not be fetched before and is to be tried again by then."""
    with database.connected():
        ids = [one.id for one in folders]
        found = database.select(EmailFetchFailure, DUE, ids, database.timestamp(moment))
    return sorted(found, key=lambda failure: (failure.folder_id, failure.uid))


def leave_out(folder: EmailFolder, uids: Sequence[int]) -> None:
    """Note UIDs that the account does not want, in the caller's transaction."""
    runs: list[list[int]] = []
    for uid in sorted(uids):
        if runs and uid == runs[-1][1] + 1:
            runs[-1][1] = uid
        else:
            runs.append([uid, uid])
    if runs:
        INSERT_LEFT_OUT.run_many([(*folder.numbering, low, high) for low, high in runs])


def rows_of(table: Any, folder: EmailFolder) -> Any:
    """The condition of a row that belongs to the folder's window."""
    return (
        (table.folder == folder.id)
        & (table.uidvalidity == folder.uidvalidity)
        & (table.generation == folder.generation)
    )


def _runs(folder: EmailFolder, first: int, last: int) -> list[tuple[int, int]]:
    """The runs of UIDs left out that touch a range."""
    return RUNS.run(*folder.numbering, last, first).fetchall()
