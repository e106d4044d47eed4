"""Date fields (RFC 5322 3.3 and 4.3), in UTC, or None."""

from datetime import UTC, datetime

import pytest

from .build import parsed

DATES = {
    "Mon, 23 Nov 2026 10:05:00 +0100": datetime(2026, 11, 23, 9, 5, tzinfo=UTC),
    "23 Nov 2026 10:05 +0000": datetime(2026, 11, 23, 10, 5, tzinfo=UTC),
    "Mon, 23 Nov 2026 10:05:00 -0800 (PST)": datetime(2026, 11, 23, 18, 5, tzinfo=UTC),
    "Mon, 23 Nov 2026 10:05:00 (EST) -0500": datetime(2026, 11, 23, 15, 5, tzinfo=UTC),
    "Mon, 23 Nov 2026 10:05:00 GMT": datetime(2026, 11, 23, 10, 5, tzinfo=UTC),
    "Mon, 23 Nov 2026 10:05:00 EST": datetime(2026, 11, 23, 15, 5, tzinfo=UTC),
    "Mon, 23 Nov 2026 10:05:00": datetime(2026, 11, 23, 10, 5, tzinfo=UTC),
    "Mon, 23 Nov 98 10:05:00 +0000": datetime(1998, 11, 23, 10, 5, tzinfo=UTC),
    "Mon, 23 Nov 2026 10:05:60 +0000": datetime(2026, 11, 23, 10, 5, 59, tzinfo=UTC),
    "Mon,\r\n 23 Nov 2026 10:05:00 +0530": datetime(2026, 11, 23, 4, 35, tzinfo=UTC),
    "Mon 23 Nov 2026 10:05:00 PM EST": datetime(2026, 11, 24, 3, 5, tzinfo=UTC),
    "Mon 23 Nov 2026 12:05:00 AM GMT": datetime(2026, 11, 23, 0, 5, tzinfo=UTC),
    "Mon, 23 Nov 2026 10:05:00 +9999": datetime(2026, 11, 23, 10, 5, tzinfo=UTC),
}
NONE = (
    *("", "yesterday", "Mon, 23 Nov 99999 10:05:00 +0000", "Mon, 23 Nov -1 10:05:00 +0000"),
    *("Mon, 32 Nov 2026 10:05:00 +0000", "Mon, 23 Nov 2026 25:05:00 +0000", "0", "-1", "(" * 500),
    *("Mon, 31 Dec 9999 23:59:59 -0100", "\ufffd", "1" * 10_000),
)


@pytest.mark.parametrize("value", DATES)
def test_a_date_is_an_instant_in_utc(value: str) -> None:
    assert parsed(f"Date: {value}").date == DATES[value]


@pytest.mark.parametrize("value", NONE)
def test_what_names_no_instant_is_no_date(value: str) -> None:
    assert parsed(f"Date: {value}").date is None


def test_a_message_without_the_field_has_no_date() -> None:
    assert parsed("Subject: x").date is None
