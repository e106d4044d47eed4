"""What databases refuse: locks that are held for ever, more than the disk takes, what is wrong."""

import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from urllib.parse import urlsplit

import psycopg
import pytest

from mailpoll import actors, database
from mailpoll.actors.poll import poll
from mailpoll.models import EmailAccount, EmailRawMessage
from tests.integration.conftest import _production, run_system
from tests.integration.rows import account_row
from tests.integration.system import System, message, wait_until
from tests.servers.dovecot import Dovecot
from tests.servers.proxy import DropReply, Proxy


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


#: Tells a connection's process in the server.
BACKEND = "SELECT pg_backend_pid()"


def backend() -> int:
    with database.connected():
        return int(database.proxy.execute_sql(BACKEND).fetchone()[0])


def test_a_connection_that_the_server_has_ended_is_not_given_out_again(production: System) -> None:
    before = backend()
    assert backend() == before
    with psycopg.connect(production.settings.database, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [before])
    assert backend() != before


def test_a_connection_that_was_only_told_something_stays(production: System) -> None:
    with database.connected():
        database.proxy.execute_sql("LISTEN something")
    before = backend()
    with psycopg.connect(production.settings.database, autocommit=True) as other:
        other.execute("NOTIFY something")
    assert backend() == before


def test_when_peers_are_gone_without_a_word_one_caller_finds_it_out_for_all(
    production: System,
) -> None:
    url = production.settings.database
    together = Barrier(3)

    def hold(_: int) -> int:
        with database.connected():
            together.wait(30)
            return backend()

    with Proxy(urlsplit(url).port or 5432) as proxy:
        database.close_database()
        database.open_database(url.replace(f":{proxy.target}/", f":{proxy.port}/"))
        with ThreadPoolExecutor(3) as threads:
            held = set(threads.map(hold, range(3)))
        proxy.faults = (
            DropReply(request=b"SELECT", times=2),
        )  # of two the end shows when they are used
        with pytest.raises(database.AWAY):
            backend()
        assert backend() in held
        database.close_database()
    database.open_database(url)


def test_a_connection_is_given_out_without_a_question_to_the_server(production: System) -> None:
    process = backend()
    with database.connected():
        pass
    with psycopg.connect(production.settings.database) as other:
        last = other.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", [process])
        assert last.fetchone() == (BACKEND,)


@pytest.mark.parametrize("durable", [True, False])
def test_the_clock_stands_still_in_a_transaction(system: System, durable: bool) -> None:
    before = database.now()
    with database.transaction(durable=durable):
        moment = database.now()
        with database.transaction():
            assert database.now() == moment
    assert before < moment < database.now()
    with pytest.raises(ValueError, match="nothing"), database.transaction(durable=durable):
        assert database.now() > moment
        raise ValueError("nothing is kept of a transaction that was rolled back")
    assert moment < database.now()


def test_behind_a_fence_that_others_may_have_held_up_the_time_is_asked_for_anew(
    system: System, address: str
) -> None:
    account = EmailAccount.lease(account_row(system.add_account(address, test=False)).id, None, 60)
    assert account is not None
    with database.transaction():
        before = database.now()
        account.fence(60)
        assert database.now() > before


def test_what_need_not_be_durable_is_not_waited_for(production: System) -> None:
    def shown() -> str:
        return str(database.proxy.execute_sql("SHOW synchronous_commit").fetchone()[0])

    with database.connected():
        database.proxy.execute_sql("SET synchronous_commit TO on")  # as a server has it by itself
        with database.transaction():
            assert shown() == "on"
        with database.transaction(durable=False):
            assert shown() == "off"
        assert shown() == "on"


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


#: Stands for a disk that is full when a message is finished, and not when it is claimed.
FULL = """
    CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = '%s'; END $$;
    CREATE TRIGGER full_disk BEFORE UPDATE ON email_raw_messages FOR EACH ROW
    WHEN (NEW.status = 'processed') EXECUTE FUNCTION full_disk()
"""


