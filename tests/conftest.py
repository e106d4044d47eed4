"""Test servers, each started once per test run, by the first test of any worker that needs it."""

import fcntl
import gc
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest

from mailpoll import database, migrate
from tests.servers.dovecot import Dovecot
from tests.servers.postgres import Postgres
from tests.servers.process import OWNER_VARIABLE, Server
from tests.servers.seaweed import Seaweed
from tests.servers.valkey import Flavour, Valkey

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("mailpoll", deadline=None)
hypothesis.settings.load_profile("mailpoll")

SHARED_DIRECTORY_VARIABLE = "MAILPOLL_TEST_SERVERS"
MIGRATED = "migrated"

S = TypeVar("S", bound=Server)


def pytest_configure(config: pytest.Config) -> None:
    """Make the directory that all workers share; they inherit its name with the environment."""
    if not hasattr(config, "workerinput"):
        directory = Path(tempfile.mkdtemp(prefix="mailpoll-servers-"))
        directory.chmod(0o755)  # servers that drop root's rights must get in
        os.environ[SHARED_DIRECTORY_VARIABLE] = str(directory)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: "test_requests_openapi" not in item.nodeid)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over the modules and tests that stay until the end."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what was started. A run that is killed gets here too late: then supervisors do it."""
    if not hasattr(config, "workerinput"):
        directory = Path(os.environ.pop(SHARED_DIRECTORY_VARIABLE))
        for state in directory.glob("*.running"):
            pickle.loads(state.read_bytes()).stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def dovecot() -> Dovecot:
    return shared("dovecot", Dovecot)


@pytest.fixture(scope="session")
def postgres() -> Postgres:
    return shared("postgres", Postgres)


@pytest.fixture(scope="session")
def migrated(postgres: Postgres) -> str:
    """The name of a database with all tables: a copy is there sooner than the migration is done."""
    directory = Path(os.environ[SHARED_DIRECTORY_VARIABLE])
    done = directory / f"{MIGRATED}.done"
    with locked(directory / f"{MIGRATED}.lock"):
        if not done.exists():
            database.open_database(postgres.create_database(MIGRATED))
            migrate.migrate()
            database.close_database()
            done.touch()
    return MIGRATED


@pytest.fixture(scope="session")
def migrated_file() -> Path:
    """A SQLite file with all tables, to be copied."""
    file = Path(os.environ[SHARED_DIRECTORY_VARIABLE]) / "migrated.db"
    with locked(file.with_suffix(".lock")):
        if not file.exists():
            database.open_database(f"sqlite:///{file}.new")
            migrate.migrate()
            database.checkpoint()
            database.close_database()
            file.with_suffix(".db.new").rename(file)
    return file


@pytest.fixture(scope="session")
def valkey() -> Valkey:
    return shared("valkey", Valkey)


@pytest.fixture(scope="session")
def redis_server() -> Valkey:
    return shared("redis", lambda directory: Valkey(directory, Flavour.REDIS))


@pytest.fixture(scope="session")
def seaweed() -> Seaweed:
    return shared("seaweed", Seaweed)


@pytest.fixture
def server_directory() -> Iterator[Path]:
    """For a server of a test's own, such as one that it stops.

    pytest's ``tmp_path`` does not do for Dovecot and PostgreSQL when root runs the tests: they drop
    root's rights and could not enter it.
    """
    directory = Path(tempfile.mkdtemp(prefix="mailpoll-server-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def shared(name: str, make: Callable[[Path], S]) -> S:
    """The server of this name of this test run; started if no worker has done it yet."""
    directory = Path(os.environ[SHARED_DIRECTORY_VARIABLE])
    state = directory / f"{name}.running"
    with locked(directory / f"{name}.lock"):
        if not state.exists():
            server = make(directory / name)
            with owned_by_run():
                server.start()
            state.write_bytes(pickle.dumps(server))
        return pickle.loads(state.read_bytes())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def owned_by_run() -> Iterator[None]:
    """Let servers live as long as the controller of the run, not just the worker that starts them.

    The controller is the parent of every worker; without workers it is this process.
    """
    in_worker = "PYTEST_XDIST_WORKER" in os.environ
    os.environ[OWNER_VARIABLE] = str(os.getppid() if in_worker else os.getpid())
    try:
        yield
    finally:
        del os.environ[OWNER_VARIABLE]
