"""Every minute: enqueue the polls that fall due before the next tick."""

import math
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

import dramatiq
import redis
import structlog
from periodiq import cron

from .. import database, queues
from ..broker import MAINTENANCE, Broker
from ..models import EmailAccount, EmailRawMessage
from .poll import begin_polls, poll_account

log = structlog.get_logger()

#: A tick looks this far ahead, so that no poll waits for the next one.
HORIZON = timedelta(seconds=65)
#: Accounts claimed in one statement.
CLAIM = 1_000


@dramatiq.actor(queue_name=MAINTENANCE, priority=-10, periodic=cron("* * * * *"))
def schedule_polls() -> None:
    """Claim due accounts and enqueue their polls, each at its own time.

    The claim decides what is enqueued, so two schedulers at once do no harm. Should the process
    die between claim and enqueue, the claim lapses and a later tick takes it up.
    """
    EmailAccount.give_up_watches()
    _notice_lost_queues()
    while accounts := EmailAccount.claim_due(HORIZON, CLAIM):
        try:
            enqueue_polls(accounts, database.now())
        except redis.RedisError:
            EmailAccount.mark_unqueued([account.id for account in accounts])
            raise
        if len(accounts) < CLAIM:
            return


def _notice_lost_queues() -> None:
    """Send everything again when Redis is not the one that it was sent to.

    Otherwise each poll would wait until it counts as lost, and each message for its sweep. What was
    not lost is sent twice, which does no harm.
    """
    broker = cast(Broker, schedule_polls.broker)
    run = queues.new_server(broker)
    if run is None:
        return
    log.info("redis is new or was emptied: everything is enqueued again")
    EmailAccount.forget_queued()
    EmailRawMessage.postpone_none()
    queues.remember_server(broker, run)


def enqueue_polls(accounts: Sequence[EmailAccount], moment: datetime) -> None:
    """Send the polls of claimed accounts, those of a later second together."""
    seconds: dict[int, dict[str, int]] = {}
    for account in accounts:
        seconds.setdefault(_delay(account, moment), {})[str(account.id)] = account.due
    begin_polls.fn(seconds.pop(0, {}))
    begin_polls.broker.enqueue_all(
        [(_together(polls), second * 1_000) for second, polls in seconds.items()]
    )


def _together(polls: dict[str, int]) -> "dramatiq.Message[Any]":
    """What begins these polls, account to due time. One alone is sent as it is."""
    if len(polls) > 1:
        return begin_polls.message(polls)
    ((account_id, due),) = polls.items()
    return poll_account.message(int(account_id), due)


def _delay(account: EmailAccount, moment: datetime) -> int:
    """Seconds from now until the poll; those long overdue are spread, not sent all at once."""
    ahead = (account.next_poll_at - moment).total_seconds()
    if ahead < -HORIZON.total_seconds():
        ahead = random.uniform(0, min(account.poll_interval, 30))  # noqa: S311
    return max(0, math.ceil(ahead))
