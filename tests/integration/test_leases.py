"""Who has an account, and until when: a lease is a matter of the database alone."""

import ast
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import mailpoll
from mailpoll import accounts, counters, database, faults, leases, turns
from mailpoll.actors.poll import poll
from mailpoll.blobs import Storage
from mailpoll.models import TABLES, EmailAccount
from mailpoll.sync import LEASE, ledger
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import account_row, change_accounts
from tests.integration.system import System, message
from tests.servers.dovecot import Dovecot

#: Where this machine's clock is asked for, and why nothing goes wrong when it does.
OWN_CLOCK = {
    "archives/intake.py": "the date of a message that has none",
    "blobs/local.py": "the age of temporary files, whose times are of the same clock",
    "blobs/s3.py": "the time in a signature, which the store compares with its own",
    "checkup.py": "told beside the others, to find clocks that differ",
    "database.py": "SQLite has no other",
    "demo/server.py": "the date of sample mail",
    "fsck/stored.py": "the age of blobs without a row, whose deletion any put can stop",
    "search/query.py": "what `newer:7d` means",
    "spool.py": "the age of temporary files, whose times are of the same clock",
    "stats.py": "how far the clocks are apart, and nothing else",
    "sync/download.py": "the date of a message that has none",
    "web/console/accounts.py": "how long a form is good for",
    "web/console/connect.py": "how long a sign-in is good for",
    "web/console/render.py": "times as in `5 min ago`",
    "web/sessions.py": "how long a login is good for",
    "webhooks/request.py": "the time in a signature, and in a test that leaves nothing",
}


def everything() -> dict[str, list[dict[str, Any]]]:
    with database.connected():
        return {table.__name__: sorted(table.select().dicts(), key=repr) for table in TABLES}


def refused() -> int:
    return counters._counted["fence_refused:"]


@pytest.mark.parametrize("point", ["blobs-durable", "committed"])
def test_a_poll_that_stood_still_beyond_its_lease_changes_nothing_any_more(
    system: System, address: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a poll that stands still between the store and the database, or after its first commit
    system.dovecot.deliver_many(address, [message(f"number {n}") for n in range(5)])
    account = system.add_account(address, test=False)
    row = account_row(account)
    after: list[dict[str, list[dict[str, Any]]]] = []
    reach = faults.point

    def stand_still(name: str) -> None:
        reach(name)
        if name == point and not after:
            after.append({})  # the second poll comes to the point, too
            with turns.waiting():
                # When its lease is over, another takes the account and brings in what is there
                change_accounts(lease_until=database.now() - timedelta(seconds=1))
                system.dovecot.deliver(address, message("came meanwhile"))
                another = threading.Thread(target=poll, args=(row.id, None))
                another.start()
                another.join()
            after[0] = everything()

    monkeypatch.setattr(faults, "point", stand_still)
    before = refused()
    poll(row.id, None)
    # Then what the first had in hand, and what it thinks of the account, is refused
    assert len(after[0]["EmailLocation"]) == 6
    assert everything() == after[0]
    assert refused() == before + 1


def test_a_lease_holds_while_a_slow_store_takes_the_blobs(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "LEASE", 4)
    monkeypatch.setattr(leases, "LOOK", 0.05)
    leases._keeper.cache_clear()  # the one that another test has started sleeps for longer
    system.dovecot.deliver_many(address, [message("large")])
    account = system.add_account(address, test=False)
    put = Storage.put
    others: list[EmailAccount | None] = []

    def dawdles(storage: Storage, blobs: Any) -> Any:
        for _ in range(12):
            time.sleep(0.5)
            others.append(EmailAccount.hold(account_row(account).id, 60))
        return put(storage, blobs)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", dawdles)
        poll(account_row(account).id, None)
    assert len(others) == 12 and set(others) == {None}
    row = account_row(account)
    assert (row.last_error, row.lease_until) == (None, None)
    assert len(system.messages(account)) == 1


def test_a_lease_that_was_given_back_is_not_renewed(system: System, address: str) -> None:
    held = EmailAccount.hold(account_row(system.add_account(address, test=False)).id, 60)
    assert held
    with database.transaction():
        assert held.renew(60)
    held.release()
    with database.transaction():
        assert not held.renew(60)
    assert account_row(held.uuid).lease_until is None


@pytest.fixture
def production(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot
) -> Iterator[System]:
    yield from run_system(SETS["production"](request, tmp_path), tmp_path, dovecot)


@pytest.mark.parametrize("hours", [-1, 1, 24])
def test_a_lease_ends_by_the_clock_of_the_database(
    production: System, dovecot: Dovecot, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a host whose clock is wrong
    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    account = accounts.create(
        address="someone@example.org",
        password="x",
        host="127.0.0.1",
        port=dovecot.imaps_port,
        test=False,
    )
    monkeypatch.setattr(database, "datetime", Wrong)
    # When it takes the account, then that holds as long as anywhere else
    leased = EmailAccount.lease(account.id, None, LEASE)
    assert leased is not None
    with database.connected():
        (theirs,) = database.proxy.execute_sql("SELECT clock_timestamp()").fetchone()
    end = account_row(account.uuid).lease_until
    assert abs((end - theirs.astimezone(UTC)).total_seconds() - LEASE) < 600
    assert EmailAccount.lease(account.id, None, LEASE) is None


def test_nothing_else_is_decided_by_a_machines_own_clock() -> None:
    root = Path(mailpoll.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("datetime.now", "datetime.utcnow", "time.time", "utcnow")
    }
    assert found == set(OWN_CLOCK)
