"""Tells consumers in other processes at once that a queue has got something (Redis pub/sub).

A bell that is not heard loses nothing: consumers look at their queues every second all the same.
"""

import threading
import time
from collections import defaultdict
from functools import partial
from typing import Any

import redis
import structlog
from redis.exceptions import NoPermissionError

log = structlog.get_logger()

#: Seconds after which the listener looks whether anybody still wants to hear, and tries again to
#: reach a Redis that is away, and one that does not let its user listen.
PAUSE, REFUSED = 1.0, 60.0


class Bell:
    """One for each broker; a thread listens while there are consumers, to their queues only.

    Parameters:
      client: also of a fork: nothing is connected before ``hear``.
    """

    def __init__(self, client: "redis.Redis[bytes]", namespace: str) -> None:
        self._client = client
        # Databases of one Redis share their channels.
        database = client.connection_pool.connection_kwargs.get("db", 0)
        self._prefix = f"{namespace}:news:{database}"
        self._rung: dict[str, threading.Event] = defaultdict(threading.Event)
        self._lock = threading.Lock()
        self._hearers = 0
        self._listens = False

    def channel(self, queue: str) -> str:
        return f"{self._prefix}:{queue}"

    def ring(self, client: Any, queue: str) -> None:
        """Say that a queue has got something; ``client`` may be a pipeline."""
        client.publish(self.channel(queue), "")

    def may_ring(self) -> bool:
        """Whether Redis lets this user publish. Raises redis.RedisError if it does not answer."""
        try:
            self.ring(self._client, "nobody")
        except NoPermissionError:
            return False
        return True

    def hear(self, queue: str) -> threading.Event:
        """What is set from now on whenever the queue gets something, until ``leave``."""
        with self._lock:
            self._hearers += 1
            if not self._listens:
                self._listens = True
                threading.Thread(target=self._listen, name="bell", daemon=True).start()
            return self._rung[queue]

    def leave(self) -> None:
        with self._lock:
            self._hearers -= 1

    def _listen(self) -> None:
        while self._wanted():
            try:
                with self._client.pubsub(ignore_subscribe_messages=True) as words:
                    while self._wanted():
                        self._subscribe(words)
                        words.get_message(timeout=PAUSE)
            except NoPermissionError:
                log.warning("new tasks are seen late: Redis lets this user use no channel")
                time.sleep(REFUSED)
            except (redis.RedisError, OSError):
                time.sleep(PAUSE)  # the consumers say so in the log

    def _subscribe(self, words: Any) -> None:
        """Listen to the queues that have got a consumer since, each of which sets its event."""
        with self._lock:
            queues = {self.channel(queue): rung for queue, rung in self._rung.items()}
        new = queues.keys() - {channel.decode() for channel in words.channels}
        if new:
            words.subscribe(**{name: partial(_rings, queues[name]) for name in new})

    def _wanted(self) -> bool:
        with self._lock:
            self._listens = self._hearers > 0
            return self._listens


def _rings(rung: threading.Event, message: Any) -> None:  # noqa: ARG001
    rung.set()
