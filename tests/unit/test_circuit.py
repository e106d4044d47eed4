"""The circuit breaker, with a clock that the test turns."""

import pytest

from mailpoll.blobs import BlobMissing, StoreUnavailable
from mailpoll.blobs.circuit import Circuit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    return Circuit(first_pause=5, longest_pause=60, clock=clock)


def fail(circuit: Circuit) -> None:
    with pytest.raises(StoreUnavailable, match="broken"), circuit.guard():
        raise StoreUnavailable("broken")


def succeed(circuit: Circuit) -> None:
    with circuit.guard():
        pass


def assert_refuses(circuit: Circuit) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable, match="not asked again") as refused, circuit.guard():
        pytest.fail("the call was let through")
    return refused.value


def test_it_lets_calls_through_while_they_succeed(circuit: Circuit) -> None:
    succeed(circuit)
    succeed(circuit)
    assert not circuit.is_open


def test_one_failure_opens_it_and_says_when_to_come_back(circuit: Circuit, clock: Clock) -> None:
    fail(circuit)
    clock.now += 2
    assert circuit.is_open
    assert assert_refuses(circuit).retry_after == 3


def test_after_the_pause_a_success_closes_it(circuit: Circuit, clock: Clock) -> None:
    fail(circuit)
    clock.now += 5
    assert not circuit.is_open
    succeed(circuit)
    # A later failure starts from the first pause again
    fail(circuit)
    assert assert_refuses(circuit).retry_after == 5


def test_each_failed_probe_doubles_the_pause_up_to_the_longest(
    circuit: Circuit, clock: Clock
) -> None:
    pauses = []
    for _ in range(6):
        fail(circuit)
        pauses.append(assert_refuses(circuit).retry_after)
        clock.now += pauses[-1]
    assert pauses == [5, 10, 20, 40, 60, 60]


def test_only_one_probe_goes_through_at_a_time(circuit: Circuit, clock: Clock) -> None:
    fail(circuit)
    clock.now += 5
    with circuit.guard():
        assert circuit.is_open
        assert_refuses(circuit)
    succeed(circuit)


@pytest.mark.parametrize("verdict", [BlobMissing, KeyboardInterrupt])
def test_a_probe_without_a_verdict_makes_room_for_another(
    circuit: Circuit, clock: Clock, verdict: type[BaseException]
) -> None:
    fail(circuit)
    clock.now += 5
    with pytest.raises(verdict), circuit.guard():
        raise verdict
    succeed(circuit)
    assert not circuit.is_open


def test_calls_that_time_out_together_are_one_failure(circuit: Circuit) -> None:
    # Given two calls under way
    first, second = circuit.guard(), circuit.guard()
    first.__enter__()
    second.__enter__()

    # When both fail
    for call in (first, second):
        failure = StoreUnavailable("broken")
        assert not call.__exit__(StoreUnavailable, failure, None)

    # Then the pause has not been doubled
    assert assert_refuses(circuit).retry_after == 5


def test_a_success_from_before_the_outage_does_not_close_it(circuit: Circuit) -> None:
    slow = circuit.guard()
    slow.__enter__()
    fail(circuit)
    slow.__exit__(None, None, None)
    assert_refuses(circuit)


def test_however_long_it_failed_a_call_each_minute_is_let_through(clock: Clock) -> None:
    circuit = Circuit(clock=clock)
    for _ in range(10):
        fail(circuit)
        clock.now += 59
    succeed(circuit)
