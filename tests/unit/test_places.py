"""``EmailAccount.following``: when an account is polled next."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from mailpoll.models import EmailAccount, EmailFolder
from mailpoll.sync import proof

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


@pytest.mark.parametrize("fault", ["none", "withheld", "missing"])
def test_what_is_compared_daily_or_hourly_is_so_at_polls_that_are_exactly_that_far_apart(
    fault: str,
) -> None:
    # Given a folder that was compared by a poll, 15 seconds after that began
    figures = dict.fromkeys(("server", "stored", "withheld", "to_import", "missing"), 0)
    figures |= dict.fromkeys(("waiting", "unreadable", "too_large", "left_out"), 0)
    figures |= {"withheld": 3, "server": 3} if fault == "withheld" else {}
    figures |= {"missing": 1, "server": 1} if fault == "missing" else {}
    compared = START + timedelta(seconds=15)
    folder = EmailFolder(high=7, low=1, proof=figures, reconciled_at=compared)
    # When the next poll begins after exactly the time, it is compared again; not after half of it
    seconds = {"none": 86_400, "withheld": 3_600, "missing": 600}[fault]
    assert proof.due(folder, START + timedelta(seconds=seconds))
    assert not proof.due(folder, START + timedelta(seconds=seconds / 2))
