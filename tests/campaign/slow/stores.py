"""The object store is away, slow, wrong, or has lost what it held."""

import shutil
import time

from mailpoll import database
from mailpoll.models import EmailRawMessage
from tests.campaign.case import PRODUCTION, fault
from tests.campaign.slow.load import AWAY, REAL, command, counted, stream
from tests.campaign.store import StoreFault
from tests.campaign.world import World
from tests.servers.proxy import BlackHole, bandwidth


@fault(
    "F04",
    "a poller dies with blobs in the fall-back, and the store is back before the next poll",
    variants=("left-behind",),
    sets=(PRODUCTION,),
    through=("store",),
)
def left_behind(world: World, _: str) -> None:
    post = world.account()
    world.deliver(post, 5)
    world.proxies["store"].down()
    world.start("fell-back:kill:1")
    world.until(world.fired, 40, "not killed")
    # What the dead poll leaves is a second copy when the mail has come again.
    assert world.fallen_back()
    world.proxies["store"].up()
    world.healed()
    world.settle(90)
    assert not world.fallen_back()


@fault("F35", "the object store is a black hole", sets=(PRODUCTION,), through=("store",), **REAL)
def black_hole_store(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 3)
    world.start()
    world.until(lambda: counted() == 3, 120, "no load")
    world.proxies["store"].faults = (BlackHole(), BlackHole("server"))
    world.deliver(post, 50)
    start = time.monotonic()
    world.until(lambda: counted() == 53, 120, "mail waits for the store")
    assert time.monotonic() - start < 100
    world.proxies["store"].faults = ()
    world.proxies["store"].cut()
    world.healed()
    world.settle(240)


@fault(
    "F36",
    "the object store is overloaded",
    variants=("a-third", "flapping"),
    sets=(PRODUCTION,),
    layer=True,
    **REAL,
)
def overloaded_store(world: World, how: str) -> None:
    layer = world.store_layer
    assert layer
    world.announced.append(AWAY)
    posts = [world.account() for _number in range(2)]
    world.start()
    deliver = stream(world, posts, 50, 200)
    start = time.monotonic()

    def each() -> None:
        deliver()
        share = 0.3 if how == "a-third" else float((time.monotonic() - start) % 10 < 5)
        layer.faults = (StoreFault("refuse", share),)

    world.run_for(60, each)
    layer.faults = ()
    world.healed()
    world.settle(240)


@fault(
    "F38",
    "the object store says yes, and the bytes are wrong",
    variants=("cut-put", "flip-put", "flip-get", "cut-get"),
    sets=(PRODUCTION,),
    layer=True,
)
def wrong_bytes(world: World, kind: str) -> None:
    assert world.store_layer
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 3)
    world.start()
    world.settle()
    # What is read wrong twice in a row is wrong.
    times = 1 if kind.endswith("get") else 4
    world.store_layer.faults = (StoreFault(kind, times=times),)
    world.deliver(post, 12)
    world.until(lambda: world.store_layer and world.store_layer.done[kind] == times, 60, "no fault")
    world.healed()
    world.settle(120)


@fault(
    "F39",
    "the object store refuses the keys, or has no bucket",
    variants=("forbid", "no-bucket"),
    sets=(PRODUCTION,),
    layer=True,
    **REAL,
)
def refused_keys(world: World, kind: str) -> None:
    assert world.store_layer
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 3)
    world.start()
    world.until(lambda: counted() == 3, 120, "no load")
    world.store_layer.faults = (StoreFault(kind),)
    world.deliver(post, 20)
    world.until(lambda: counted() == 23, 120, "mail waits for the store")
    world.run_for(30)
    requests = world.store_layer.done[kind]
    assert requests < 200, f"{requests} requests: a storm"
    world.store_layer.faults = ()
    world.healed()
    world.settle(240)


@fault(
    "F41",
    "the object store is away, and there is no fall-back",
    sets=(PRODUCTION,),
    through=("store",),
    variables={"MAILPOLL_STORAGE_FALLBACK": "no"},
)
def no_fallback(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 3)
    world.start()
    world.settle()
    world.proxies["store"].down()
    world.deliver(post, 20)
    world.run_for(15)
    assert counted() == 3
    world.proxies["store"].up()
    world.healed()
    world.settle(120)


@fault("F42", "blobs rot and vanish, and fsck brings them back", variants=("flip", "cut", "gone"))
def rotten_blobs(world: World, how: str) -> None:
    post = world.account()
    world.deliver(post, 6)
    world.start()
    world.settle()
    with database.connected():
        row = EmailRawMessage.select().order_by(EmailRawMessage.id).first()
    _damage(world, row.storage_key, how)
    assert world.check()["missing" if how == "gone" else "corrupt"]
    run = command(world, "fsck", "--repair")
    world.healed()
    world.settle()
    report = world.check()
    assert not report["missing"] + report["corrupt"], run.stdout + run.stderr


def _damage(world: World, key: str, how: str) -> None:
    import io

    seaweed = world.backing.seaweed
    path = world.data / "blobs" / key
    if seaweed is None:
        content = path.read_bytes()
    else:
        content = seaweed.client().get_object(world.backing.bucket, key).read()
    wrong = content[:-1] + b"#" if how == "flip" else content[: len(content) // 2]
    if seaweed is None:
        path.unlink() if how == "gone" else path.write_bytes(wrong)
    elif how == "gone":
        seaweed.client().remove_object(world.backing.bucket, key)
    else:
        seaweed.client().put_object(world.backing.bucket, key, io.BytesIO(wrong), len(wrong))


@fault(
    "F43",
    "the object store takes 64 KB a second",
    sets=(PRODUCTION,),
    through=("store",),
    bound=240,
    **REAL,
)
def slow_store(world: World, _: str) -> None:
    world.announced.append(AWAY)
    posts = [world.account() for _number in range(3)]
    world.proxies["store"].faults = (bandwidth(64_000, "server"),)
    world.deliver(posts[0], 3, size=500_000)
    for post in posts[1:]:
        world.deliver(post, 5)
    world.start()
    world.healed()
    world.settle(240)


@fault(
    "F72",
    "a dyno is restarted with an empty disk while the store is away",
    sets=(PRODUCTION,),
    through=("store",),
    variables={"MAILPOLL_STORAGE_FALLBACK": "no"},
)
def wiped_dyno(world: World, _: str) -> None:
    world.announced.append(AWAY)
    post = world.account()
    world.deliver(post, 5)
    world.start()
    world.settle()
    world.proxies["store"].down()
    world.deliver(post, 10)
    world.run_for(8)
    world.stop()
    shutil.rmtree(world.data, ignore_errors=True)
    world.start()
    world.run_for(5)
    world.proxies["store"].up()
    world.healed()
    world.settle(120)
