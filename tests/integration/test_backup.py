"""What docs/operations.md says of backups of PostgreSQL and a bucket, typed as it stands there.

The other half, of what ``mailpoll up`` keeps, is run by ``tests/docs``.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailpoll import database, fsck, runtime
from mailpoll.blobs import NewBlob, StorageType
from mailpoll.fsck import Tally
from mailpoll.models import TABLES, EmailRawMessage
from tests.docs.blocks import ROOT
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import account_row
from tests.integration.system import System
from tests.integration.test_retention import letter
from tests.servers.dovecot import Dovecot


@pytest.fixture
def production(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot
) -> Iterator[System]:
    yield from run_system(SETS["production"](request, tmp_path), tmp_path, dovecot)


def command(program: str) -> str:
    """The page's command of that name, in one line."""
    text = (ROOT / "docs/operations.md").read_text()
    found = re.search(rf"{program} [^`]*?\.dump(?: \"\$DATABASE_URL\")?", text)
    assert found, program
    return " ".join(found[0].split())


def typed(line: str, cwd: Path) -> None:
    """Run a line by a shell, with PostgreSQL's own programs first in its path."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", line],
        check=False,
        cwd=cwd,
        env={**os.environ, "PATH": path},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()


def in_bucket(account: str) -> dict[str, bytes]:
    """Every blob of an account, as it lies there."""
    store = runtime.storage().stores[StorageType.OSS]
    found = {}
    for one in store.list_account(account):
        with store.open(one.key) as stream:
            found[one.key] = stream.read()
    return found


def test_a_dump_and_the_bucket_bring_everything_back(
    production: System, address: str, tmp_path: Path
) -> None:
    # Given a backup in the order of the page: the database, then the bucket
    production.dovecot.deliver_many(address, [letter(f"number {n}") for n in range(3)])
    account = production.add_account(address)
    production.poll_and_process(account)
    before = production.messages(account)
    typed(command("pg_dump"), tmp_path)
    blobs = in_bucket(account)
    # When all is lost, and put back
    store = runtime.storage().stores[StorageType.OSS]
    store.delete_account(account)
    with database.transaction():
        for table in reversed(TABLES):
            table.delete().execute()
    typed(command("pg_restore"), tmp_path)
    store.put([NewBlob(key, len(raw), key.rpartition("/")[2], raw) for key, raw in blobs.items()])
    # Then nothing is missing, in the live lists of the server neither, and nothing comes twice
    tally = Tally()
    assert [one.as_line() for one in fsck.check(account_row(account), tally)] == []
    assert tally.unchecked == []
    production.poll_and_process(account)
    assert production.messages(account) == before
    with database.connected():
        assert EmailRawMessage.select().count() == 3
