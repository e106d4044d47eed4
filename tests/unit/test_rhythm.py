"""Polls that follow a mailbox's rhythm: more often when mail comes, always between the limits."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from mailpoll import rhythm

START = datetime(2026, 11, 23, tzinfo=UTC)


def after(*polls: tuple[float, int]) -> tuple[dict[str, Any], datetime]:
    """The rhythm after polls, each so many seconds after the one before, with so many messages."""
    found, moment = rhythm.updated(None, START, 0), START
    for seconds, messages in polls:
        moment += timedelta(seconds=seconds)
        found = rhythm.updated(found, moment, messages)
    return found, moment


@given(
    polls=some.lists(
        some.tuples(some.floats(-3_600, 1e8), some.integers(0, 1_000_000)), max_size=10
    ),
    least=some.integers(15, 86_400),
    more=some.integers(0, 86_400),
)
def test_the_interval_stays_between_the_limits_whatever_came(
    polls: list[tuple[float, int]], least: int, more: int
) -> None:
    found, moment = after(*polls)
    assert least <= rhythm.interval(found, moment, least, least + more) <= least + more


def test_mail_that_came_just_now_makes_the_next_poll_come_sooner_and_silence_later() -> None:
    quiet, moment = after(*[(3_600, 0)] * 48)
    busy = rhythm.updated(quiet, moment, 20)
    assert rhythm.interval(busy, moment, 15, 3_600) < rhythm.interval(quiet, moment, 15, 3_600)
    later = moment + timedelta(hours=2)
    assert rhythm.interval(busy, moment, 15, 3_600) < rhythm.interval(busy, later, 15, 3_600)


@pytest.mark.parametrize("hour", range(24))
def test_a_busy_hour_of_the_day_is_known_the_day_after(hour: int) -> None:
    polls = [(3_600.0, 60 if number % 24 == hour else 0) for number in range(24 * 7)]
    found, moment = after((0, 0), *polls)
    moment = moment.replace(hour=0) + timedelta(days=1)
    intervals = [
        rhythm.interval(found, moment + timedelta(hours=one), 15, 3_600) for one in range(24)
    ]
    # The first of the polls was an hour after midnight.
    assert intervals.index(min(intervals)) == (hour + 1) % 24
