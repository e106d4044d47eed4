"""How often each actor ran, failed, and how long it took."""

import threading
import time
from typing import Any

import redis
from dramatiq import Broker, Message, Middleware, Worker

from .. import counters

#: Seconds between two times that a process adds its counters to those of all.
FLUSH = 1.0
COUNTED = ("runs", "failures", "skipped", "microseconds")


class TaskStats(Middleware):
    """Counts tasks, and adds all counters of its process to Redis once a second.

    Parameters:
      client: the Redis client that holds the counters of all processes.
    """

    def __init__(self, client: "redis.Redis[bytes]") -> None:
        self._client = client
        self._started: dict[str, float] = {}
        self._stopped = threading.Event()

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        threading.Thread(target=self._run, name="counters", daemon=True).start()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        self._stopped.set()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        counters.flush(self._client)

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
        counters.add("task_runs", 1, message.actor_name)
        counters.add("task_microseconds", spent, message.actor_name)
        if exception is not None:
            counters.add("task_failures", 1, message.actor_name)

    def after_skip_message(self, broker: Broker, message: Message[Any]) -> None:  # noqa: ARG002
        self._started.pop(message.message_id, None)
        counters.add("task_skipped", 1, message.actor_name)

    def _run(self) -> None:
        while not self._stopped.wait(FLUSH):
            counters.flush(self._client)


def by_actor(counted: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Per actor: runs, failures, skipped and microseconds, of what ``counters.read`` gave."""
    actors = {actor for name in COUNTED for actor in counted.get(f"task_{name}", ())}
    return {
        actor: {name: counted.get(f"task_{name}", {}).get(actor, 0) for name in COUNTED}
        for actor in actors
    }


def read(client: "redis.Redis[bytes]") -> dict[str, dict[str, int]]:
    """Per actor: runs, failures, skipped and microseconds."""
    return by_actor(counters.read(client))
