"""Flags of the places of messages, as rows: their columns, the index that finds messages by them,
and what events tell when they change. The ledger writes them with the rest of a place."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .. import database
from ..imap import Fetched
from ..models import UNSEEN, EmailEvent, EmailFlag, EmailFolder, EmailLocation, EventType

FLAGS = database.Statement("""
    SELECT uid, id, message_id, flags, labels FROM email_locations
    WHERE folder_id = ? AND uidvalidity = ? AND generation = ? AND uid IN []
        AND expunged_at IS NULL
""")
SET_FLAGS = database.Statement("UPDATE email_locations SET flags = ?, labels = ? WHERE id = ?")
#: A row of the index of flags, for a place by its UID.
INSERT_FLAG = database.Statement("""
    INSERT INTO email_flags (flag, account_id, location_id, folder_id, message_date, message_id)
    SELECT ?, ?, id, folder_id, message_date, message_id FROM email_locations
    WHERE folder_id = ? AND uidvalidity = ? AND generation = ? AND uid = ? AND flags IS NOT NULL
    ON CONFLICT DO NOTHING
""")
UNINDEX = database.Statement("DELETE FROM email_flags WHERE location_id IN []")
#: The flags that messages had at their places, first seen first.
FLAGS_BEFORE = database.Statement("""
    SELECT message_id, flags, labels FROM email_locations
    WHERE message_id IN [] AND flags IS NOT NULL ORDER BY seen_at, id
""")
#: The flags and labels that a server told; ``None``: it told none.
Told = tuple[tuple[str, ...] | None, tuple[str, ...] | None]


class Flagged(NamedTuple):
    """A place, and the flags that it had when they were last looked at."""

    uid: int
    id: int
    message_id: int
    flags: tuple[str, ...] | None
    labels: tuple[str, ...] | None

    @classmethod
    def of(cls, row: Any) -> "Flagged":
        uid, row_id, message_id, flags, labels = row
        return cls(uid, row_id, message_id, _from_json(flags), _from_json(labels))

    def differs(self, told: Fetched) -> bool:
        labels = told.labels is not None and told.labels != self.labels
        return told.flags != self.flags or labels


def indexed(flags: Sequence[str], labels: Sequence[str] | None) -> set[str]:
    """What finds a place with these flags and labels."""
    found = {EmailFlag.of_flag(flag) for flag in flags}
    found |= {EmailFlag.of_label(label) for label in labels or ()}
    return found if "\\seen" in found else found | {UNSEEN}


def _from_json(value: Any) -> tuple[str, ...] | None:
    loaded = EmailLocation.flags.python_value(value)
    return None if loaded is None else tuple(loaded)


def as_json(
    flags: tuple[str, ...] | None, labels: tuple[str, ...] | None
) -> tuple[str | None, str | None]:
    flags_json, labels_json = (
        None if one is None else database.json(one) for one in (flags, labels)
    )
    return flags_json, labels_json


def _difference(
    folder: EmailFolder,
    old: tuple[str, ...] | None,
    new: tuple[str, ...],
    old_labels: tuple[str, ...] | None,
    new_labels: tuple[str, ...] | None,
) -> dict[str, Any]:
    """What an event tells of changed flags, and of labels where there are any."""
    was = set(old or ())
    data = {
        "folder": folder.name,
        "flags": list(new),
        "added": [flag for flag in new if flag not in was],
        "removed": sorted(was.difference(new)),
    }
    if new_labels is not None:
        before = set(old_labels or ())
        data["labels_added"] = [label for label in new_labels if label not in before]
        data["labels_removed"] = sorted(before.difference(new_labels))
    return data


def forget(folder: EmailFolder, uidvalidity: int | None, generation: int) -> None:
    """Let no message be found by flags of a folder, and those of a window be as if never seen."""
    if not EmailFlag.delete().where(EmailFlag.folder == folder.id).execute():
        return
    place = EmailLocation
    place.update(flags=None, labels=None).where(
        place.folder == folder.id,
        place.uidvalidity == uidvalidity,
        place.generation == generation,
    ).execute()


def change(
    account_id: int, folder: EmailFolder, changed: Sequence[Flagged], told: Mapping[int, Fetched]
) -> None:
    """Write down and announce other flags of places."""
    now = [(one, told[one.uid].flags or (), told[one.uid].labels) for one in changed]
    marks = {
        one.uid: (flags, one.labels if labels is None else labels) for one, flags, labels in now
    }
    SET_FLAGS.run_many([(*as_json(*marks[one.uid]), one.id) for one in changed])
    unindex([one.id for one in changed])
    index(account_id, folder, marks)
    EmailEvent.add_many(
        [
            (
                EventType.MESSAGE_FLAGS,
                account_id,
                one.message_id,
                _difference(folder, one.flags, flags, one.labels, labels),
            )
            for one, flags, labels in now
            if one.flags is not None
        ]
    )


def tell(account_id: int, folder: EmailFolder, told: Mapping[int, Told]) -> None:
    """Announce flags of known messages that are others at a new place, before it is written."""
    wanted = [message_id for message_id, (flags, _) in told.items() if flags is not None]
    for chunk in database.chunks(wanted):
        before = {row[0]: row[1:] for row in FLAGS_BEFORE.run(list(chunk)).fetchall()}
        for message_id, (flags, labels) in before.items():
            old, new = _from_json(flags) or (), told[message_id][0] or ()
            if set(old) != set(new):
                pair = (_from_json(labels), told[message_id][1])
                data = _difference(folder, old, new, *pair)
                EmailEvent.add(EventType.MESSAGE_FLAGS, account_id, message_id, data)


def index(account_id: int, folder: EmailFolder, told: Mapping[int, Told]) -> None:
    """Let messages be found by the flags and labels at their places, which are given by UID."""
    INSERT_FLAG.run_many(
        [
            (flag, account_id, *folder.numbering, uid)
            for uid, (flags, labels) in told.items()
            if flags is not None
            for flag in sorted(indexed(flags, labels))
        ]
    )


def differing(folder: EmailFolder, told: Mapping[int, Fetched]) -> list[Flagged]:
    """The places under these UIDs whose flags are known as others than the server tells."""
    rows = FLAGS.run(*folder.numbering, list(told)).fetchall()
    return [one for one in map(Flagged.of, rows) if one.differs(told[one.uid])]


def unindex(location_ids: Sequence[int]) -> None:
    """Let no message be found by the flags at these places."""
    UNINDEX.run(list(location_ids))
