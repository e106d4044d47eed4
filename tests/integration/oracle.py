"""What holds at the end of every test: all that is left agrees, and all of it can be deleted."""

from typing import Any

import pytest
import redis
from dramatiq import Message
from peewee import fn

from mailpoll import accounts, actors, database, fsck, queues, runtime, stats
from mailpoll.blobs.s3 import S3
from mailpoll.broker import MAINTENANCE, POLLER_QUEUES, WEBHOOKS, redis_client
from mailpoll.fsck import Outcome, Tally
from mailpoll.models import (
    AccountState,
    EmailAccount,
    EmailAccountDay,
    EmailDay,
    EmailEvent,
    EmailJob,
    EmailRawMessage,
    WebhookDelivery,
)
from tests.integration.rows import counts
from tests.integration.system import System

#: The test that runs now.
running: list[pytest.Item] = []


def assert_sound() -> None:
    """Rows, counters and blobs agree with each other."""
    tally = Tally()
    found = fsck.check(None, tally, offline=True)
    wrong = [one.as_line() for one in found if one.outcome is not Outcome.RECENT]
    assert wrong + tally.unchecked == []
    assert by_day(EmailDay) == by_day(EmailAccountDay)


def by_day(table: Any) -> list[Any]:
    """The counters of all accounts together, day by day."""
    sums = [fn.SUM(getattr(table, name)) for name in stats.SUMS]
    with database.connected():
        return list(table.select(table.day, *sums).group_by(table.day).order_by(table.day).tuples())


def assert_all_can_be_deleted(system: System) -> None:
    """Delete every account as operators do; nothing of it is left anywhere."""
    with database.transaction():
        # A test may have written the state of a deletion without having asked for one.
        EmailAccount.update(state=AccountState.ACTIVE).where(
            EmailAccount.uuid.not_in(EmailJob.select(EmailJob.account_uuid))
        ).execute()
        rows = list(EmailAccount.select(EmailAccount.id, EmailAccount.uuid, EmailAccount.address))
        messages = {row_id for (row_id,) in EmailRawMessage.select(EmailRawMessage.id).tuples()}
    for row in rows:
        job = accounts.delete(row.uuid)
        assert job is not None
        # A worker that a test has killed in a deletion does not come back.
        with database.transaction():
            EmailJob.update(lease_until=None).where(EmailJob.id == job.id).execute()
        actors.delete_account.fn(job.id)
    # Tombstones stay, and what belongs to no account.
    stays = {"email_jobs", "email_hosts", "email_events", "webhook_endpoints", "webhook_deliveries"}
    stays |= {"api_keys", "email_scrub"}
    assert set(counts()) <= stays
    with database.connected():
        for table in (EmailEvent, WebhookDelivery):
            assert not table.select().where(table.account_id.is_null(False)).exists()
    assert_no_words_are_left()
    assert_stores_are_empty(system)
    client = redis_client(system.settings)
    assert_queues_are_free_of({row.id for row in rows}, messages, client)
    names = {name.encode() for row in rows for name in (row.uuid, row.address)}
    assert [key for key, text in everything_in(client) if any(one in text for one in names)] == []


def assert_no_words_are_left() -> None:
    """SQLite's index of words is a table of its own; PostgreSQL has them in rows."""
    if database.is_sqlite():
        sql = "SELECT COUNT(*) FROM email_search_index WHERE email_search_index MATCH 'x_'"
        with database.connected():
            assert database.proxy.execute_sql(sql).fetchone() == (0,)


def assert_stores_are_empty(system: System) -> None:
    """No object in the bucket, and no file in the directories of blobs and of the spool."""
    directory = system.settings.data_dir
    files = [
        str(path.relative_to(directory))
        for place in ("blobs", "spool")
        for path in (directory / place).rglob("*")
        if not path.is_dir() or place == "spool"
    ]
    assert files == []
    for store in runtime.storage().stores.values():
        if isinstance(store, S3) and store._client.bucket_exists(store._bucket):
            found = store._client.list_objects(store._bucket, recursive=True)
            assert [one.object_name for one in found] == []


def assert_queues_are_free_of(
    account_ids: set[int], message_ids: set[int], client: "redis.Redis[bytes]"
) -> None:
    """No entry, waiting, delayed or dead, for an account or a message."""
    for queue in queues.QUEUES:
        if queue in (MAINTENANCE, WEBHOOKS):
            continue  # their entries name jobs, exports and endpoints
        ids = account_ids if queue in POLLER_QUEUES else message_ids
        for kind in ("", ".DQ", ".XQ"):
            entries = client.hvals(f"mailpoll:{queue}{kind}.msgs")
            left = [Message.decode(data) for data in entries]
            assert [one for one in left if one.args and ids & rows_of(one.args[0])] == []


def rows_of(argument: int | list[int] | dict[str, int]) -> set[int]:
    """The rows that an entry is about, unless it is about many accounts' polls."""
    if isinstance(argument, dict):
        return set()
    return set(argument) if isinstance(argument, list) else {argument}


READERS = {
    b"string": lambda client, key: client.get(key),
    b"hash": lambda client, key: client.hgetall(key),
    b"list": lambda client, key: client.lrange(key, 0, -1),
    b"set": lambda client, key: client.smembers(key),
    b"zset": lambda client, key: client.zrange(key, 0, -1),
}


def everything_in(client: "redis.Redis[bytes]") -> list[tuple[bytes, bytes]]:
    """Each key, and its name and value as text."""
    return [
        (key, key + repr(READERS[client.type(key)](client, key)).encode())
        for key in client.scan_iter(count=1_000)
    ]
