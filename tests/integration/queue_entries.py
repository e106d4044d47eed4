"""What stands in the queues, read from Redis, and what is sent to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import dramatiq
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
    """Messages that no worker has taken, in their order, then all delayed ones in theirs."""
    client, namespace = system.broker.client, system.broker.namespace
    waiting = client.lrange(f"{namespace}:{queue}", 0, -1)
    data = client.hmget(f"{namespace}:{queue}.msgs", waiting) if waiting else []
    # A worker holds delayed messages in memory until their time: only this hash has them all.
    delayed = client.hvals(f"{namespace}:{queue}.DQ.msgs")
    found = [_entry(Message.decode(encoded)) for encoded in data if encoded is not None]
    return found + sorted((_entry(Message.decode(e)) for e in delayed), key=lambda e: e.eta or 0)


def polls(system: System) -> list[Entry]:
    """One entry for each poll, also of those that are sent together."""
    found = []
    for entry in entries(system, "poll"):
        together = entry.args[0].items() if entry.actor == "begin_polls" else ()
        found += [replace(entry, args=(int(account), due)) for account, due in together] or [entry]
    return found


def _entry(message: "Message[Any]") -> Entry:
    options = message.options
    return Entry(
        message.actor_name, tuple(message.args), options.get("eta"), options.get("retries", 0)
    )


def runs(system: System, actor: str) -> int:
    """How often an actor has run, up to about a second ago."""
    tasks = system.get("/admin/tasks")["tasks"]
    return sum(task["runs"] for task in tasks if task["actor"] == actor)


def idle(system: System) -> bool:
    """Whether no message waits to run now, or runs."""
    queues = system.get("/admin/tasks")["queues"]
    return not any(queue["waiting"] or queue["running"] for queue in queues)


class Enqueued(dramatiq.Middleware):
    """Notes what is sent: (actor, arguments, delay in milliseconds)."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[Any, ...], int | None]] = []

    def before_enqueue(
        self, broker: dramatiq.Broker, message: "dramatiq.Message[Any]", delay: int | None
    ) -> None:
        self.seen.append((message.actor_name, tuple(message.args), delay))


@contextmanager
def enqueued(system: System) -> Iterator[Enqueued]:
    """What is sent during the block, retries and put-off messages too."""
    noted = Enqueued()
    system.broker.add_middleware(noted)
    yield noted
    system.broker.middleware.remove(noted)
