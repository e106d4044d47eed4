"""What stands in the queues, read from Redis."""

from dataclasses import dataclass
from typing import Any

from dramatiq import Message

from tests.integration.system import System


@dataclass(frozen=True, slots=True)
class Entry:
    """A message of a queue; ``eta`` is when it runs, in milliseconds of the Unix epoch, or None."""

    actor: str
    args: tuple[Any, ...]
    eta: int | None
    retries: int


def entries(system: System, queue: str) -> list[Entry]:
    """Waiting messages in their order, then the delayed ones in theirs."""
    client, namespace = system.broker.client, system.broker.namespace
    found = []
    for name in (queue, f"{queue}.DQ"):
        for redis_id in client.lrange(f"{namespace}:{name}", 0, -1):
            data = client.hget(f"{namespace}:{name}.msgs", redis_id)
            if data is None:  # taken meanwhile
                continue
            message = Message.decode(data)
            eta, retries = message.options.get("eta"), message.options.get("retries", 0)
            found.append(Entry(message.actor_name, tuple(message.args), eta, retries))
    return found


def idle(system: System) -> bool:
    """Whether no message waits to run now, or runs."""
    queues = system.get("/admin/tasks")["queues"]
    return not any(queue["waiting"] or queue["running"] for queue in queues)
