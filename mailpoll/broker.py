"""The queue: Dramatiq on Redis or Valkey, with mailpoll's middleware.

Redis is only a hint of work; the database knows what is to be done. So everything here may be
lost, doubled or late, and messages carry ids and nothing else.
"""

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.common import current_millis, dq_name
from dramatiq.middleware import Retries, ShutdownNotifications, TimeLimit
from periodiq import PeriodiqMiddleware

from .middleware.one_signal import OneSignal
from .middleware.rate_limit import RateLimit
from .middleware.task_stats import TaskStats
from .settings import Settings

#: New mail, imports, and everything else never wait behind each other.
POLL, BACKFILL = "poll", "backfill"
PROCESS, IMPORT, MAINTENANCE = "process", "import", "maintenance"
POLLER_QUEUES = (POLL, BACKFILL)
WORKER_QUEUES = (PROCESS, IMPORT, MAINTENANCE)

#: Milliseconds. A tick is late when the queue is; the database decides what is due, not the tick.
TICK_PATIENCE = 300
RETRIES = 3
#: In a million commands. Dead workers' messages come back sooner than by Dramatiq's default.
MAINTENANCE_CHANCE = 50_000

#: Milliseconds between two looks at an empty queue, at most: how late a message can be seen.
IDLE = 300
#: Seconds that a consumer waits for its threads when they have enough to do.
BUSY = 0.005
#: Seconds between two looks at delayed messages while there are more than are held in memory.
DELAYED = 0.1

Queued = tuple[dramatiq.Message[Any], int | None]


class Consumer(_RedisConsumer):  # type: ignore[misc]
    """A consumer that does not fall asleep over a full prefetch, nor ask an empty queue too often.

    Dramatiq's counts a full prefetch like an empty queue and sleeps longer each time, so that with
    short tasks the threads run dry beside a full queue. And after each message it asks again after
    5, 10, 20 ms and so on, which cost more than the poll of a mailbox.
    """

    def __init__(self, broker: RedisBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)
        delayed = queue_name == dq_name(queue_name)
        self._busy, self._first_miss = (DELAYED, 6) if delayed else (BUSY, 3)

    def __next__(self) -> Any:
        if not self.message_cache:
            if self.outstanding_message_count >= self.prefetch:
                time.sleep(self._busy)
                return None
            # The pause is 5 ms, doubled by each miss, and at most IDLE.
            self.misses: int = max(self.misses, self._first_miss)
        return super().__next__()


class Broker(RedisBroker):
    """``RedisBroker`` that can send many messages in one round trip."""

    @property
    def consumer_class(self) -> type[Consumer]:
        return Consumer

    #: Messages of the poller's queues that a process takes: one for each of its threads.
    polls_at_once = 1

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5_000) -> Any:
        if queue_name in POLLER_QUEUES:
            prefetch = max(prefetch, self.polls_at_once)
        return super().consume(queue_name, prefetch, min(timeout, IDLE))

    def enqueue_all(self, messages: Sequence[Queued]) -> None:
        """Send messages, each with a delay in milliseconds or ``None``."""
        if not messages:
            return
        dispatch = self.scripts["dispatch"]
        pipeline = self.client.pipeline(transaction=False)
        for original, delay in messages:
            message = original.copy(options={"redis_message_id": str(uuid4())})
            queue = message.queue_name
            if delay:
                queue = dq_name(queue)
                message = message.copy(queue_name=queue, options={"eta": current_millis() + delay})
            args = [
                "enqueue",
                current_millis(),
                queue,
                self.broker_id,
                self.heartbeat_timeout,
                self.dead_message_ttl,
                0,
                self._max_unpack_size(),
                message.options["redis_message_id"],
                message.encode(),
            ]
            dispatch(args=args, keys=[self.namespace], client=pipeline)
        pipeline.execute()


def redis_client(settings: Settings) -> "redis.Redis[bytes]":
    """A client whose every wait is bounded, in seconds."""
    return redis.Redis.from_url(
        settings.redis,
        socket_connect_timeout=5,
        socket_timeout=10,
        health_check_interval=30,
    )


def make_broker(settings: Settings) -> Broker:
    """The broker of this process. Connects at first use."""
    client = redis_client(settings)
    broker = Broker(
        client=client,
        namespace="mailpoll",
        maintenance_chance=MAINTENANCE_CHANCE,
        middleware=[
            TimeLimit(time_limit=(settings.poll_deadline + 60) * 1_000),
            ShutdownNotifications(),
            OneSignal(),
            RateLimit(client),
            Retries(max_retries=RETRIES, min_backoff=1_000, max_backoff=60_000),
            PeriodiqMiddleware(skip_delay=TICK_PATIENCE),
            TaskStats(client),
        ],
    )
    broker.polls_at_once = settings.poller_threads
    for queue in (*POLLER_QUEUES, *WORKER_QUEUES):
        broker.declare_queue(queue)
    return broker


def wait_for_redis(settings: Settings, seconds: float) -> None:
    """Return when Redis answers.

    Raises:
      redis.RedisError: it did not within ``seconds``.
    """
    client = redis_client(settings)
    end = time.monotonic() + seconds
    while True:
        try:
            client.ping()
            return
        except redis.RedisError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.1)
