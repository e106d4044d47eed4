"""Users of Redis who may not do everything."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import redis

#: What docs/deployment.md says, and a user as for any program without pub/sub.
ENOUGH = ("~mailpoll*", "&mailpoll:*", "+@all", "-@admin")
ALL_BUT_CHANNELS = ("~mailpoll*", "+@all", "-@admin")


@contextmanager
def redis_user(url: str, *rules: str) -> Iterator[str]:
    """The URL of a user with these rules, of the server that everybody may use at ``url``."""
    client, name = redis.Redis.from_url(url), f"user-{uuid4()}"
    client.execute_command(
        "ACL", "SETUSER", name, "reset", "resetchannels", "on", ">secret", *rules
    )
    try:
        yield url.replace("redis://", f"redis://{name}:secret@")
    finally:
        client.execute_command("ACL", "DELUSER", name)
