"""Check the three truths against each other: database, stores, and the servers' live lists.

``rows`` looks at the database itself, ``stored`` at all blobs, ``damage`` at one of them, and
``server`` at what servers list now; ``findings`` has the words. Everything is read page by page, so
memory stays flat. Repairs are conditional, can be done twice, and hold the account's lease, so that
pollers and workers may run.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping

from .. import accounts, database
from ..blobs import StoreUnavailable
from ..crypto import DataKeyError, DecryptionError
from ..imap import ImapError
from ..models import EmailAccount, EmailEvent, EventType, LeaseLost, Mark, MarkName
from . import rows, server, stored
from .findings import MEANING, Difference, Kind, Outcome, Repair, Tally

__all__ = [
    "MEANING",
    "Difference",
    "Kind",
    "Outcome",
    "Repair",
    "Tally",
    "check",
    "repair_one",
]

#: Seconds that a repair waits for a poll to give the account's lease back.
PATIENCE = 60.0


def check(
    account: EmailAccount | None,
    tally: Tally,
    *,
    repair: bool = False,
    offline: bool = False,
    contents: bool = False,
) -> Iterator[Difference]:
    """Every difference, one by one, repaired if that is asked for and can be done.

    Parameters:
      account: only this one; ``None`` checks all, and what belongs to none.
      tally: counts what was looked at and found while the differences are taken.
      offline: ask no mail server.
      contents: fetch all mail again and compare its bytes with what is stored.
    """
    found: Counter[tuple[int | None, Kind]] = Counter()
    for difference in _differences(account, tally, offline=offline, contents=contents):
        if difference.account and not _there(difference.account):
            continue  # it is being deleted, row by row
        if repair and difference.mend:
            done = repair_one(difference, PATIENCE)
            difference.outcome, difference.reason = done.outcome, done.reason
        tally.add(difference)
        if difference.outcome in (Outcome.FOUND, Outcome.LEFT, Outcome.LOST):
            found[difference.account.id if difference.account else None, difference.kind] += 1
        yield difference
    _announce(found)
    if account is None:
        _note(tally)


def _announce(found: Mapping[tuple[int | None, Kind], int]) -> None:
    """Tell readers of events of what was not mended, in one event for each account and kind."""
    with database.transaction():
        for (account_id, kind), count in found.items():
            if account_id is None or EmailAccount.by_id(account_id) is not None:
                data = {"kind": str(kind), "count": count}
                EmailEvent.add(EventType.FSCK_DIFFERENCE, account_id, data=data)


def _note(tally: Tally) -> None:
    """Remember how the check of everything ended, for metrics and alarms."""
    Mark.set(MarkName.FSCK, tally.remaining)
    if tally.exit_code == 0:
        Mark.set(MarkName.FSCK_OK)


def _differences(
    only: EmailAccount | None, tally: Tally, *, offline: bool, contents: bool
) -> Iterator[Difference]:
    store_answers = True
    for account in _accounts(only):
        tally.accounts += 1
        tally.now = f"{account.address}: rows"
        yield from rows.check(account)
        mailbox = None if offline else server.Mailbox(account)
        try:
            if store_answers:
                yield from stored.check(account, mailbox, tally)
        except StoreUnavailable as error:
            store_answers = False
            tally.unchecked.append(f"blobs, from {account.address} on: {error}")
        except DataKeyError as error:
            tally.unchecked.append(f"{account.address}: blobs: {error}")
        if mailbox:
            yield from _compare(mailbox, tally, contents=contents)
    if only is None:
        yield from rows.check_jobs()
        try:
            if store_answers:
                yield from stored.check_leftovers()
        except StoreUnavailable as error:
            tally.unchecked.append(f"blobs of accounts that are not there: {error}")


def _accounts(only: EmailAccount | None) -> Iterator[EmailAccount]:
    if only is not None:
        yield only
        return
    last = 0
    while True:
        with database.connected():
            found = (
                EmailAccount.visible()
                .where(EmailAccount.id > last)
                .order_by(EmailAccount.id)
                .first()
            )
        if found is None:
            return
        yield found
        last = found.id


def _there(account: EmailAccount) -> bool:
    with database.connected():
        return bool(EmailAccount.visible().where(EmailAccount.id == account.id).exists())


def _compare(mailbox: server.Mailbox, tally: Tally, *, contents: bool) -> Iterator[Difference]:
    address = mailbox.account.address
    tally.now = f"{address}: folders"
    try:
        if mailbox.account.archive:
            return  # it has no server, and nothing is left unchecked
        if refusal := mailbox.refusal():
            tally.unchecked.append(f"{address}: {refusal}")
        else:
            yield from server.compare(mailbox, tally, contents=contents)
    except (ImapError, DecryptionError) as error:
        tally.unchecked.append(f"{address}: {error}")
    finally:
        mailbox.close()


def repair_one(difference: Difference, patience: float) -> Repair:
    """Repair a difference that can be repaired, waiting so many seconds for a poll to end."""
    assert difference.mend is not None
    if difference.account is None:
        return difference.mend(None)
    held = _hold(difference.account, patience)
    if held is None:
        return Repair(Outcome.LEFT, "a poll is running; try again")
    try:
        done = difference.mend(held)
        with database.transaction(durable=False):
            held.keep(rows.HOLD)
    except (StoreUnavailable, DataKeyError) as error:
        return Repair(Outcome.LEFT, str(error))
    except LeaseLost:
        accounts.empty_if_deleted(held.id, held.uuid)
        return Repair(Outcome.LEFT, "the account was paused or deleted meanwhile")
    finally:
        held.release(queued_until=None)
    return done


def _hold(account: EmailAccount, patience: float) -> EmailAccount | None:
    """The account under a lease; waits for a poll that is running."""
    end = time.monotonic() + patience
    while True:
        held = EmailAccount.hold(account.id, rows.HOLD)
        if held is not None or time.monotonic() >= end:
            return held
        time.sleep(0.2)
