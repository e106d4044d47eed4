"""The three backing sets, and a system that runs on each."""

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from tests.integration import oracle
from tests.integration.system import KEY, TOKEN, System, configured, secret_directory
from tests.servers.dovecot import Dovecot
from tests.servers.process import free_ports

#: Whether a test has failed, for fixtures that end after it.
FAILED = pytest.StashKey[bool]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    oracle.running[:] = [item]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: "pytest.CallInfo[None]"
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


def _redis_database() -> int:
    """Workers of one run share a server; each has a Redis database of its own."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) + 1


def _embedded(request: pytest.FixtureRequest, directory: Path) -> dict[str, str]:
    data = secret_directory(directory / "data")
    shutil.copy(request.getfixturevalue("migrated_file"), data / "mailpoll.db")
    return {"REDIS_URL": f"{request.getfixturevalue('valkey').url}/{_redis_database()}"}


def _production(request: pytest.FixtureRequest, directory: Path) -> dict[str, str]:
    name = f"test-{uuid4().hex[:12]}"
    postgres, seaweed = request.getfixturevalue("postgres"), request.getfixturevalue("seaweed")
    request.addfinalizer(lambda: postgres.drop_database(name))
    request.addfinalizer(lambda: seaweed.drop_bucket(name))
    return {
        "DATABASE_URL": postgres.create_database(name, request.getfixturevalue("migrated")),
        "REDIS_URL": f"{request.getfixturevalue('redis_server').url}/{_redis_database()}",
        "STORAGE_URL": seaweed.url_of(name),
    }


SETS = {"embedded": _embedded, "production": _production}


@pytest.fixture(params=list(SETS))
def system(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    """A whole mailpoll on one backing set; every test that takes it runs on each."""
    variables = SETS[request.param](request, tmp_path)
    yield from run_system(variables, tmp_path, dovecot)


@pytest.fixture
def embedded(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    """A mailpoll on the embedded set, for what does not depend on the backing."""
    yield from run_system(_embedded(request, tmp_path), tmp_path, dovecot)


@pytest.fixture
def scripted(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    """The embedded set, where servers without TLS on any port are allowed, with small limits."""
    yield from run_system(
        _embedded(request, tmp_path),
        tmp_path,
        dovecot,
        MAILPOLL_IMAP_PORTS="1024-65535",
        MAILPOLL_IMAP_ALLOW_PLAIN="yes",
        MAILPOLL_IMAP_READ_TIMEOUT="2",
        MAILPOLL_PART_BYTES="10000",
        MAILPOLL_BATCH_BYTES="50000",
    )


def run_system(
    variables: dict[str, str],
    directory: Path,
    dovecot: Dovecot,
    **more: str,
) -> Iterator[System]:
    """Configure this process, empty the queue, hand out the system, and see what is left of it.

    After a test that has failed nothing more is looked at: its own words are what counts.
    """
    environ = {
        "MAILPOLL_DATA_DIR": str(directory / "data"),
        "MAILPOLL_SECRET_KEY": KEY,
        "MAILPOLL_API_TOKEN": TOKEN,
        "MAILPOLL_DASHBOARD": "yes",
        "MAILPOLL_IMAP_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
        "MAILPOLL_IMAP_CA_FILE": str(dovecot.ca_file),
        "MAILPOLL_IMAP_PORTS": f"{dovecot.imap_port},{dovecot.imaps_port}",
        # So far ahead no poll enqueues the next one, which one with an interval of a minute does
        # when it ends in certain seconds.
        "MAILPOLL_POLL_INTERVAL": "240",
        **variables,
        **more,
    }
    redis.Redis.from_url(environ["REDIS_URL"]).flushdb()
    with configured(environ) as broker:
        system = System(dovecot, broker)
        yield system
        test = oracle.running[-1]
        if not test.stash.get(FAILED, False):
            if test.get_closest_marker("leaves_damage") is None:
                oracle.assert_sound()
            oracle.assert_all_can_be_deleted(system)


@pytest.fixture
def address() -> str:
    """A mailbox that no other test uses."""
    return f"{uuid4().hex[:16]}@example.org"


@pytest.fixture
def scripted_port() -> int:
    """Where a test's own IMAP server may listen, so that the configuration can allow it."""
    return free_ports(1)[0]
