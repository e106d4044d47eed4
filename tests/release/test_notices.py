"""What mailpoll is made with may be used as it is, and is listed."""

import pytest

from tests.release import notices


def test_every_locked_package_is_listed() -> None:
    lines = notices.PAGE.read_text()
    for name, version, _ in notices.locked():
        assert f"[{name}](" in lines or f"| {name} |" in lines, name
        assert f" {version} |" in lines, f"{name} {version}: run `make notices`"


def test_the_list_is_what_the_packages_say() -> None:
    """Of those that are installed here; the lock has packages for other systems too."""
    found = notices.notices()
    rows = notices.PAGE.read_text()
    for notice in found:
        assert f"| {notice.version} | {notice.license} |" in rows, f"{notice}: `make notices`"


def test_no_licence_forbids_our_use() -> None:
    refused = {n.name: n.license for n in notices.notices() if notices.forbidden(n.license)}
    assert refused == {}


def test_the_licences_whose_terms_reach_the_package_are_these() -> None:
    """LGPL and MPL: used unchanged. A new one is looked at by a person, and added here."""
    weak = {n.name for n in notices.notices() if notices.WEAK.search(n.license)}
    assert weak == {
        "certifi",
        "dramatiq",
        "dramatiq-dashboard",
        "orjson",
        "periodiq",
        "psycopg",
        "psycopg-binary",
    }


@pytest.mark.parametrize(
    "text",
    [
        "AGPL-3.0-only",
        "GNU Affero General Public License v3",
        "GPL-3.0-or-later",
        "GNU General Public License v2 (GPLv2)",
        "GPLv3",
        "SSPL-1.0",
        "BUSL-1.1",
        "Proprietary",
        "",
    ],
)
def test_a_licence_that_does_is_known(text: str) -> None:
    assert notices.forbidden(text)


@pytest.mark.parametrize(
    "text",
    [
        "MIT",
        "LGPL-3.0-or-later",
        "GNU Lesser General Public License v3 or later (LGPLv3+)",
        "Apache-2.0 OR BSD-3-Clause",
        "GPL-2.0-only OR MIT",
        "MPL-2.0 AND (Apache-2.0 OR MIT)",
    ],
)
def test_a_licence_that_does_not_passes(text: str) -> None:
    assert not notices.forbidden(text)
