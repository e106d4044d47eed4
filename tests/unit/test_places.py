"""``EmailAccount.following``: when an account is polled next."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from mailpoll.models import EmailAccount

START = datetime(2026, 11, 28, 11, 0, 17, 250_000, tzinfo=UTC)


def account(number: int, interval: int = 60) -> EmailAccount:
    return EmailAccount(id=number, poll_interval=interval)


def busiest(moments: list[datetime], interval: int) -> int:
    """How many lie in the fullest tenth of the interval."""
    width = interval // 10
    places = Counter(int(moment.timestamp()) % interval // width for moment in moments)
    return max(places.values())


@pytest.mark.parametrize("interval", [10, 60, 300, 86_400])
def test_accounts_that_were_polled_together_are_spread_over_their_interval(interval: int) -> None:
    accounts = [account(number, interval) for number in range(7_001, 7_501)]
    moments = [START] * len(accounts)
    for _poll in range(6):
        pairs = zip(accounts, moments, strict=True)
        following = [one.following(moment) for one, moment in pairs]
        for before, after in zip(moments, following, strict=True):
            assert 0.9 * interval <= (after - before).total_seconds() <= 1.1 * interval
        moments = following
    # Then a tenth of the interval has a tenth of them, or hardly more
    assert busiest(moments, interval) <= 60


def test_at_its_place_an_account_stays_though_polls_begin_a_little_late() -> None:
    one = account(12_345)
    moment = START
    for _poll in range(6):
        moment = one.following(moment)
    for number in range(100):
        following = one.following(moment + timedelta(seconds=number % 5))
        assert abs((following - moment).total_seconds() - 60) < 0.001
        moment = following


def test_a_poll_at_any_time_is_followed_after_about_the_interval() -> None:
    one = account(3, 300)
    for second in range(600):
        moment = START + timedelta(seconds=second)
        assert 270 <= (one.following(moment) - moment).total_seconds() <= 330
