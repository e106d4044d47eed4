"""Migrations: whole or not at all, and by one process however many want to."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peewee
import pytest

from mailpoll import database, migrate
from tests.integration.system import System, wait_until

#: A schema of the next version; ``broken`` is what follows its first statement,
#: ``pause`` the seconds before both.
NEXT = """
import time

def migrate(migrator, database, *, fake=False):
    time.sleep({pause})
    migrator.sql("CREATE TABLE of_next_version (name TEXT)")
    migrator.sql("{broken}")
"""


@pytest.fixture
def schemas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where migrations are: those of this version, and what a test adds."""
    found = tmp_path / "migrations"
    found.mkdir()
    for path in migrate.directory().glob("[0-9]*_*.py"):
        (found / path.name).write_text(path.read_text())
    monkeypatch.setattr(migrate, "directory", lambda: found)
    return found


def test_a_migration_that_ends_halfway_leaves_nothing_and_can_be_run_again(
    system: System, schemas: Path
) -> None:
    # Given a migration that fails when it has changed something
    path = schemas / "002_next.py"
    path.write_text(NEXT.format(broken="CREATE TABLE is no statement", pause=0))
    with pytest.raises(peewee.PeeweeException):
        migrate.migrate()
    # Then the schema is that of before, and says so
    assert migrate.pending() == ["002_next"]
    with database.connected():
        assert not database.proxy.table_exists("of_next_version")
    assert system.get("/admin/stats")["messages"] == 0
    # And when it is run again, it is done, once
    path.write_text(NEXT.format(broken="INSERT INTO of_next_version VALUES ('one')", pause=0))
    assert migrate.migrate() == ["002_next"]
    assert migrate.migrate() == migrate.pending() == []
    with database.connected():
        assert database.proxy.execute_sql("SELECT name FROM of_next_version").fetchall() == [
            ("one",)
        ]


def test_of_many_that_migrate_at_once_one_does_and_all_end_well(
    system: System, schemas: Path
) -> None:
    (schemas / "002_next.py").write_text(NEXT.format(broken="SELECT 1", pause=1))
    with ThreadPoolExecutor(4) as pool:
        ran = [one.result() for one in [pool.submit(migrate.migrate) for _ in range(4)]]
    assert sorted(ran) == [[], [], [], ["002_next"]]
    assert migrate.pending() == []


BESIDE = """
def migrate(migrator, database, *, fake=False):
    migrator.sql("ALTER TABLE email_accounts ADD COLUMN of_next_version TEXT")
    migrator.sql("ALTER TABLE email_folders ADD COLUMN of_next_version TEXT")
"""
WAITS = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'email_folders'::regclass"


@pytest.mark.parametrize("system", ["production"], indirect=True)
@pytest.mark.usefixtures("system")
def test_a_migration_that_loses_to_the_locks_of_others_begins_anew(schemas: Path) -> None:
    (schemas / "003_next.py").write_text(BESIDE)
    with ThreadPoolExecutor(1) as other:
        with database.transaction():  # of a process of the version before
            database.proxy.execute_sql("LOCK TABLE email_folders IN ROW EXCLUSIVE MODE")
            migration = other.submit(migrate.migrate)
            wait_until(lambda: database.proxy.execute_sql(WAITS).fetchone() == (1,))
            # Each waits for the other now: PostgreSQL ends the one that waits longer.
            database.proxy.execute_sql("LOCK TABLE email_accounts IN ROW EXCLUSIVE MODE")
        assert migration.result() == ["003_next"]
    assert migrate.pending() == []
