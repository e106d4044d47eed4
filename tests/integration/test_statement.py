"""SQL that is written out means the same to both databases."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from mailpoll import database
from mailpoll.database import Statement
from mailpoll.models import TABLES, EmailAccount, EmailFolder
from tests.integration.system import System, message

AMONG = Statement("SELECT count(*) FROM email_accounts WHERE address IN [] AND poll_interval > ?")


def among(*addresses: str) -> int:
    with database.connected():
        (count,) = AMONG.run(list(addresses), 0).fetchone()
    return int(count)


@contextmanager
def later_columns() -> Iterator[None]:
    """A column more in each table."""
    names = [table._meta.table_name for table in TABLES]

    def alter(verb: str) -> None:
        with database.transaction():
            for name in names:
                database.proxy.execute_sql(f"ALTER TABLE {name} {verb}")

    # The new version has connections of its own.
    with ThreadPoolExecutor(1) as other:
        other.submit(alter, "ADD COLUMN later TEXT").result()
        yield
        other.submit(alter, "DROP COLUMN later").result()


def test_a_list_of_any_length_is_a_parameter(system: System, address: str) -> None:
    system.add_account(address, test=False)
    assert among(address, "other@example.org") == 1
    assert among("other@example.org") == 0
    assert among() == 0


def test_lists_of_many_lengths_are_few_statements(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.add_account(address, test=False)
    seen = set()
    execute = database.proxy.obj.execute_sql

    def noted(sql: str, *parameters: Any) -> Any:
        seen.add(sql)
        return execute(sql, *parameters)

    monkeypatch.setattr(database.proxy.obj, "execute_sql", noted)
    for others in range(100):
        assert among(address, *(f"{number}@example.org" for number in range(others))) == 1
    assert len(seen) == 8


def test_a_poll_that_finds_no_folder_does_not_fail(system: System, address: str) -> None:
    # Given an account that wants a folder which its mailbox does not have
    account = system.add_account(address, folders=["Nowhere"], test=False)
    shown = f"/admin/email-accounts/{account}"
    # When it is polled, then that ends well
    system.work_until(lambda: system.get(shown)["last_success_at"] is not None)


def test_columns_of_a_later_version_stop_no_process_of_this_one(
    system: System, address: str
) -> None:
    """A new version's migration runs while the old processes go on."""
    system.dovecot.deliver(address, message("new"))
    account = system.add_account(address, test=False)
    with later_columns():
        system.poll_and_process(account)
        system.dovecot.deliver(address, message("newer"))
        system.poll_and_process(account)
    assert len(system.messages(account)) == 2


def test_what_is_prepared_is_read_on_when_a_later_version_adds_columns(
    system: System, address: str
) -> None:
    system.add_account(address, test=False)
    with database.connected():
        row = EmailAccount.get(EmailAccount.address == address)
        for _ in range(8):  # what is asked so often, PostgreSQL prepares
            assert EmailAccount.by_id(row.id) == row
            assert EmailFolder.of_account(row.id) == []
        with later_columns():
            assert EmailAccount.by_id(row.id) == row
            assert EmailFolder.of_account(row.id) == []
