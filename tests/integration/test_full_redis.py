"""A Redis that is full or read-only for a while costs time and nothing else."""

import time
from pathlib import Path

import dramatiq
import pytest
import redis
from dramatiq import Worker

from mailpoll.broker import POLL, make_broker
from tests.integration.system import System, wait_until
from tests.servers.valkey import Valkey

MESSAGES = 6


@pytest.mark.queue
@pytest.mark.parametrize(
    ("harm", "cure"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    ],
    ids=["full", "read-only"],
)
def test_delayed_messages_outlive_it(
    embedded: System, server_directory: Path, harm: tuple[str, ...], cure: tuple[str, ...]
) -> None:
    with Valkey(server_directory / "redis") as server:
        assert isinstance(server, Valkey)
        # Given delayed messages that a worker holds in its memory
        broker = make_broker(embedded.settings.model_copy(update={"redis_url": server.url}))
        done: set[int] = set()

        @dramatiq.actor(broker=broker, queue_name=POLL, actor_name="note")
        def note(number: int) -> None:
            done.add(number)

        for number in range(MESSAGES):
            note.send_with_options(args=(number,), delay=2_500 + 200 * number)
        worker = Worker(broker, queues={POLL}, worker_threads=2)
        worker.start()
        client = redis.Redis.from_url(server.url)
        try:
            wait_until(lambda: client.llen(f"mailpoll:{POLL}.DQ") == 0)
            # When Redis takes nothing more at the time that they fall due, and then does again
            client.execute_command(*harm)
            time.sleep(4)
            client.execute_command(*cure)
            # Then all of them run, and the worker looks for more
            wait_until(lambda: done == set(range(MESSAGES)))
            note.send(MESSAGES)
            wait_until(lambda: MESSAGES in done)
        finally:
            worker.stop()
