"""A fault is over in its time, or the run has failed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaign.case import EMBEDDED, Case, play
from tests.campaign.world import Backing, World
from tests.servers.valkey import Valkey


@pytest.fixture
def backing(server_directory: Path) -> Iterator[Backing]:
    with Valkey(server_directory / "redis") as server:
        assert isinstance(server, Valkey)
        yield Backing(EMBEDDED, server)


def recovering_in(seconds: float) -> Case:
    def run(world: World, _: str) -> None:
        world.recovery = seconds

    return Case("F00", "nothing", "", EMBEDDED, run, fast=True, bound=120)


def test_a_recovery_after_its_bound_fails_and_tells_both_figures(
    backing: Backing, tmp_path: Path
) -> None:
    late = play(recovering_in(120.5), backing, tmp_path / "late", seed=1)
    assert late.error == "recovered in 120.5 s, later than its bound of 120 s"
    in_time = play(recovering_in(120), backing, tmp_path / "in-time", seed=1)
    assert in_time.error == ""
