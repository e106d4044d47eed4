"""Whatever fails, all mail arrives, once and whole, and all of it can be deleted."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.campaign import fast, report  # noqa: F401 - the former registers the faults
from tests.campaign.case import EMBEDDED, Case, fast_cases, play
from tests.campaign.world import Backing
from tests.servers.valkey import Flavour, Valkey

#: Of the one source of chance; a failing case is played again by ``python -m tests.campaign``.
SEED = 20261125
#: Names the file of all results, if those of the tests are to go there too.
RESULTS = "MAILPOLL_CAMPAIGN_RESULTS"


@pytest.fixture
def backing(
    case: Case, request: pytest.FixtureRequest, server_directory: Path
) -> Iterator[Backing]:
    """The set of servers that the case is for, with a Redis of its own."""
    if case.backing == EMBEDDED:
        with Valkey(server_directory / "redis") as server:
            assert isinstance(server, Valkey)
            yield Backing(EMBEDDED, server)
        return
    name = f"campaign-{uuid4().hex[:12]}"
    postgres, seaweed = request.getfixturevalue("postgres"), request.getfixturevalue("seaweed")
    with Valkey(server_directory / "redis", Flavour.REDIS) as server:
        assert isinstance(server, Valkey)
        url = postgres.create_database(name)
        try:
            yield Backing(case.backing, server, url, seaweed, name, postgres)
        finally:
            postgres.drop_database(name)
            seaweed.drop_bucket(name)


@pytest.mark.parametrize("case", list(fast_cases()), ids=str)
def test_all_mail_arrives_once_and_whole(case: Case, backing: Backing, tmp_path: Path) -> None:
    result = play(case, backing, tmp_path / "world", SEED)
    if RESULTS in os.environ:
        report.add(Path(os.environ[RESULTS]), result)
    assert not result.error, result.error
