"""PostgreSQL: who stands still in a transaction holds nobody up for ever."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from mailpoll import database
from mailpoll.models import EmailAccount
from tests.integration.conftest import _production, run_system
from tests.integration.system import System
from tests.servers.dovecot import Dovecot


@pytest.fixture
def production(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot
) -> Iterator[System]:
    yield from run_system(_production(request, tmp_path), tmp_path, dovecot)


def test_each_connection_has_its_limits(production: System) -> None:
    with database.connected():
        shown = [
            database.proxy.execute_sql(f"SHOW {name}").fetchone()[0] for name in database.LIMITS
        ]
    assert shown == ["30s", "1min"]


def test_a_lock_that_another_holds_is_not_waited_for_for_ever(
    production: System, address: str
) -> None:
    account = production.add_account(address, test=False)
    with psycopg.connect(production.settings.database) as other:
        other.execute("UPDATE email_accounts SET poll_interval = 77")
        with pytest.raises(database.AWAY), database.transaction():
            database.proxy.execute_sql("SET LOCAL lock_timeout = 100")
            EmailAccount.update(poll_interval=78).where(EmailAccount.uuid == account).execute()
        other.rollback()
    # The connection goes on as it was
    with database.transaction():
        EmailAccount.update(poll_interval=79).where(EmailAccount.uuid == account).execute()
    assert production.get(f"/admin/email-accounts/{account}")["poll_interval"] == 79


def test_the_locks_of_a_transaction_that_stands_still_are_given_up(production: System) -> None:
    with pytest.raises(database.AWAY), database.transaction():
        database.proxy.execute_sql("SET LOCAL idle_in_transaction_session_timeout = 50")
        database.proxy.execute_sql("LOCK TABLE email_accounts IN ACCESS EXCLUSIVE MODE")
        with psycopg.connect(production.settings.database) as other:
            other.execute("SELECT count(*) FROM email_accounts")  # waits until they are
        database.proxy.execute_sql("SELECT 1")
