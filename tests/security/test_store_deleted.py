"""After a deletion nothing of the mail can be read from what is left on disks."""

from pathlib import Path

import redis

from mailpoll import actors, database
from tests.integration.rows import account_row
from tests.integration.system import System
from tests.integration.test_secrets import everything_in_redis

CANARIES = [b"canary-subject", b"canary-body", b"canary-sender", b"canary-file", b"canary-folder"]


def letter(number: int) -> bytes:
    return (
        f"From: canary-sender <canary-sender{number}@example.org>\r\n"
        f"Subject: canary-subject {number}\r\n"
        f"Message-ID: <canary-sender{number}@x>\r\n"
        'Content-Type: multipart/mixed; boundary="b"\r\n\r\n'
        f"--b\r\n\r\n{'canary-body ' * 500}\r\n--b\r\n"
        f"Content-Disposition: attachment; filename=canary-file{number}.txt\r\n\r\n"
        f"canary-body {number}\r\n"
        "--b--\r\n"
    ).encode()


def files_with(directory: Path, words: list[bytes]) -> dict[str, list[bytes]]:
    """The files under a directory that hold any of the words, in their names too."""
    found = {}
    for path in directory.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        hits = [word for word in words if word in content or word in str(path).encode()]
        if hits:
            found[str(path.relative_to(directory))] = hits
    return found


def test_no_word_of_the_mail_is_left(system: System, address: str) -> None:
    """S63: SQLite's file and log, blobs, spool, Redis; rows of PostgreSQL."""
    words = [*CANARIES, address.encode()]
    for number in range(120):
        folder = {"folder": "canary-folder"} if number % 2 else {}
        system.dovecot.deliver(address, letter(number), **folder)
    account = system.add_account(address)
    system.poll_and_process(account)
    # Given that all of it is there, where it can be looked at
    directory = system.settings.data_dir
    if database.is_sqlite():
        assert files_with(directory, words)
    row_id = account_row(account).id
    # When the account is deleted
    job = system.api.simulate_delete(f"/admin/email-accounts/{account}").json
    system.work_until(lambda: system.get(f"/admin/jobs/{job['id']}")["state"] == "done")
    # Then no file has any of it, without anything else being done to the database
    assert files_with(directory, words) == {}
    text = everything_in_redis(system)
    assert not any(word.decode() in text for word in words)
    assert row_id
    if not database.is_sqlite():
        with database.connected():
            tables = database.proxy.execute_sql(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            ).fetchall()
            for (table,) in tables:
                rows = database.proxy.execute_sql(f'SELECT t::text FROM "{table}" t').fetchall()
                assert not any(word.decode() in str(rows) for word in words), table


def test_what_redis_writes_to_disk_never_had_it(system: System, address: str) -> None:
    """S63: the queue's file keeps what was in it for a while, which is numbers alone."""
    system.dovecot.deliver(address, letter(1))
    client = redis.Redis.from_url(system.settings.redis)
    with client.monitor() as monitor:
        account = system.add_account(address)
        system.poll_and_process(account)
        actors.schedule_polls.fn()
        client.echo("the end")
        for command in monitor.listen():
            if command["command"] == "ECHO the end":
                break
            text = command["command"].encode()
            assert not any(word in text for word in [*CANARIES, address.encode(), b"secret"])
