"""Rate limits as an actor option: a message that must wait goes back to the queue with a delay.

Waiting costs no worker thread and no retry. Slots are short leases which their process renews for
as long as it lives, so those of a killed one free themselves soon: had they an end as late as that
of the longest poll, three killed pollers would stop an account for eleven minutes. When Redis does
not answer, nothing is limited: it is only a hint.
"""

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import redis
import structlog
from dramatiq import Broker, Message, Middleware, Worker
from dramatiq.middleware import SkipMessage

from .. import database

log = structlog.get_logger()

#: Seconds to wait while the database, which knows the limits, does not answer.
UNKNOWN = 2.0

#: Milliseconds of waiting that are spread, at most.
SPREAD = 60_000

#: KEYS: per limit its key. ARGV: member, then per limit kind, size and seconds.
#: Answers 0 when all limits have room (and takes them), else the milliseconds to wait.
ACQUIRE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i, key in ipairs(KEYS) do
  local kind, size, span = ARGV[3*i-1], tonumber(ARGV[3*i]), tonumber(ARGV[3*i+1]) * 1000
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  if redis.call('ZCARD', key) >= size then
    local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    if kind == 'rate' then return math.max(1, tonumber(first[2]) - now) end
    return 1000
  end
end
for i, key in ipairs(KEYS) do
  local span = tonumber(ARGV[3*i+1]) * 1000
  redis.call('ZADD', key, now + span, ARGV[1])
  redis.call('PEXPIRE', key, span)
end
return 0
"""

#: Seconds that a slot holds, and after which it is renewed.
HOLD, RENEWED = 30, 10

#: KEYS: the key of each slot. ARGV: member, milliseconds. One that is gone is not taken again.
RENEW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, 'XX', now + ARGV[2], ARGV[1])
  redis.call('PEXPIRE', key, ARGV[2])
end
"""

#: KEYS: the key of each slot. ARGV: member.
RELEASE = "for _, key in ipairs(KEYS) do redis.call('ZREM', key, ARGV[1]) end"


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``size`` at once (``kind`` "slots") or per ``seconds`` (``kind`` "rate").

    For slots, ``seconds`` is when one frees itself that is neither renewed nor given back.
    """

    key: str
    kind: str
    size: int
    seconds: int


class Limits(Protocol):
    """What the ``limits`` option of an actor holds."""

    def terms(self, *args: Any) -> tuple[float, Sequence[Limit]]:
        """For a message with these arguments: seconds that it must wait, and the limits if none."""

    def postponed(self, seconds: float, *args: Any) -> None:
        """Called when a message with these arguments was put off."""


class RateLimit(Middleware):
    """Checks the ``limits`` option of an actor before each message.

    Parameters:
      client: the Redis client that holds the limits of all processes.
    """

    def __init__(self, client: "redis.Redis[bytes]") -> None:
        self._client = client
        self._acquire = client.register_script(ACQUIRE)
        self._release = client.register_script(RELEASE)
        self._renew = client.register_script(RENEW)
        self._held: dict[str, list[str]] = {}
        self._ended = threading.Event()

    @property
    def actor_options(self) -> set[str]:
        return {"limits"}

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        self._ended = threading.Event()
        threading.Thread(target=self._keep, args=(self._ended,), daemon=True).start()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        self._ended.set()

    def _keep(self, ended: threading.Event) -> None:
        """Renew the slots of this process until it ends."""
        while not ended.wait(RENEWED):
            try:
                for member, keys in list(self._held.items()):
                    if keys:
                        self._renew(keys=keys, args=[member, HOLD * 1_000])
            except redis.RedisError as error:
                log.warning("rate limit slots not renewed", error=type(error).__name__)

    def before_process_message(self, broker: Broker, message: Message[Any]) -> None:
        rules: Limits | None = broker.get_actor(message.actor_name).options.get("limits")
        if rules is None:
            return
        try:
            seconds, limits = _terms(rules, message)
        except Exception as error:
            # Dramatiq would log a critical failure of the process.
            log.warning("no limit was looked up", error=type(error).__name__)
            if not (isinstance(error, database.AWAY) and database.is_away(error)):
                # The message is foreign: its task fails of the same, and what becomes of it is
                # decided there.
                return
            # The database may be back when the task begins, which must not go beyond a limit then.
            seconds, limits = UNKNOWN, ()
        wait = int(seconds * 1_000)
        if not wait and limits:
            wait = self.hold(limits, message.message_id)
        if not wait:
            return
        # Some spread, so that those that wait do not come back all at once.
        delay = wait + int(min(wait, SPREAD) * random.uniform(0.0, 0.5))  # noqa: S311
        try:
            broker.enqueue(message.copy(), delay=delay)
            rules.postponed(delay / 1_000, *message.args)
        except Exception as error:
            # Dramatiq would log it and run the message all the same, over the limit. If it was not
            # enqueued, the next tick finds the account due.
            log.warning("message put off, with an error", error=type(error).__name__)
        raise SkipMessage("waits for a rate limit")

    def after_process_message(
        self,
        broker: Broker,  # noqa: ARG002
        message: Message[Any],
        *,
        result: Any = None,  # noqa: ARG002
        exception: BaseException | None = None,  # noqa: ARG002
    ) -> None:
        self.give_back(message.message_id)

    after_skip_message = after_process_message

    def hold(self, limits: Sequence[Limit], member: str) -> int:
        """The same as ``take``, and a worker's process renews the slots until ``give_back``."""
        wait = self.take(limits, member)
        slots = [_key(limit) for limit in limits if limit.kind == "slots"]
        if not wait and slots:
            self._held[member] = slots
        return wait

    def give_back(self, member: str) -> None:
        """Give back the slots that a member holds, if any."""
        keys = self._held.pop(member, None)
        if not keys:
            return
        try:
            self._release(keys=keys, args=[member])
        except redis.RedisError as error:
            log.warning("rate limit slot not given back; it frees itself", error=str(error))

    def take(self, limits: Sequence[Limit], member: str) -> int:
        """Take what all limits have room for; milliseconds to wait, 0 when taken.

        Without Redis everything has room.
        """
        keys = [_key(limit) for limit in limits]
        args: list[str | int] = [member]
        for limit in limits:
            args += [limit.kind, limit.size, limit.seconds]
        try:
            return int(self._acquire(keys=keys, args=args))
        except redis.RedisError as error:
            log.warning("rate limits are off: Redis does not answer", error=str(error))
            return 0


def _terms(rules: Limits, message: Message[Any]) -> tuple[float, Sequence[Limit]]:
    """Asked twice where the database fails: the connection may be one that was lost long ago."""
    try:
        return rules.terms(*message.args)
    except database.AWAY:
        return rules.terms(*message.args)


def _key(limit: Limit) -> str:
    return f"mailpoll:limit:{limit.kind}:{limit.key}"
