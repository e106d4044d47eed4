"""The queue: Dramatiq on Redis or Valkey, with mailpoll's middleware.

Redis is only a hint of work; the database knows what is to be done. So everything here may be
lost, doubled or late, and messages carry ids and nothing else.
"""

import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import dramatiq
import redis
import structlog
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import ConnectionClosed, DecodeError
from dramatiq.middleware import Retries, ShutdownNotifications, TimeLimit
from periodiq import PeriodiqMiddleware

from .bell import Bell
from .blobs import StoreUnavailable
from .database import AWAY
from .middleware.memory import GiveBack
from .middleware.one_signal import OneSignal
from .middleware.rate_limit import RateLimit
from .middleware.task_stats import TaskStats
from .settings import Settings

log = structlog.get_logger()

#: New mail, imports, and everything else never wait behind each other.
POLL, BACKFILL = "poll", "backfill"
PROCESS, IMPORT, MAINTENANCE = "process", "import", "maintenance"
WEBHOOKS = "webhooks"
POLLER_QUEUES = (POLL, BACKFILL)
WORKER_QUEUES = (PROCESS, IMPORT, MAINTENANCE)
NOTIFIER_QUEUES = (WEBHOOKS,)
QUEUES = (*POLLER_QUEUES, *WORKER_QUEUES, *NOTIFIER_QUEUES)

#: Milliseconds. A tick is late when the queue is; the database decides what is due, not the tick.
TICK_PATIENCE = 300
RETRIES = 3
#: In a million commands. Dead workers' messages come back sooner than by Dramatiq's default.
MAINTENANCE_CHANCE = 50_000

#: Milliseconds between two looks at an empty queue, at most: how late a message can be seen of
#: which the bell said nothing.
IDLE = 1_000
#: Seconds that a consumer waits for its threads when they have enough to do.
BUSY = 0.005
#: Seconds between two looks at delayed messages while there are more than are held in memory.
DELAYED = 0.1

#: Errors of what everything needs and that comes back by itself.
BACK_SOON = (*AWAY, StoreUnavailable)

Queued = tuple[dramatiq.Message[Any], int | None]


@contextmanager
def _recoverable() -> Iterator[None]:
    """Let every error be one of the connection, which Dramatiq recovers from.

    Of a time-out, a full or a read-only Redis, no memory or a clock that jumps it does not:
    acknowledgements are lost, and a consumer's thread may end for good while its process lives on
    and looks well.
    """
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        raise ConnectionClosed(error) from None


