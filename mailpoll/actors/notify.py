"""Tell webhooks of events: an actor for each endpoint that has a turn."""

import math

import dramatiq
import redis
import structlog

from .. import database, turns, webhooks
from ..broker import WEBHOOKS, Queued
from ..models import EmailEvent

log = structlog.get_logger()

#: Seconds that an endpoint has a thread before others get it.
TURN = 5.0


@dramatiq.actor(queue_name=WEBHOOKS, max_retries=0)
def deliver_events(endpoint_id: int) -> None:
    """Deliver what there is for an endpoint, and come again for the rest.

    Whoever finds the endpoint taken leaves: those that have it look for news once more before they
    give it back, and the sweep finds what slipped through.
    """
    pause = webhooks.deliver(endpoint_id, TURN)
    if pause is not None:
        # Up to the next millisecond, and one for the queue's clock, which has whole ones: who comes
        # too early finds that it is not time yet, and does not come again.
        delay = math.ceil(pause * 1_000) + 1 if pause else None
        deliver_events.send_with_options(args=(endpoint_id,), delay=delay)


def begin_deliveries() -> None:
    """Give every endpoint a turn that has not got all events; behind each commit of events."""
    try:
        told: list[Queued] = [(deliver_events.message(one), None) for one in webhooks.behind()]
        with turns.waiting():
            deliver_events.broker.enqueue_all(told)
    except (redis.RedisError, *database.AWAY) as error:
        log.warning("webhooks not begun; the sweep will", error=type(error).__name__)


EmailEvent.readers.append(begin_deliveries)
