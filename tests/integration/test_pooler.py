"""mailpoll behind PgBouncer, whose few connections all of its processes and threads share."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from mailpoll import actors, checkup, database, migrate
from mailpoll.checkup import State
from mailpoll.settings import from_environment, settings
from tests.integration.conftest import SETS, run_system
from tests.integration.system import System, message
from tests.servers.dovecot import Dovecot
from tests.servers.pgbouncer import Mode, PgBouncer
from tests.servers.postgres import Postgres

#: Of mailpoll's process, and of PgBouncer: in a session each client keeps its own.
POOL, CONNECTIONS = 4, {Mode.SESSION: 8, Mode.TRANSACTION: 2}


@pytest.fixture(params=Mode)
def pooler(
    request: pytest.FixtureRequest, server_directory: Path, postgres: Postgres
) -> Iterator[PgBouncer]:
    mode = request.param
    with PgBouncer(server_directory, postgres, mode, CONNECTIONS[mode]) as server:
        yield server


@pytest.fixture
def system(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, pooler: PgBouncer
) -> Iterator[System]:
    variables = SETS["production"](request, tmp_path)
    name = variables["DATABASE_URL"].rpartition("/")[2]
    pooled = {"DATABASE_URL": pooler.url(name), "MAILPOLL_DATABASE_POOL": str(POOL)}
    if pooler.mode is Mode.TRANSACTION:
        pooled["MAILPOLL_DATABASE_POOLER"] = "yes"
    yield from run_system(variables | pooled, tmp_path, dovecot)


def test_mail_comes_in_is_found_and_is_deleted(system: System, address: str) -> None:
    for number in range(12):  # a statement is prepared when it comes for the sixth time
        system.dovecot.deliver(address, message(f"new {number}"))
    account = system.add_account(address)
    system.poll_and_process(account)
    assert len(system.messages(account)) == 12
    for _ in range(12):
        assert len(system.get("/admin/search", q="new")["items"]) == 12
    actors.sweep.fn()
    actors.schedule_polls.fn()
    # That it can be deleted, and fsck finds no difference, is seen after each test


@pytest.mark.parametrize("durable", [True, False])
def test_limits_hold_in_every_transaction(system: System, durable: bool) -> None:
    with database.transaction(durable=durable):
        limits = {
            name: database.proxy.execute_sql(f"SHOW {name}").fetchone()[0]
            for name in database.LIMITS
        }
    assert limits == {"lock_timeout": "30s", "idle_in_transaction_session_timeout": "1min"}


def test_tables_are_made_through_it(pooler: PgBouncer, postgres: Postgres) -> None:
    postgres.create_database(name := f"pooled_{uuid4().hex}")
    database.open_database(pooler.url(name), pooler=pooler.mode is Mode.TRANSACTION)
    try:
        assert migrate.migrate() == ["001_initial", "002_retention_and_news"]
        assert migrate.pending() == []
    finally:
        database.close_database()


def test_doctor_notices_a_pooler_that_nobody_has_named(system: System, pooler: PgBouncer) -> None:
    by_check = {finding.check: finding for finding in checkup.run(settings())}
    assert by_check["database"].state is State.OK
    unnamed = from_environment(os.environ | {"MAILPOLL_DATABASE_POOLER": "no"})
    by_check = {finding.check: finding for finding in checkup.run(unnamed)}
    wrong = pooler.mode is Mode.TRANSACTION
    assert by_check["database"].state is (State.WRONG if wrong else State.OK)
    assert ("MAILPOLL_DATABASE_POOLER" in by_check["database"].advice) == wrong


def test_a_second_connection_that_is_refused_is_an_error_that_doctor_outlives(
    postgres: Postgres,
) -> None:
    name, role = f"single_{uuid4().hex}", f"single_{uuid4().hex}"
    url = postgres.create_database(name)
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1")
    database.open_database(url.replace("postgres@", f"{role}@"))
    try:
        with pytest.raises(database.AWAY, match="too many connections"):
            database.is_pooled()
    finally:
        database.close_database()