@pytest.mark.parametrize(("state", "attempts"), [("53100", 0), ("54000", 1)])
def test_only_what_a_message_itself_brings_about_counts_as_its_attempt(
    production: System, address: str, state: str, attempts: int
) -> None:
    production.dovecot.deliver(address, message("one"))
    account = production.add_account(address, test=False)
    poll(account_row(account).id, None)
    with database.transaction():
        database.proxy.execute_sql(FULL % state)
        row = EmailRawMessage.get()
    with pytest.raises(database.AWAY):
        actors.process_message.fn(row.id)
    with database.transaction():
        database.proxy.execute_sql("DROP TRIGGER full_disk ON email_raw_messages")
        row = EmailRawMessage.get()
    assert (row.status, row.attempts) == ("stored", attempts)
    actors.process_message.fn(row.id)
    with database.connected():
        assert EmailRawMessage.get().status == "processed"


def test_a_full_sqlite_is_away_and_a_wrong_statement_is_not(embedded: System) -> None:
    with pytest.raises(database.AWAY) as full, database.transaction():
        database.proxy.execute_sql("PRAGMA max_page_count = 1")
        for _ in range(200):
            database.proxy.execute_sql("CREATE TABLE IF NOT EXISTS one_more (content TEXT)")
            database.proxy.execute_sql("INSERT INTO one_more VALUES (hex(randomblob(10000)))")
    assert database.is_away(full.value)
    database.close_database()  # and with it the limit
    with pytest.raises(database.AWAY) as wrong, database.connected():
        database.proxy.execute_sql("SELECT nothing FROM nowhere")
    assert not database.is_away(wrong.value)


def test_a_long_log_of_sqlite_is_emptied_and_does_not_wait_for_readers(
    embedded: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOG_LIMIT", 0)
    log = Path(f"{database.proxy.database}-wal")
    with sqlite3.connect(database.proxy.database) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM email_accounts").fetchone()
        with database.transaction():
            database.proxy.execute_sql("CREATE TABLE some (n INTEGER)")
        # Given a reader that needs the log as it was
        actors.sweep.fn()
        assert log.stat().st_size > 0
        reader.rollback()
    # When it has done with it
    actors.sweep.fn()
    assert log.stat().st_size == 0
    with database.connected():
        assert database.proxy.execute_sql("PRAGMA busy_timeout").fetchone() == (
            database.BUSY_TIMEOUT,
        )


def test_who_writes_all_the_time_lets_others_write_between(
    embedded: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a process that writes again and again, and looks as seldom as this one at a lock
    monkeypatch.setattr(database, "LOCK_PAUSE", 0.05)
    busy = (
        "import sys, time\nfrom mailpoll import database\n"
        "database.LOCK_PAUSE = 0.05\n"
        "database.open_database(sys.argv[1])\n"
        "while True:\n"
        " with database.transaction(durable=False):\n"
        "  database.proxy.execute_sql('UPDATE counted SET n = n + 1')\n"
        "  time.sleep(0.005)\n"
    )

    def counted() -> int:
        (n,) = database.proxy.execute_sql("SELECT n FROM counted").fetchone()
        return int(n)

    with database.transaction():
        database.proxy.execute_sql("CREATE TABLE counted (n INTEGER)")
        database.proxy.execute_sql("INSERT INTO counted VALUES (0)")
    with subprocess.Popen([sys.executable, "-c", busy, embedded.settings.database]) as process:
        try:
            with database.connected():
                wait_until(lambda: counted() > 0)
                passed = []
                for _ in range(10):
                    time.sleep(0.05)
                    before = counted()
                    # When this one writes now and then
                    with database.transaction(durable=False):
                        passed.append(counted() - before)
        finally:
            process.kill()
    # Then at most the transaction that was under way goes before its own
    assert statistics.median(passed) <= 1, sorted(passed)
