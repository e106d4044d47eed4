"""How often a mailbox is worth a look: its own rhythm, from the mail that it got so far.

A poll costs something, and so does mail that waits. With mail at a rate of r a second and a poll
every T seconds, a second costs PRICE / T for polls and r * T / 2 for waiting; the sum is least at
T = sqrt(2 * PRICE / r). The rate is what came at this hour of the day in the last weeks, or what
came just now, whichever is more: mail answers mail.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

#: A poll is worth so many seconds of one message's waiting.
PRICE = 30.0
#: Days after which what came counts half.
HALF_LIFE = 10.0
#: Seconds after which what came just now counts half.
BURST = 600.0
#: Hours beside the present one that count too: mail keeps no strict hours.
SPREAD = (0.25, 0.5, 0.25)
#: Messages a day of a mailbox of which nothing is known yet, for so many days.
FIRST_RATE, FIRST_DAYS = 20.0, 0.5
DAY = 86_400.0


def updated(rhythm: Mapping[str, Any] | None, moment: datetime, messages: int) -> dict[str, Any]:
    """The rhythm after a poll that brought so many new messages.

    Parameters:
      rhythm: as it was, {"at", "days", "hours", "burst"}; ``None`` for a mailbox without one.
      moment: now, aware.
    """
    if rhythm is None:
        hours = [FIRST_RATE * FIRST_DAYS / 24] * 24
        rhythm = {"at": moment.timestamp(), "days": FIRST_DAYS, "hours": hours, "burst": 0.0}
    passed = max(0.0, moment.timestamp() - rhythm["at"])
    faded = 0.5 ** (passed / DAY / HALF_LIFE)
    hours = [count * faded for count in rhythm["hours"]]
    hours[moment.hour] += messages
    return {
        "at": moment.timestamp(),
        "days": rhythm["days"] * faded + passed / DAY,
        "hours": [round(count, 4) for count in hours],
        "burst": round(rhythm["burst"] * 0.5 ** (passed / BURST) + messages, 4),
    }


def interval(rhythm: Mapping[str, Any], moment: datetime, least: int, most: int) -> int:
    """Seconds until the next poll, within an account's limits."""
    hours = rhythm["hours"]
    usual = sum(
        share * hours[(moment.hour + offset) % 24]
        for offset, share in zip((-1, 0, 1), SPREAD, strict=True)
    )
    rate = usual / (max(rhythm["days"], FIRST_DAYS) * DAY / 24)
    passed = max(0.0, moment.timestamp() - rhythm["at"])
    burst = rhythm["burst"] * 0.5 ** (passed / BURST)
    # The integral of what fades is its half-life divided by ln 2.
    rate = max(rate, burst * math.log(2) / BURST, 1e-9)
    return round(min(max(math.sqrt(2 * PRICE / rate), least), most))
