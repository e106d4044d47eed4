"""Consumers hear at once that a queue has got something, and look all the same when they do not."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from mailpoll import actors
from mailpoll.broker import make_broker
from tests.integration.redis_users import ALL_BUT_CHANNELS, redis_user
from tests.integration.system import System, wait_until

pytestmark = pytest.mark.queue


@contextmanager
def deaf_but_for_the_bell(system: System) -> Iterator[Any]:
    """A consumer that has found its queue empty and looks again after an hour."""
    consumer = system.broker.consume("process", timeout=1_000)
    consumer._pause = 3_600
    assert next(consumer) is None
    try:
        yield consumer
    finally:
        consumer.close()


@contextmanager
def again_and_again(send: Callable[[], Any]) -> Iterator[None]:
    """Somebody enqueues messages: the first may come before we listen."""
    stopped = threading.Event()

    def enqueue() -> None:
        while not stopped.wait(0.1):
            send()

    thread = threading.Thread(target=enqueue)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def from_another_process(system: System) -> Callable[[], Any]:
    other = make_broker(system.settings)
    return lambda: other.enqueue_all([(actors.process_message.message(1), None)])


def test_a_consumer_hears_of_a_message_that_another_process_enqueues(system: System) -> None:
    send = from_another_process(system)
    with deaf_but_for_the_bell(system) as consumer, again_and_again(send):
        assert next(consumer).actor_name == "process_message"


def test_what_an_actor_sends_is_heard_too(system: System) -> None:
    def send() -> None:
        actors.process_message.send(1)

    with deaf_but_for_the_bell(system) as consumer, again_and_again(send):
        assert next(consumer).actor_name == "process_message"


def test_a_process_hears_of_its_own_queues_only(system: System) -> None:
    with deaf_but_for_the_bell(system):
        client, bell = system.broker.client, system.broker.bell
        wait_until(lambda: client.pubsub_numsub(bell.channel("process"))[0][1] == 1)
        channels = set(client.pubsub_channels(bell.channel("*")))
        assert channels == {bell.channel("process").encode()}


def test_a_queue_that_gets_its_consumer_later_is_heard_too(system: System) -> None:
    with deaf_but_for_the_bell(system):
        client, bell = system.broker.client, system.broker.bell
        wait_until(lambda: client.pubsub_numsub(bell.channel("process"))[0][1] == 1)
        other = system.broker.consume("webhooks", timeout=1_000)
        wait_until(lambda: client.pubsub_numsub(bell.channel("webhooks"))[0][1] == 1)
        other.close()


def test_it_listens_again_when_redis_ended_its_connection(system: System) -> None:
    with deaf_but_for_the_bell(system) as consumer:
        client, channel = system.broker.client, system.broker.bell.channel("process")
        wait_until(lambda: client.pubsub_numsub(channel)[0][1] == 1)
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        with again_and_again(from_another_process(system)):
            assert next(consumer).actor_name == "process_message"


def test_a_message_of_which_nobody_heard_is_found_all_the_same(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = system.broker.consume("process", timeout=1_000)
    assert next(consumer) is None
    monkeypatch.setattr(system.broker.bell, "ring", lambda client, queue: None)
    system.broker.enqueue_all([(actors.process_message.message(1), None)])
    found = [next(consumer) for _ in range(2)]
    assert [one.actor_name for one in found if one] == ["process_message"]
    consumer.close()


def test_nobody_listens_when_all_consumers_have_gone(system: System) -> None:
    with deaf_but_for_the_bell(system):
        wait_until(lambda: any(thread.name == "bell" for thread in threading.enumerate()))
    wait_until(lambda: not any(thread.name == "bell" for thread in threading.enumerate()))


def test_a_redis_user_without_channels_sends_and_finds_messages(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_user(system.settings.redis, *ALL_BUT_CHANNELS) as url:
        broker = make_broker(system.settings.model_copy(update={"redis_url": url}))
        broker.enqueue_all([(actors.process_message.message(1), None)])
        consumer = broker.consume("process", timeout=1_000)
        assert next(consumer).actor_name == "process_message"
        wait_until(lambda: "lets this user use no channel" in caplog.text)
        consumer.close()


def test_what_redis_refuses_is_still_said(system: System) -> None:
    with redis_user(system.settings.redis, *ALL_BUT_CHANNELS, "-evalsha") as url:
        broker = make_broker(system.settings.model_copy(update={"redis_url": url}))
        with pytest.raises(redis.exceptions.NoPermissionError):
            broker.enqueue_all([(actors.process_message.message(1), None)])
