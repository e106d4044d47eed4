"""Runs faults and prints how each went, with the seed that plays it again.

``python -m tests.campaign --only F24 --seed 7``
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from tests.campaign import fast, operations, report, slow  # noqa: F401 - they register the faults
from tests.campaign.case import CASES, EMBEDDED, Case, Result, play
from tests.campaign.slow.load import REAL
from tests.campaign.world import Backing
from tests.servers.postgres import Postgres
from tests.servers.seaweed import Seaweed
from tests.servers.valkey import Flavour, Valkey


class Servers:
    """PostgreSQL and SeaweedFS for all cases, started when one needs them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._postgres: Postgres | None = None
        self._seaweed: Seaweed | None = None

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def backing(self, name: str) -> Iterator[Backing]:
        """The set for one case, with a Redis of its own."""
        directory = self._directory / f"redis-{uuid4().hex[:8]}"
        flavour = Flavour.VALKEY if name == EMBEDDED else Flavour.REDIS
        server = Valkey(directory, flavour)
        with server:
            if name == EMBEDDED:
                yield Backing(name, server)
                return
            self._start()
            assert self._postgres and self._seaweed
            bucket = f"campaign-{uuid4().hex[:12]}"
            url = self._postgres.create_database(bucket)
            try:
                yield Backing(name, server, url, self._seaweed, bucket, self._postgres)
            finally:
                self._postgres.drop_database(bucket)
                self._seaweed.drop_bucket(bucket)

    def _start(self) -> None:
        if self._postgres is None:
            self._postgres = Postgres(self._directory / "postgres", durable=True)
            self._seaweed = Seaweed(self._directory / "seaweed")
            self._stack.enter_context(self._postgres)
            self._stack.enter_context(self._seaweed)


def chosen(only: str, tier: str) -> list[Case]:
    """The cases whose name begins with one of ``only``, or those of a tier."""
    if only:
        starts = tuple(only.split(","))
        return [case for case in CASES if str(case).startswith(starts)]
    return [case for case in CASES if tier == "all" or case.fast == (tier == "fast")]


def _real(case: Case) -> Case:
    return replace(case, options={**case.options, **REAL})


def run(case: Case, servers: Servers, directory: Path, seed: int) -> Result:
    """One case; what went wrong stands in the result, and its directory is kept then."""
    world = directory / f"{case}-{seed}"
    start = time.monotonic()
    try:
        with servers.backing(case.backing) as backing:
            result = play(case, backing, world, seed)
        if not result.error:
            shutil.rmtree(world)
        return result
    except Exception as error:
        seconds = time.monotonic() - start
        words = f"{type(error).__name__}: {error}"
        return Result(case, seed, 0.0, seconds, [], {}, words)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--only", default="", help="beginnings of names, as in F24,F01-committed")
    parser.add_argument("--tier", choices=("fast", "slow", "all"), default="all")
    parser.add_argument("--seed", type=int, help="of all chance; a new one if not given")
    parser.add_argument("--minutes", type=float, help="that F06 and F73 take")
    parser.add_argument("--real", action="store_true", help="real time for the fast ones too")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--json", type=Path, help="add the results to this file")
    options = parser.parse_args()
    cases = chosen(options.only, options.tier)
    if options.list:
        print(*(f"{case}: {case.words}" for case in cases), sep="\n")
        return 0
    if options.minutes:
        os.environ["MAILPOLL_CAMPAIGN_MINUTES"] = str(options.minutes)
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    directory = Path(tempfile.mkdtemp(prefix="mailpoll-campaign-"))
    directory.chmod(0o755)
    print(f"seed {seed}, directory {directory}", flush=True)
    failed = 0
    with Servers(directory) as servers:
        for case in cases:
            print(f"{case}: {case.words}", flush=True)
            result = run(_real(case) if options.real else case, servers, directory, seed)
            failed += bool(result.error)
            print(report.line(result), flush=True)
            if options.json:
                report.add(options.json, result)
    if not failed:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
