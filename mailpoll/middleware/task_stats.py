"""How often each actor ran, failed, and how long it took; kept in Redis, summed over processes."""

import threading
import time
from collections import Counter
from typing import Any

import redis
from dramatiq import Broker, Message, Middleware, Worker

KEY = "mailpoll:task-stats"
#: Seconds between two writes of a process.
FLUSH = 1.0


class TaskStats(Middleware):
    """Counts in memory and adds to Redis once a second.

    Parameters:
      client: the Redis client that holds the counters of all processes.
    """

    def __init__(self, client: "redis.Redis[bytes]") -> None:
        self._client = client
        self._started: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        threading.Thread(target=self._run, name="task-stats", daemon=True).start()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        self._stopped.set()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        self._flush()

    def before_process_message(self, broker: Broker, message: Message[Any]) -> None:  # noqa: ARG002
        self._started[message.message_id] = time.monotonic()

    def after_process_message(
        self,
        broker: Broker,  # noqa: ARG002
        message: Message[Any],
        *,
        result: Any = None,  # noqa: ARG002
        exception: BaseException | None = None,
    ) -> None:
        started = self._started.pop(message.message_id, None)
        spent = 0 if started is None else int((time.monotonic() - started) * 1_000_000)
        with self._lock:
            self._counts[f"{message.actor_name}:runs"] += 1
            self._counts[f"{message.actor_name}:microseconds"] += spent
            if exception is not None:
                self._counts[f"{message.actor_name}:failures"] += 1

    def after_skip_message(self, broker: Broker, message: Message[Any]) -> None:  # noqa: ARG002
        self._started.pop(message.message_id, None)
        with self._lock:
            self._counts[f"{message.actor_name}:skipped"] += 1

    def _run(self) -> None:
        while not self._stopped.wait(FLUSH):
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            pipeline = self._client.pipeline(transaction=False)
            for name, amount in counts.items():
                pipeline.hincrby(KEY, name, amount)
            pipeline.execute()
        except redis.RedisError:
            with self._lock:
                self._counts.update(counts)


def read(client: "redis.Redis[bytes]") -> dict[str, dict[str, int]]:
    """Per actor: runs, failures, skipped and microseconds."""
    stats: dict[str, dict[str, int]] = {}
    for name, amount in client.hgetall(KEY).items():
        actor, _, what = name.decode().rpartition(":")
        zero = {"runs": 0, "failures": 0, "skipped": 0, "microseconds": 0}
        stats.setdefault(actor, zero)[what] = int(amount)
    return stats
