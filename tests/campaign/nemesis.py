"""Faults that begin and end, two or three at a time, and the plan of a random campaign."""

import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psycopg
import redis

from tests.campaign.case import EMBEDDED, PRODUCTION
from tests.campaign.store import StoreFault
from tests.campaign.world import World
from tests.servers.proxy import BlackHole, Cut, DropReply, Fault, Latency, Slicer

#: What a fault does at its begin and at its end.
Step = Callable[[World], None]


@dataclass(frozen=True)
class Nemesis:
    """Parameters: begin and end; which sets it is for."""

    begin: Step
    end: Step = lambda world: None
    sets: tuple[str, ...] = (EMBEDDED, PRODUCTION)


def _role(world: World) -> str:
    return world.chance.choice([role for role in world.processes if role != "web"])


def kill_one(world: World) -> None:
    """SIGKILL one process of the tree; the others of its role may live on for a moment."""
    tasks = world.tasks(_role(world))
    if tasks:
        with suppress(ProcessLookupError):
            _kill(world.chance.choice(tasks), signal.SIGKILL)


def _kill(pid: int, number: signal.Signals) -> None:
    os.kill(pid, number)


def kill_all(world: World) -> None:
    for role in list(world.processes):
        world.kill(role)


def freeze(role: str) -> Nemesis:
    return Nemesis(
        lambda world: world.signal(role, signal.SIGSTOP),
        lambda world: world.signal(role, signal.SIGCONT),
    )


def _redis(world: World) -> "redis.Redis[bytes]":
    return redis.Redis.from_url(world.backing.redis.url, socket_timeout=5)


def drop_clients(world: World) -> None:
    with suppress(redis.RedisError):
        _redis(world).execute_command("CLIENT", "KILL", "TYPE", "normal")


def pause_redis(world: World) -> None:
    with suppress(redis.RedisError):
        _redis(world).execute_command("CLIENT", "PAUSE", "12000", "ALL")


def flush_redis(world: World) -> None:
    with suppress(redis.RedisError):
        _redis(world).flushall()


def fill_redis(world: World) -> None:
    with suppress(redis.RedisError):
        _redis(world).config_set("maxmemory", 1)


def empty_redis(world: World) -> None:
    with suppress(redis.RedisError):
        _redis(world).config_set("maxmemory", 0)


def through(name: str, *faults: Fault) -> Nemesis:
    """Faults of a proxy."""

    def begin(world: World) -> None:
        world.proxies[name].faults = faults

    def end(world: World) -> None:
        world.proxies[name].faults = ()
        world.proxies[name].cut()  # what hangs does not hang for ever

    sets = (PRODUCTION,) if name in ("database", "store") else (EMBEDDED, PRODUCTION)
    return Nemesis(begin, end, sets)


def away(name: str) -> Nemesis:
    """Connections are refused."""
    sets = (PRODUCTION,) if name in ("database", "store") else (EMBEDDED, PRODUCTION)
    return Nemesis(
        lambda world: world.proxies[name].down(), lambda world: world.proxies[name].up(), sets
    )


def mail(*faults: Fault) -> Nemesis:
    """Faults of the way to half of the mail servers."""

    def begin(world: World) -> None:
        for address in world.office.posts:
            if address in world.proxies and world.chance.random() < 0.5:
                world.proxies[address].faults = faults

    def end(world: World) -> None:
        for address in world.office.posts:
            if address in world.proxies:
                world.proxies[address].faults = ()
                world.proxies[address].cut()

    return Nemesis(begin, end)


def store(kind: str, probability: float = 1.0, times: int = 1_000_000) -> Nemesis:
    """Faults of the layer before the object store."""

    def begin(world: World) -> None:
        assert world.store_layer
        world.store_layer.faults = (StoreFault(kind, probability, times),)

    def end(world: World) -> None:
        assert world.store_layer
        world.store_layer.faults = ()

    return Nemesis(begin, end, (PRODUCTION,))


def crash_postgres(world: World) -> None:
    server = world.backing.postgres
    assert server.pid
    with suppress(ProcessLookupError):
        _kill(server.pid, signal.SIGQUIT)
    server.stop()
    server.start()


def terminate_backends(world: World) -> None:
    """About half of the sessions end."""
    with suppress(psycopg.Error), psycopg.connect(world.backing.database_url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
            "datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.5"
        )


NEMESES: dict[str, Nemesis] = {
    "kill-one": Nemesis(kill_one),
    "kill-all": Nemesis(kill_all),
    "freeze-poller": freeze("poller"),
    "freeze-worker": freeze("worker"),
    "redis-flush": Nemesis(flush_redis),
    "redis-restart": Nemesis(lambda world: world.backing.redis.restart(empty=False)),
    "redis-empty": Nemesis(lambda world: world.backing.redis.restart(empty=True)),
    "redis-pause": Nemesis(pause_redis),
    "redis-full": Nemesis(fill_redis, empty_redis),
    "redis-clients": Nemesis(drop_clients),
    "redis-away": away("redis"),
    "redis-replies": through("redis", DropReply(request=rb"\$(5\r\nfetch|3\r\nack)", times=10)),
    "database-away": away("database"),
    "database-crash": Nemesis(crash_postgres, sets=(PRODUCTION,)),
    "database-sessions": Nemesis(terminate_backends, sets=(PRODUCTION,)),
    "database-commits": through("database", DropReply(request=rb"COMMIT", times=10)),
    "store-refuses": store("refuse"),
    "store-flaps": store("refuse", 0.3),
    "store-forbids": store("forbid"),
    "store-drops": store("drop", 0.3),
    "store-cuts": store("cut-put", 0.3),
    "mail-cuts": mail(Cut(after=2_000, reset=True)),
    "mail-slow": mail(Latency(seconds=0.5)),
    "mail-hangs": mail(BlackHole(after=1_500)),
    "mail-drips": mail(Slicer(size=200, pause=0.2)),
}


@dataclass(frozen=True)
class Event:
    """A nemesis from ``start`` for ``length`` seconds."""

    start: float
    length: float
    name: str

    def __str__(self) -> str:
        return f"{self.start:6.1f} s  {self.name} for {self.length:.1f} s"


def plan(seed: int, seconds: float, backing: str) -> list[Event]:
    """Two or three faults at a time, then a rest, again and again; the same for the same seed."""
    chance = random.Random(seed)
    names = [name for name, one in NEMESES.items() if backing in one.sets]
    events = []
    now = 5.0
    while now < seconds:
        chosen = chance.sample(names, chance.choice((2, 3)))
        # The layer before the store does one thing at a time.
        if sum(name.startswith("store-") for name in chosen) > 1:
            continue
        length = chance.uniform(4, 20)
        events += [Event(now + chance.uniform(0, 3), length, name) for name in chosen]
        now += length + chance.uniform(3, 15)
    return sorted(events, key=lambda event: event.start)
