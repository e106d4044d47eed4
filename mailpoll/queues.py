"""Looking into the queues: what waits, runs or is dead, and taking messages out again.

Reads Dramatiq's Redis layout: a list of message ids and a hash of their data per queue, the same
for delayed messages (``.DQ``), and a sorted set with a hash for dead ones (``.XQ``).
"""

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import redis
import structlog
from dramatiq import Actor, Message
from dramatiq.common import dq_name, q_name, xq_name
from dramatiq.errors import DecodeError

from .broker import IMPORT, POLLER_QUEUES, PROCESS, QUEUES, Broker, Queued

log = structlog.get_logger()

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

#: Writes an entry anew unless a worker has taken it away meanwhile. KEYS: hash. ARGV: id, data.
REPLACE = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
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


@dataclass(frozen=True, slots=True)
class RedisState:
    """How Redis stands.

    Parameters:
      memory: the share in use of what it may have, or of its machine's.
      keeps: it throws no keys away when that is full.
    """

    memory: float
    keeps: bool


def redis_state(broker: Broker) -> RedisState:
    """Raises redis.RedisError."""
    found = broker.client.info("memory")
    most = found.get("maxmemory") or found.get("total_system_memory")
    return RedisState(
        memory=found["used_memory"] / most if most else 0.0,
        keeps=found.get("maxmemory_policy") == "noeviction",
    )


def new_server(broker: Broker) -> str | None:
    """Redis' name for its run when it is another than was remembered; ``None``: it is the same.

    It was started again, or emptied, or another has taken its place: what was in the queues may be
    lost, whatever the database believes.

    Raises:
      redis.RedisError: it does not answer.
    """
    run = str(broker.client.info("server")["run_id"])
    return None if broker.client.get(_server_key(broker)) == run.encode() else run


def remember_server(broker: Broker, run: str) -> None:
    """Note that what the queues may have lost was sent again."""
    broker.client.set(_server_key(broker), run)


def _server_key(broker: Broker) -> str:
    return f"{broker.namespace}:server"


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


def offer_all(actor: "Actor[..., Any]", row_ids: Sequence[int]) -> bool:
    """The same as ``offer`` for many rows, in one round trip."""
    messages: list[Queued] = [(actor.message(row_id), None) for row_id in row_ids]
    try:
        actor.broker.enqueue_all(messages)
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
            message = _decoded(broker.client.hget(f"{key}.msgs", raw_id))
            if message:
                found.append(_dead_message(raw_id.decode("ascii", "replace"), message, int(score)))
    return sorted(found, key=lambda message: -message.failed_at)[:limit]


def _decoded(data: bytes | None) -> Message[Any] | None:
    """A message of the queue; ``None`` for what is none: others may write to Redis too."""
    try:
        message = Message.decode(data or b"")
        retries = message.options.get("retries", 0)
    except (DecodeError, AttributeError):
        return None
    texts = (message.actor_name, message.queue_name)
    sound = all(isinstance(text, str) for text in texts) and isinstance(retries, int)
    return message if sound else None


def _dead_message(redis_id: str, message: Message[Any], failed_at: int) -> DeadMessage:
    trace = str(message.options.get("traceback", "")).strip().splitlines()
    return DeadMessage(
        id=redis_id,
        queue=q_name(message.queue_name),
        actor=message.actor_name,
        args=list(message.args),
        failed_at=failed_at,
        retries=message.options.get("retries", 0),
        reason=trace[-1] if trace else "",
    )


def revive(broker: Broker, redis_id: str) -> bool:
    """Enqueue a dead message once more, with fresh retries; false when there is no such message."""
    for queue in QUEUES:
        dead_key = f"{broker.namespace}:{xq_name(queue)}"
        old = _decoded(broker.client.hget(f"{dead_key}.msgs", redis_id))
        if old is None:
            continue
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


def entries(
    broker: Broker, account_id: int, messages_among: Callable[[Set[int]], Set[int]]
) -> Iterator[list[str]]:
    """Pages of the names of queue entries about an account or its messages, dead ones too.

    They may be removed while the pages are read.

    Parameters:
      messages_among: which of some message ids are the account's, or nobody's any more.
    """
    for queue in (*POLLER_QUEUES, PROCESS, IMPORT):
        chosen = (lambda ids: ids & {account_id}) if queue in POLLER_QUEUES else messages_among
        for key in (queue, dq_name(queue), xq_name(queue)):
            yield from filter(None, _named(broker, key, chosen))


def _named(broker: Broker, key: str, chosen: Callable[[Set[int]], Set[int]]) -> Iterator[list[str]]:
    found = broker.client.hscan_iter(f"{broker.namespace}:{key}.msgs", count=PAGE)
    while page := list(islice(found, PAGE)):
        rows = {raw_id.decode("ascii", "replace"): _rows(_decoded(data)) for raw_id, data in page}
        doomed = chosen(set().union(*rows.values()))
        yield [f"{key} {raw_id}" for raw_id, ids in rows.items() if ids & doomed]


def remove(broker: Broker, account_id: int, names: Sequence[str]) -> None:
    """Remove entries of ``entries``; of one that is about many accounts, only what names this."""
    for key, named in groupby(names, key=lambda name: name.partition(" ")[0]):
        raw_ids = [name.partition(" ")[2] for name in named]
        place = f"{broker.namespace}:{key}"
        found = broker.client.hmget(f"{place}.msgs", raw_ids)
        pipeline = broker.client.pipeline()
        for raw_id, data in zip(raw_ids, found, strict=True):
            rest = _without(_decoded(data), account_id)
            if rest:
                pipeline.eval(REPLACE, 1, f"{place}.msgs", raw_id, rest)
                continue
            if place.endswith(".XQ"):
                pipeline.zrem(place, raw_id)
            else:
                pipeline.lrem(place, 0, raw_id)
            pipeline.hdel(f"{place}.msgs", raw_id)
        pipeline.execute()


def _without(message: Message[Any] | None, account_id: int) -> bytes | None:
    """The polls of other accounts in an entry for many; ``None`` when there are none."""
    argument = message.args[0] if message and message.args else None
    if message is None or not isinstance(argument, dict):
        return None
    others = {one: due for one, due in argument.items() if one != str(account_id)}
    return message.copy(args=(others,)).encode() if others else None


def _rows(message: Message[Any] | None) -> set[int]:
    """The ids of the rows that an entry is about; none of one that mailpoll has not sent."""
    argument = message.args[0] if message and message.args else None
    rows: list[Any]
    if isinstance(argument, dict):
        rows = [int(name) for name in argument if str(name).isdecimal()]
    else:
        rows = argument if isinstance(argument, list) else [argument]
    return {row for row in rows if isinstance(row, int) and 0 < row < 2**63}


def keys_of(broker: Broker, account_id: int, uuid: str) -> list[str]:
    """Keys other than the queues' own that name an account."""
    ending = f":account:{account_id}"
    found = (key.decode() for key in broker.client.scan_iter(f"{broker.namespace}:*", count=PAGE))
    return [key for key in found if uuid in key or key.endswith(ending)]