class Consumer(_RedisConsumer):  # type: ignore[misc]
    """A consumer that survives Redis, and neither oversleeps nor asks empty queues all the time.

    Dramatiq's counts a full prefetch like an empty queue and sleeps longer each time, so that with
    short tasks the threads run dry beside a full queue. And after each message it asks again after
    5, 10, 20 ms and so on, which cost more than the poll of a mailbox. This one asks when the bell
    rings, and once a second in case that it did not hear.
    """

    def __init__(self, broker: RedisBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        # Dramatiq's own pause after an empty answer is cut to a millisecond.
        super().__init__(broker, queue_name, prefetch, 1)
        delayed = queue_name == dq_name(queue_name)
        self._busy = DELAYED if delayed else BUSY
        self._pause = min(timeout, IDLE) / 1_000
        self._emptied = False
        if delayed:
            self._take_back()
        self._rung = broker.bell.hear(queue_name)

    def close(self) -> None:
        """Leave, and put back what was fetched and not yet handed out: Dramatiq forgets it."""
        self.broker.bell.leave()
        held = []
        with _recoverable():
            while self.message_cache:
                held.append(self._take())
            self.requeue(filter(None, held))
        super().close()

    def _take_back(self) -> None:
        """Put back the delayed messages that a consumer before this one had in memory.

        After an error Dramatiq forgets them, and nobody else sees them while this process lives.
        """
        key = f"{self.broker.namespace}:__acks__.{self.broker.broker_id}.{self.queue_name}"
        with _recoverable():
            held = [raw_id.decode() for raw_id in self.broker.client.smembers(key)]
            if held:
                self.broker.do_requeue(self.queue_name, *held)

    def ack(self, message: Any) -> None:
        with _recoverable():
            super().ack(message)

    def nack(self, message: Any) -> None:
        """Put a message that has failed for good among the dead, where people see and retry it.

        Not what the next tick of the scheduler or the sweeper makes up for, namely housekeeping and
        whatever failed because the database or the store was away: nobody has to look at it any
        more when that is back. That it failed is logged and counted.
        """
        actor = self.broker.actors.get(message.actor_name)
        periodic = actor is not None and "periodic" in actor.options
        with _recoverable():
            if periodic or isinstance(getattr(message, "_exception", None), BACK_SOON):
                super().ack(message)
            else:
                super().nack(message)

    def requeue(self, messages: Iterable[Any]) -> None:
        with _recoverable():
            super().requeue(messages)

    def __next__(self) -> Any:
        with _recoverable():
            return self._take()

    def _take(self) -> Any:
        """The next message, if there is one soon."""
        wanted = 0
        if not self.message_cache:
            wanted = self.prefetch - self.outstanding_message_count
            if wanted <= 0:
                time.sleep(self._busy)
                return None
            if self._emptied:
                self._rung.wait(self._pause)
            self._rung.clear()
        try:
            message = super().__next__()
        except DecodeError:
            log.error("what is no message was passed over", queue=self.queue_name)
            return None
        if wanted:  # the queue was asked
            self._emptied = message is None or len(self.message_cache) + 1 < wanted
        return self._checked(message) if message else None

    def _checked(self, message: Any) -> Any:
        """The message, unless one of the fields that threads would stumble over is wrong.

        Whoever can write to Redis could stop a worker with it, thread by thread.
        """
        options = message.options
        name = options.get("redis_message_id")
        numbers = all(isinstance(options.get(one, 0), int) for one in ("eta", "retries"))
        if isinstance(name, str) and numbers and message.queue_name == self.queue_name:
            return message
        log.error("a foreign message was dropped", queue=self.queue_name)
        self.queued_message_ids.discard(message.message_id)
        if isinstance(name, str):
            self.broker.do_ack(self.queue_name, name)
        return None


def _place(error: BaseException) -> str:
    """What failed and where, in place of a traceback: an error's words may quote mail."""
    *_, frame = traceback.extract_tb(error.__traceback__) or [None]
    where = f" in {frame.name}, {Path(frame.filename).name}:{frame.lineno}" if frame else ""
    return type(error).__name__ + where


class Broker(RedisBroker):
    """``RedisBroker`` that can send many messages in one round trip."""

    #: Messages of the poller's queues that a process takes: one for each of its threads.
    polls_at_once = 1

    def __init__(self, *, client: "redis.Redis[bytes]", namespace: str, **options: Any) -> None:
        super().__init__(client=client, namespace=namespace, **options)
        self.bell = Bell(client, namespace)
        self.limits = next(one for one in self.middleware if isinstance(one, RateLimit))

    @property
    def consumer_class(self) -> type[Consumer]:
        return Consumer

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5_000) -> Any:
        if queue_name in POLLER_QUEUES:
            prefetch = max(prefetch, self.polls_at_once)
        return super().consume(queue_name, prefetch, timeout)

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        error = sys.exception()
        if error is not None and "traceback" in message.options:
            message.options["traceback"] = _place(error)  # Dramatiq puts back what failed
        sent = super().enqueue(message, delay=delay)
        if delay is None:
            with suppress(redis.RedisError):  # it is in the queue
                self.bell.ring(self.client, message.queue_name)
        return sent

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
        for queue in {message.queue_name for message, delay in messages if not delay}:
            self.bell.ring(pipeline, queue)
        answers = pipeline.execute(raise_on_error=False)
        for answer in answers[: len(messages)]:  # without the bell the messages come all the same
            if isinstance(answer, Exception):
                raise answer


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
            GiveBack(),
            Retries(max_retries=RETRIES, min_backoff=1_000, max_backoff=60_000),
            PeriodiqMiddleware(skip_delay=TICK_PATIENCE),
            TaskStats(client),
        ],
    )
    broker.polls_at_once = settings.poller_threads
    for queue in QUEUES:
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
