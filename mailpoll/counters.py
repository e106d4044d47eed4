"""Counters of all processes together: counted in memory, added to one Redis hash once a second.

Redis may lose them. Then they begin at 0 again, which whoever reads counters expects of them.
Labels come from small fixed sets, and never from mail, addresses or hosts.
"""

import threading
from collections import Counter

import redis

KEY = "mailpoll:counters"

_lock = threading.Lock()
_counted: Counter[str] = Counter()


def add(name: str, amount: int = 1, label: str = "") -> None:
    """Count; cheap enough for any path."""
    with _lock:
        _counted[f"{name}:{label}"] += amount


def flush(client: "redis.Redis[bytes]") -> None:
    """Add what this process has counted to what all have; what Redis does not take stays here."""
    global _counted
    with _lock:
        counted, _counted = _counted, Counter()
    if not counted:
        return
    try:
        pipeline = client.pipeline(transaction=False)
        for name, amount in counted.items():
            pipeline.hincrby(KEY, name, amount)
        pipeline.execute()
    except redis.RedisError:
        with _lock:
            _counted.update(counted)


def read(client: "redis.Redis[bytes]") -> dict[str, dict[str, int]]:
    """Each counter's amounts by label; one without labels has the label ""."""
    found: dict[str, dict[str, int]] = {}
    for field, amount in client.hgetall(KEY).items():
        name, _, label = field.decode().partition(":")
        found.setdefault(name, {})[label] = int(amount)
    return found
