"""Bring the schema up to date; safe to run twice, or at the same time in several processes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peewee
import structlog

from . import database

#: Any fixed number: the PostgreSQL advisory lock that one migrating process holds.
ADVISORY_LOCK = 0x6D61696C
#: Of a migration, beside processes that hold locks.
ATTEMPTS = 10

log = structlog.get_logger()


def directory() -> Path:
    """``migrations/``: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def migrate() -> list[str]:
    """Run what has not run yet, in one transaction, and name it.

    Processes of the version before may be at work: a migration that loses to their locks has done
    nothing, and begins anew.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return _run()
        except peewee.OperationalError as error:
            if not database.lost_a_race(error):
                raise
            log.warning("others hold what is to be changed; trying again")
    return _run()


def _run() -> list[str]:
    from peewee_migrate import Router  # every command asks what is pending, and few migrate

    quiet = logging.getLogger("mailpoll.migrate")
    with database.connected(), _alone():
        return list(Router(database.proxy.obj, migrate_dir=directory(), logger=quiet).run())


def pending() -> list[str]:
    """The migrations that have not run yet."""
    names = sorted(path.stem for path in directory().glob("[0-9]*_*.py"))
    with database.connected():
        if not database.proxy.table_exists("migratehistory"):
            return names
        rows = database.proxy.execute_sql("SELECT name FROM migratehistory").fetchall()
    done = {name for (name,) in rows}
    return [name for name in names if name not in done]


@contextmanager
def _alone() -> Iterator[None]:
    with database.transaction():
        if not database.is_sqlite():
            database.proxy.execute_sql("SELECT pg_advisory_xact_lock(%s)", (ADVISORY_LOCK,))
        yield
