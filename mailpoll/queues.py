"""Looking into the queues: what waits, runs or is dead, and taking messages out again.

Reads Dramatiq's Redis layout: a list of message ids and a hash of their data per queue, the same
for delayed messages (``.DQ``), and a sorted set with a hash for dead ones (``.XQ``).
"""

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

import redis
import structlog
from dramatiq import Actor, Message
from dramatiq.common import dq_name, q_name, xq_name

from .broker import IMPORT, POLLER_QUEUES, PROCESS, WORKER_QUEUES, Broker

log = structlog.get_logger()

QUEUES = (*POLLER_QUEUES, *WORKER_QUEUES)

#: Entries looked at together.
PAGE = 500

#: Puts a dead message back in one step, so that a crash can neither lose nor double it.
#: KEYS: dead set, dead hash, queue hash, queue list. ARGV: old id, new id, data.
REVIVE = """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
redis.call('RPUSH', KEYS[4], ARGV[2])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 1
"""


@dataclass(frozen=True, slots=True)
class QueueSizes:
    """Messages of a queue by what happens to them."""

    queue: str
    waiting: int
    delayed: int
    running: int
    dead: int


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """A message that failed for good. ``failed_at`` is in milliseconds of the Unix epoch."""

    id: str
    queue: str
    actor: str
    args: list[Any]
    failed_at: int
    retries: int
    reason: str


def offer(actor: "Actor[..., Any]", row_id: int) -> bool:
    """Send work that the database already knows of; false when the queue does not answer.

    Nothing is lost then: the next tick or sweep finds the row and sends it again.
    """
    try:
        actor.send(row_id)
    except redis.RedisError as error:
        kind = type(error).__name__
        log.warning("not enqueued; a sweep will", actor=actor.actor_name, error=kind)
        return False
    return True


def sizes(broker: Broker) -> list[QueueSizes]:
    """How many messages each queue has; running ones include those prefetched by a worker."""
    pipeline = broker.client.pipeline(transaction=False)
    for queue in QUEUES:
        for key in (queue, dq_name(queue)):
            pipeline.llen(f"{broker.namespace}:{key}")
            pipeline.hlen(f"{broker.namespace}:{key}.msgs")
        pipeline.zcard(f"{broker.namespace}:{xq_name(queue)}")
    answers = iter(pipeline.execute())
    found = []
    for queue in QUEUES:
        waiting, known, _, delayed, dead = (int(next(answers)) for _ in range(5))
        found.append(QueueSizes(queue, waiting, delayed, max(0, known - waiting), dead))
    return found


def dead(broker: Broker, limit: int) -> list[DeadMessage]:
    """The latest dead messages of all queues, newest first."""
    found = []
    for queue in QUEUES:
        key = f"{broker.namespace}:{xq_name(queue)}"
        for raw_id, score in broker.client.zrevrange(key, 0, limit - 1, withscores=True):
            data = broker.client.hget(f"{key}.msgs", raw_id)
            if data:
                found.append(_dead_message(raw_id.decode(), Message.decode(data), int(score)))
    return sorted(found, key=lambda message: -message.failed_at)[:limit]


def _dead_message(redis_id: str, message: Message[Any], failed_at: int) -> DeadMessage:
    trace = str(message.options.get("traceback", "")).strip().splitlines()
    return DeadMessage(
        id=redis_id,
        queue=q_name(message.queue_name),
        actor=message.actor_name,
        args=list(message.args),
        failed_at=failed_at,
        retries=int(message.options.get("retries", 0)),
        reason=trace[-1] if trace else "",
    )


def revive(broker: Broker, redis_id: str) -> bool:
    """Enqueue a dead message once more, with fresh retries; false when there is no such message."""
    for queue in QUEUES:
        dead_key = f"{broker.namespace}:{xq_name(queue)}"
        data = broker.client.hget(f"{dead_key}.msgs", redis_id)
        if data is None:
            continue
        old = Message.decode(data)
        options = {"redis_message_id": f"{redis_id}-again"}
        message = old.copy(queue_name=queue, options=options)
        for stale in ("retries", "traceback", "eta", "requeue_timestamp"):
            message.options.pop(stale, None)
        keys = [
            dead_key,
            f"{dead_key}.msgs",
            f"{broker.namespace}:{queue}.msgs",
            f"{broker.namespace}:{queue}",
        ]
        args = [redis_id, message.options["redis_message_id"], message.encode()]
        return bool(broker.client.eval(REVIVE, len(keys), *keys, *args))
    return False


def forget(broker: Broker, account_id: int, messages_among: Callable[[Set[int]], Set[int]]) -> int:
    """Remove every queue entry about an account or its messages; tells how many.

    Parameters:
      messages_among: which of some message ids are the account's.
    """
    removed = 0
    for queue in (*POLLER_QUEUES, PROCESS, IMPORT):
        chosen = (lambda ids: ids & {account_id}) if queue in POLLER_QUEUES else messages_among
        for key in (queue, dq_name(queue), xq_name(queue)):
            removed += _remove(broker, f"{broker.namespace}:{key}", queue, chosen)
    return removed


def _remove(broker: Broker, key: str, queue: str, chosen: Callable[[Set[int]], Set[int]]) -> int:
    removed = 0
    for page in _entries(broker, key):
        doomed = chosen(set().union(*page.values()))
        pipeline = broker.client.pipeline()
        for raw_id, rows in page.items():
            if rows & doomed:
                removed += 1
                if key.endswith(xq_name(queue)):
                    pipeline.zrem(key, raw_id)
                else:
                    pipeline.lrem(key, 0, raw_id)
                pipeline.hdel(f"{key}.msgs", raw_id)
        pipeline.execute()
    return removed


def _entries(broker: Broker, key: str) -> Iterator[dict[bytes, set[int]]]:
    """Pages of entries with the ids of the rows that each is about, which are of one account."""
    entries = broker.client.hscan_iter(f"{key}.msgs", count=PAGE)
    while page := list(islice(entries, PAGE)):
        decoded = ((raw_id, Message.decode(data)) for raw_id, data in page)
        yield {raw_id: _rows(message.args[0]) for raw_id, message in decoded if message.args}


def _rows(argument: int | list[int] | dict[str, int]) -> set[int]:
    """None where it is many accounts' polls: that of an account that is gone does nothing."""
    if isinstance(argument, dict):
        return set()
    return set(argument) if isinstance(argument, list) else {argument}
