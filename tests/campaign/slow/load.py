"""Processes as in the Procfile, in real time, and mail for them."""

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

from mailpoll import database
from mailpoll.models import EmailRawMessage
from tests.campaign.mail import Post
from tests.campaign.world import MAILPOLL, PROCFILE, World

#: The processes of the Procfile that move mail.
REAL: dict[str, Any] = {
    "hurry": False,
    "commands": {name: PROCFILE[name] for name in ("poller", "worker", "scheduler")},
}
#: What any process says when something that it needs is away.
AWAY = (
    "redis|Redis|Connection|connection error|OperationalError|InterfaceError|DatabaseError|"
    "StoreUnavailable|Timeout|periodiq|exited unexpectedly|process ended|AdminShutdown|"
    "CannotConnect|MaxConnectionsExceeded|ReadOnly"
)


def stream(world: World, posts: list[Post], seconds: float, total: int) -> Callable[[], None]:
    """Delivers ``total`` messages spread over time, when it is called again and again."""
    start, sent = time.monotonic(), 0

    def deliver() -> None:
        nonlocal sent
        due = min(total, int(total * (time.monotonic() - start) / seconds) + 1)
        while sent < due:
            amount = min(due - sent, world.chance.randint(1, 5))
            size = world.chance.choice((300, 300, 3_000, 30_000))
            world.deliver(world.chance.choice(posts), amount, size=size)
            sent += amount

    return deliver


def command(world: World, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """A command of an operator, with variables of its own."""
    return subprocess.run(
        [*MAILPOLL, *words],
        env={**os.environ, **world.child_environment, **more},
        capture_output=True,
        text=True,
        check=False,
    )


def counted() -> int:
    with database.connected():
        return int(EmailRawMessage.select().count())


def sessions(post: Post) -> int:
    return sum(command.upper().startswith("LOGIN") for command in post.commands)
