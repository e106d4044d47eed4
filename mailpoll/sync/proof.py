"""The proof of completeness: what became of every message that the server counts in a folder.

A proof is a dict of numbers that add up: ``server`` = ``stored`` + ``waiting`` + ``unreadable`` +
``too_large`` + ``left_out`` + ``withheld`` + ``to_import`` + ``missing``. ``gone`` and ``expunged``
stand beside it: listed once and removed before, or after, they were stored.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ..models import EmailFolder
from .window import known_uids, verdicts_of

#: UIDs compared at once; four times as many where they are sparse.
WIDTH = 50_000
#: UIDs listed at once at most where more messages than this may be among them: a gap may end in a
#: part of the folder that is too dense for one answer.
LISTING = 100_000
#: The server's whole list is compared about once a day; about once an hour while it withholds
#: messages, and soon when the numbers do not add up. A little less than these times: polls are so
#: far apart to the second, and one that began a moment sooner than the last would leave it out.
WHOLE = timedelta(hours=23)
WITHHELD = timedelta(minutes=55)
SOON = timedelta(minutes=9)

#: The UIDs of the open folder from one number to another, as the server lists them.
Lister = Callable[[int, int], list[int]]


@dataclass(slots=True)
class Difference:
    """The server's list against what is written down, within a folder's window.

    ``listed`` counts all of the server's list, below the window too.
    """

    listed: int = 0
    missing: list[int] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)


def bounded(width: int, messages: int | None) -> int:
    """So many UIDs, or fewer: their listing is short also when all of ``messages`` are there."""
    few = messages is not None and messages <= LISTING
    return width if few else min(width, LISTING)


def compare(folder: EmailFolder, top: int, messages: int, lister: Lister) -> Difference:
    """List a folder in pieces and compare each with the database; changes nothing.

    Parameters:
      top: the highest UID to look at.
      messages: how many the server counts.
    """
    found = Difference()
    first, width = 1, WIDTH
    while first <= top:
        last = min(top, first + width - 1)
        listed = lister(first, last)
        found.listed += len(listed)
        if last >= folder.low:
            _compare_piece(folder, max(first, folder.low), last, listed, found)
        width = width * 4 if len(listed) < WIDTH // 4 else WIDTH
        width = bounded(width, messages - found.listed)
        first = last + 1
    return found


def _compare_piece(
    folder: EmailFolder, first: int, last: int, listed: list[int], found: Difference
) -> None:
    there = {uid for uid in listed if uid >= first}
    present, gone, left_out = known_uids(folder, first, last)
    found.missing += sorted(there - present - gone - left_out)
    found.absent += sorted(present - there)
    found.returned += sorted(gone & there)
    found.left_out += sorted(left_out & there)


def account_for(folder: EmailFolder, server: int, withheld: int, missing: int) -> dict[str, int]:
    """The proof of a folder from its counters; see this module's description.

    Parameters:
      server: messages that the server counts (EXISTS).
      withheld: those of them that it does not list.
      missing: those that it lists and that have no verdict.
    """
    verdicts = verdicts_of(folder)
    proof = {
        "server": server,
        "stored": folder.messages - folder.expunged,
        "waiting": verdicts["waiting"],
        "unreadable": verdicts["unreadable"],
        "too_large": verdicts["too_large"],
        "left_out": verdicts["left_out"],
        "withheld": withheld,
        "to_import": 0,
        "missing": missing,
        "gone": verdicts["gone"],
        "expunged": folder.expunged,
    }
    if not folder.imported:
        proof["to_import"] = max(0, unexplained(proof))
    return proof


def unexplained(proof: dict[str, int]) -> int:
    """By how many the server's count exceeds the sum of the parts; negative when it is lower."""
    parts = ("stored", "waiting", "unreadable", "too_large", "left_out", "withheld")
    return proof["server"] - sum(proof[part] for part in (*parts, "to_import", "missing"))


def complete(proof: dict[str, Any] | None) -> bool:
    """Whether every message that the server counts has a verdict."""
    return bool(
        proof and not proof["missing"] and not proof["to_import"] and not unexplained(proof)
    )


def short(folder: EmailFolder) -> bool:
    """Whether the server counts fewer messages than are written down: some have left."""
    known = folder.high is not None and folder.imported and folder.proof
    return bool(known and unexplained(folder.proof) < 0)


def due(folder: EmailFolder, moment: datetime) -> bool:
    """Whether the server's whole list is to be compared again."""
    if folder.high is None or not folder.imported or not folder.proof:
        return False
    if folder.reconciled_at is None:
        return True
    if unexplained(folder.proof) > 0:
        return True  # the server counts more than is known: late mail, which is looked for at once
    pause = WHOLE if complete(folder.proof) else SOON
    if folder.proof["withheld"]:
        pause = min(pause, WITHHELD)
    return bool(moment - folder.reconciled_at >= pause)
