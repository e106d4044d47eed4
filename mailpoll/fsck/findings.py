"""What a check can find, in words, and what became of it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ..models import EmailAccount


class Kind(StrEnum):
    """The kinds of differences between database, stores and servers."""

    BLOB_MISSING = "blob_missing"
    BLOB_CORRUPT = "blob_corrupt"
    BLOB_UNREADABLE = "blob_unreadable"
    BLOB_MISPLACED = "blob_misplaced"
    BLOB_DOUBLED = "blob_doubled"
    KEY_WRONG = "key_wrong"
    ORPHAN = "orphan"
    ORPHAN_ACCOUNT = "orphan_account"
    LEFTOVER = "leftover"
    COUNTERS = "counters"
    DAY = "day"
    PLACE_WITHOUT_MESSAGE = "place_without_message"
    MESSAGE_WITHOUT_PLACE = "message_without_place"
    VERDICT_TWICE = "verdict_twice"
    FLAGS = "flags"
    ATTACHMENTS_EARLY = "attachments_early"
    ATTACHMENTS_COUNT = "attachments_count"
    NOT_INDEXED = "not_indexed"
    INDEX_LEFTOVER = "index_leftover"
    STUCK = "stuck"
    LEASE_ENDED = "lease_ended"
    DUPLICATE = "duplicate"
    MISSING = "missing"
    ABSENT = "absent"
    RETURNED = "returned"
    RENUMBERED = "renumbered"
    FOLDER_GONE = "folder_gone"
    CHANGED = "changed"


MEANING = {
    Kind.BLOB_MISSING: "the blob is in no store",
    Kind.BLOB_CORRUPT: "the blob's bytes are not those that were stored",
    Kind.BLOB_UNREADABLE: "the store has the blob and cannot read it",
    Kind.BLOB_MISPLACED: "the blob is in another store than its row says",
    Kind.BLOB_DOUBLED: "a second copy of the blob lies in a store that no row names",
    Kind.KEY_WRONG: "the row names a blob of other content",
    Kind.ORPHAN: "no row refers to the blob",
    Kind.ORPHAN_ACCOUNT: "blobs of an account that is not in the database",
    Kind.LEFTOVER: "a temporary file that a dead process left",
    Kind.COUNTERS: "the folder's counters differ from its rows",
    Kind.DAY: "the day's counters differ from its rows",
    Kind.PLACE_WITHOUT_MESSAGE: "the place points at no message of this account",
    Kind.MESSAGE_WITHOUT_PLACE: "the message has no place in any folder",
    Kind.VERDICT_TWICE: "the UID has a message, and a reason why it has none",
    Kind.FLAGS: "the index of flags says otherwise than the place",
    Kind.ATTACHMENTS_EARLY: "a message that is not processed has attachments",
    Kind.ATTACHMENTS_COUNT: "the message has another number of attachments than it says",
    Kind.NOT_INDEXED: "the message is processed, and not in the search index or in no thread",
    Kind.INDEX_LEFTOVER: "the search index has an entry without a message",
    Kind.STUCK: "the message has waited long to be processed",
    Kind.LEASE_ENDED: "a lease ended long ago and was never given back",
    Kind.DUPLICATE: "two rows have the same key",
    Kind.MISSING: "the server lists a message of which nothing is known here",
    Kind.ABSENT: "the server does not list the message any more, and that is not written down",
    Kind.RETURNED: "the server lists the message again, and it is written down as gone",
    Kind.RENUMBERED: "the server has given the folder another UIDVALIDITY: its UIDs are new",
    Kind.FOLDER_GONE: "the server does not list the folder any more, and that is not written down",
    Kind.CHANGED: "the server sends other bytes under this UID than were stored first",
}


class Outcome(StrEnum):
    """What became of a difference.

    ``recent`` is a blob that a running poll may have just put: it is no difference yet.
    """

    FOUND = "found"
    RECENT = "recent"
    REPAIRED = "repaired"
    ASKED = "asked"
    LEFT = "left"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Repair:
    """How a repair went, and in words what was done or why not."""

    outcome: Outcome
    reason: str = ""


Mend = Callable[[EmailAccount | None], Repair]


@dataclass(slots=True)
class Difference:
    """One thing that two of the three truths tell differently.

    Parameters:
      detail: what exactly, for instance the numbers that differ.
      mend: repairs it, given the account under a lease; ``None`` when nothing can.
    """

    kind: Kind
    account: EmailAccount | None = None
    folder: str | None = None
    uid: int | None = None
    key: str | None = None
    detail: str = ""
    outcome: Outcome = Outcome.FOUND
    reason: str = ""
    mend: Mend | None = None

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "kind": str(self.kind),
            "account": self.account and self.account.uuid,
            "address": self.account and self.account.address,
            "folder": self.folder,
            "uid": self.uid,
            "key": self.key,
            "meaning": MEANING[self.kind],
            "detail": self.detail,
            "outcome": str(self.outcome),
            "reason": self.reason,
        }

    def as_line(self) -> str:
        """Where, what, and what became of it."""
        where = [self.account.address if self.account else "", self.folder or ""]
        where += [f"UID {self.uid}" if self.uid else "", self.key or ""]
        detail = f" ({self.detail})" if self.detail else ""
        line = f"{' '.join(filter(None, where))}: {MEANING[self.kind]}{detail}"
        reason = f": {self.reason}" if self.reason else ""
        return line if self.outcome is Outcome.FOUND else f"{line}; {self.outcome}{reason}"


@dataclass(slots=True)
class Tally:
    """What was looked at and found. ``bytes`` were read back; ``now`` is what is being checked.

    Parameters:
      newer, to_import, withheld: messages at the servers that are not due to be here yet, or
        that a server counts without listing them.
      unchecked: what could not be compared, and why.
    """

    accounts: int = 0
    folders: int = 0
    messages: int = 0
    attachments: int = 0
    blobs: int = 0
    bytes: int = 0
    newer: int = 0
    to_import: int = 0
    withheld: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    unchecked: list[str] = field(default_factory=list)
    now: str = ""

    def add(self, difference: Difference) -> None:
        self.kinds[difference.kind] += 1
        self.outcomes[difference.outcome] += 1

    @property
    def differences(self) -> int:
        return self.outcomes.total() - self.outcomes[Outcome.RECENT]

    @property
    def remaining(self) -> int:
        """Differences that are not repaired."""
        return self.differences - self.outcomes[Outcome.REPAIRED]

    @property
    def exit_code(self) -> int:
        """0 clean, 1 differences left, 2 something could not be checked."""
        return 1 if self.remaining else 2 if self.unchecked else 0

    def as_dict(self) -> dict[str, Any]:
        names = ("accounts", "folders", "messages", "attachments", "blobs", "bytes", "newer")
        names += ("to_import", "withheld", "differences", "unchecked")  # type: ignore[assignment]
        found = {name: getattr(self, name) for name in names}
        outcomes = {str(outcome): self.outcomes[outcome] for outcome in Outcome}
        return {"kind": "summary", **found, "kinds": dict(self.kinds), "outcomes": outcomes}
