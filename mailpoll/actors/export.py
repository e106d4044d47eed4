"""Make exports, part by part, and remove those that are over."""

import time

import dramatiq
import structlog
from periodiq import cron

from ..archives import jobs
from ..broker import MAINTENANCE
from ..queues import offer

log = structlog.get_logger()

#: Seconds after which an export lets other housekeeping go first.
SLICE = 20


@dramatiq.actor(queue_name=MAINTENANCE, priority=15, time_limit=900_000)
def make_export(export_id: int) -> None:
    """Make parts of an export for a while, and enqueue the rest."""
    end = time.monotonic() + SLICE
    while jobs.step(export_id):
        if time.monotonic() >= end:
            offer(make_export, export_id)
            return


@dramatiq.actor(queue_name=MAINTENANCE, priority=20, max_retries=0, periodic=cron("*/10 * * * *"))
def expire_exports() -> None:
    """Remove exports that are older than they are kept."""
    removed = jobs.expire()
    if removed:
        log.info("old exports removed", exports=removed)
