"""Redis is killed, emptied, frozen or refuses, or its queues hold what they should not."""

import os
import shutil
import signal
import time
from typing import Any

import dramatiq
import redis

from mailpoll import actors
from tests.campaign.case import fault
from tests.campaign.nemesis import drop_clients
from tests.campaign.slow.load import AWAY, REAL, counted, stream
from tests.campaign.world import World


@fault("F15", "Redis is killed, and comes back", variants=("empty", "old"), **REAL)
def killed_redis(world: World, how: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 20)
    world.start()
    server = world.backing.redis
    snapshot, kept = server.directory / "dump.rdb", server.directory / "kept.rdb"
    world.until(lambda: counted() > 0, 120, "no load")
    redis.Redis.from_url(server.url).save()
    shutil.copy(snapshot, kept)
    world.run_for(10)
    world.deliver(post, 20)
    world.run_for(3)
    server.stop()
    world.run_for(5)
    snapshot.unlink(missing_ok=True)
    if how == "old":
        shutil.copy(kept, snapshot)
    server.start()
    snapshot.unlink(missing_ok=True)
    world.healed()
    world.settle(150)


@fault("F19", "Redis ends every connection every two seconds", **REAL)
def no_redis_connection_lasts(world: World, _: str) -> None:
    world.announced.append(AWAY)
    posts = [world.account() for _number in range(4)]
    world.start()
    deliver = stream(world, posts, 50, 400)
    ended = time.monotonic()

    def each() -> None:
        nonlocal ended
        deliver()
        if time.monotonic() - ended > 2:
            drop_clients(world)
            ended = time.monotonic()

    world.run_for(60, each)
    world.healed()
    world.settle(150)
    world.miss_workers()


@fault("F22", "Redis forgets its scripts, and becomes read-only", **REAL)
def read_only_redis(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 20)
    world.start()
    world.until(lambda: counted() > 0, 120, "no load")
    client = redis.Redis.from_url(world.backing.redis.url)
    client.script_flush()
    world.deliver(post, 10)
    world.run_for(10)
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    world.run_for(20)
    client.execute_command("REPLICAOF", "NO", "ONE")
    world.healed()
    world.settle(150)


@fault("F23", "Redis is frozen for longer than a heartbeat", **REAL)
def frozen_redis(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 30)
    world.start()
    world.until(lambda: counted() > 0, 120, "no load")
    pid = world.backing.redis.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    world.deliver(post, 10)
    world.run_for(90)
    os.kill(pid, signal.SIGCONT)
    world.healed()
    world.settle(150)
    world.miss_workers()


@fault("F67", "messages that no worker knows")
def unknown_messages(world: World, _: str) -> None:
    world.announced.append("ActorNotFound|TypeError|unexpected|missing")
    world.checker_options.append("--dead")
    post = world.account()
    world.deliver(post, 10)
    broker = actors.process_message.broker
    for queue, actor, args in (
        ("process", "no_such_actor", (1,)),
        ("process", "process_message", ()),
        ("poll", "poll_account", ("x", "y", "z")),
    ):
        message: Any = dramatiq.Message(
            queue_name=queue, actor_name=actor, args=args, kwargs={}, options={}
        )
        broker.enqueue_all([(message, None)])
    world.start()
    world.settle(90)


@fault("F70", "an operator purges the queues", **REAL)
def purged_queues(world: World, _: str) -> None:
    post = world.account()
    world.deliver(post, 40)
    world.start()
    world.until(lambda: counted() > 0, 120, "no load")
    client = redis.Redis.from_url(world.backing.redis.url)
    for key in client.scan_iter("mailpoll:*"):
        if b"__" not in key:
            client.delete(key)
    world.deliver(post, 10)
    world.healed()
    world.settle(180)
