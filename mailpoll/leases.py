"""Leases are renewed while their holders wait for a store, which nothing can hurry.

Large messages on a slow line take longer than a lease holds. If it lapsed, the next poll would take
the account and fetch the same mail, only to be overtaken in its turn.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import structlog

from . import database
from .models import EmailAccount

log = structlog.get_logger()

#: Seconds between two looks at which leases are to be renewed.
LOOK = 5.0


@dataclass(eq=False, slots=True)
class _Kept:
    account: EmailAccount
    seconds: int
    renewed: float


#: Those of this process; a list of them is taken in one step.
_kept: set[_Kept] = set()


@contextmanager
def kept(account: EmailAccount, seconds: int) -> Iterator[None]:
    """Renew a lease that the caller has, for as long as the block takes.

    Whether it was lost nevertheless is seen where it matters, by ``EmailAccount.fence``.

    Parameters:
      seconds: that it holds from each renewal on.
    """
    _keeper()
    mine = _Kept(account, seconds, time.monotonic())
    _kept.add(mine)
    try:
        yield
    finally:
        _kept.discard(mine)


@cache
def _keeper() -> threading.Thread:
    """The process's thread that renews leases."""
    keeper = threading.Thread(target=_keep, name="leases", daemon=True)
    keeper.start()
    return keeper


def _keep() -> None:
    while True:
        time.sleep(LOOK)
        for lease in list(_kept):
            if time.monotonic() - lease.renewed > lease.seconds / 4:
                _renew(lease)


def _renew(lease: _Kept) -> None:
    try:
        with database.transaction(durable=False):
            held = lease.account.renew(lease.seconds)
    except Exception as error:  # the database may be back at the next look
        log.warning("a lease could not be renewed", account=lease.account.uuid, error=str(error))
        return
    lease.renewed = time.monotonic()
    if not held:
        _kept.discard(lease)
