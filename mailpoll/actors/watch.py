"""Every minute: note that the scheduler lives, and look for what operators should know of."""

import dramatiq
from periodiq import cron

from .. import alarms, clocks, stats
from ..broker import MAINTENANCE
from ..models import Mark, MarkName


@dramatiq.actor(
    queue_name=MAINTENANCE,
    priority=-10,
    periodic=cron("* * * * *"),
    max_retries=0,
    time_limit=55_000,
)
def watch() -> None:
    """Note the tick and how this worker's clock goes, then look for alarms and tell them."""
    clocks.tick()
    Mark.set(MarkName.CLOCK, int(stats.clock_offset() * 1_000))
    alarms.look(watch.broker)
