"""What a consumer gives back when it ends."""

import pytest

from mailpoll import actors
from tests.integration.system import System

pytestmark = pytest.mark.queue


def test_what_was_fetched_and_not_handed_out_is_put_back(system: System) -> None:
    # Given a consumer that has fetched three messages at once and handed out one
    for number in (1, 2, 3):
        actors.process_message.send(number)
    consumer = system.broker.consume("process", prefetch=16, timeout=1_000)
    taken = next(consumer)
    # When it ends
    consumer.close()
    # Then another finds the other two, and the first stays with whoever works on it
    other = system.broker.consume("process", prefetch=16, timeout=1_000)
    found = [next(other), next(other), next(other)]
    assert [one and one.args for one in found] == [(2,), (3,), None]
    assert taken.args == (1,)
    assert len(system.broker.client.keys("mailpoll:__acks__.*.process")) == 1


def test_a_foreign_message_does_not_keep_the_others_from_being_put_back(system: System) -> None:
    client = system.broker.client
    for number in (1, 2):
        actors.process_message.send(number)
        client.hset("mailpoll:process.msgs", f"foreign-{number}", "not json")
        client.rpush("mailpoll:process", f"foreign-{number}")
    consumer = system.broker.consume("process", prefetch=16, timeout=1_000)
    assert next(consumer).args == (1,)
    consumer.close()
    other = system.broker.consume("process", prefetch=16, timeout=1_000)
    assert next(other).args == (2,)
    client.hdel("mailpoll:process.msgs", "foreign-1", "foreign-2")
