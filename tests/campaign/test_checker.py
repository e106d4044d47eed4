"""The checker finds each kind of damage, and nothing where there is none."""

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from mailpoll import database
from mailpoll.actors.poll import poll
from mailpoll.actors.process import process
from mailpoll.models import EmailAccount, EmailRawMessage
from tests.campaign.checker import NOISE, SETS, usage
from tests.campaign.mail import Post
from tests.campaign.world import PASSWORD, Backing, World
from tests.servers.postgres import Postgres
from tests.servers.seaweed import Seaweed
from tests.servers.valkey import Valkey

OLD = 200_000  # seconds


@pytest.fixture
def server(server_directory: Path) -> Iterator[Valkey]:
    with Valkey(server_directory / "redis") as started:
        assert isinstance(started, Valkey)
        yield started


@pytest.fixture
def world(server: Valkey, tmp_path: Path) -> Iterator[World]:
    """A world on the embedded set in which all is well."""
    with World(tmp_path / "world", Backing("embedded", server)) as made:
        filled(made)
        yield made


def filled(world: World) -> None:
    post = world.account()
    world.deliver(post, 6, attachments=2)
    with database.connected():
        account = EmailAccount.get()
    poll(account.id, None)
    with database.connected():
        rows = [row.id for row in EmailRawMessage.select()]
    for row in rows:
        process([row])
    (world.directory / "worker.log").write_text('{"level": "info", "event": "all is well"}\n')


def post_of(world: World) -> Post:
    return next(iter(world.office.posts.values()))


def sets_found(world: World, *options: str) -> set[str]:
    report = world.check(*options)
    return {name for name in SETS if report[name]}


def sql(*statements: str) -> None:
    with database.transaction():
        for statement in statements:
            database.proxy.execute_sql(statement)


def without_constraints(table: str) -> None:
    sql(
        f"CREATE TABLE bare AS SELECT * FROM {table}",
        f"DROP TABLE {table}",
        f"ALTER TABLE bare RENAME TO {table}",
    )


def blob(world: World) -> Path:
    return next(path for path in sorted((world.data / "blobs").rglob("*")) if path.is_file())


def lose_a_message(world: World) -> None:
    post = post_of(world)
    manifest = world.office.manifest
    place = {"account": post.address, "folder": "INBOX", "uidvalidity": 1, "uid": 77}
    manifest.write("message", **place, sha256="0" * 64, size=1, attachments=[])
    manifest.write("session", account=post.address, began=time.time() + 1)


def lose_an_attachment(world: World) -> None:
    sql("DELETE FROM email_attachments WHERE id = (SELECT MAX(id) FROM email_attachments)")


def invent_a_place(world: World) -> None:
    columns = "folder_id, uidvalidity, generation, uid, message_id, message_date, seen_at"
    values = columns.replace(" uid,", " 999,")
    sql(
        f"INSERT INTO email_locations ({columns}) SELECT {values} FROM email_locations "
        "ORDER BY id LIMIT 1"
    )


def double_a_place(world: World) -> None:
    without_constraints("email_locations")
    sql(
        "CREATE UNIQUE INDEX bare_id ON email_locations (id)",  # flags refer to it
        "CREATE TEMP TABLE one AS SELECT * FROM email_locations ORDER BY id LIMIT 1",
        "UPDATE one SET id = id + 100000",
        "INSERT INTO email_locations SELECT * FROM one",
        "DROP TABLE one",
    )


def flip_a_bit(world: World) -> None:
    content = bytearray(blob(world).read_bytes())
    content[5] ^= 1
    blob(world).write_bytes(content)


def tell_a_wrong_size(world: World) -> None:
    sql("UPDATE email_raw_messages SET size = size + 1 WHERE id = 1")


def point_at_other_mail(world: World) -> None:
    sql(
        "UPDATE email_locations SET message_id = (SELECT MAX(id) FROM email_raw_messages) "
        "WHERE id = (SELECT MIN(id) FROM email_locations)",
    )


def remove_a_blob(world: World) -> None:
    blob(world).unlink()


def leave_a_blob(world: World) -> None:
    digest = hashlib.sha256(b"stray").hexdigest()
    uuid = next(iter(world.uuids.values()))
    path = world.data / "blobs" / uuid / digest[:2] / digest
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"stray")
    os.utime(path, (time.time() - OLD, time.time() - OLD))


def leave_a_temporary_file(world: World) -> None:
    path = world.data / "blobs" / ".tmp" / "left"
    path.touch()
    os.utime(path, (time.time() - OLD, time.time() - OLD))


def forget_to_process(world: World) -> None:
    sql("UPDATE email_raw_messages SET status = 'stored' WHERE id = 1")


def fail_a_message(world: World) -> None:
    sql("UPDATE email_raw_messages SET status = 'failed' WHERE id = 1")


def let_a_lease_lapse(world: World) -> None:
    sql("UPDATE email_accounts SET lease_until = '2020-01-01 00:00:00.000000+00:00'")


def leave_a_dead_message(world: World) -> None:
    client = redis.Redis.from_url(world.backing.redis.url)
    client.zadd("mailpoll:process.XQ", {"one": 1})
    client.hset("mailpoll:process.XQ.msgs", "one", '{"actor_name": "process_message"}')


def leave_a_fetch_waiting(world: World) -> None:
    sql(
        "INSERT INTO email_fetch_failures (folder_id, uidvalidity, generation, uid, verdict, "
        "reason, attempts, seen_at) SELECT folder_id, uidvalidity, generation, 55, 'waiting', "
        "'', 1, seen_at FROM email_locations LIMIT 1"
    )


def set_a_flag(world: World) -> None:
    with socket.create_connection(("127.0.0.1", post_of(world).port)) as client:
        client.sendall(b"a LOGIN x y\r\nb UID STORE 1 +FLAGS (\\Seen)\r\nc NOOP\r\n")
        received = b""
        while b"c OK" not in received:
            received += client.recv(4_096)


def log_an_error(world: World) -> None:
    with (world.directory / "worker.log").open("a") as log:
        log.write('{"event": "poll failed", "level": "error"}\n')


DAMAGES: dict[Callable[[World], None], set[str]] = {
    lose_a_message: {"lost"},
    lose_an_attachment: {"lost"},
    invent_a_place: {"unexpected"},
    double_a_place: {"duplicated"},
    flip_a_bit: {"corrupt"},
    tell_a_wrong_size: {"corrupt"},
    point_at_other_mail: {"corrupt", "lost", "unexpected"},
    remove_a_blob: {"missing"},
    leave_a_blob: {"orphan"},
    leave_a_temporary_file: {"orphan"},
    forget_to_process: {"stuck"},
    fail_a_message: {"stuck"},
    let_a_lease_lapse: {"stuck"},
    leave_a_dead_message: {"stuck"},
    leave_a_fetch_waiting: {"stuck"},
    set_a_flag: {"moved"},
    log_an_error: {"errors"},
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damage_is_found_as_what_it_is(world: World, damage: Callable[[World], None]) -> None:
    assert sets_found(world) == set()
    damage(world)
    assert sets_found(world) == DAMAGES[damage]


def test_what_a_deletion_leaves_is_found(world: World) -> None:
    # Given an account that is said to be deleted, of which all is still there
    uuid, address = next((uuid, address) for address, uuid in world.uuids.items())
    client = redis.Redis.from_url(world.backing.redis.url)
    client.set("mailpoll:x", f"{{'account': '{uuid}'}}")
    world.deleted[uuid] = address
    sql(
        "INSERT INTO email_jobs (uuid, kind, account_uuid, account_id, state, step, counts, "
        f"created_at, updated_at) VALUES ('{uuid4()}', 'delete_account', '{uuid}', 1, 'done', "
        "'done', '{}', '2026-11-25', '2026-11-25')",
        "INSERT INTO webhook_endpoints (uuid, url, description, secret, imports, payload, "
        "body_limit, state, position, attempts, lease_token, created_at, updated_at) VALUES "
        "('x', 'https://x.example', '', '', 0, 'ids', 1, 'active', 0, 0, 0, '2026-11-25', "
        "'2026-11-25')",
        "INSERT INTO webhook_deliveries (endpoint_id, event_number, event_type, account_id, "
        "attempt, outcome, request, duration_ms, created_at) VALUES (1, 1, 'message.new', 1, 1, "
        "'failed', '', 1, '2026-11-25')",
        "INSERT INTO email_exports (uuid, account_id, format, selection, state, complete, "
        "messages, unreadable, bytes, parts, expected, attempts, lease_token, created_at, "
        "updated_at) VALUES ('x', 1, 'mbox', '{}', 'done', 1, 0, 0, 0, 1, 0, 1, 1, "
        "'2026-11-25', '2026-11-25')",
        "INSERT INTO email_export_parts (account_id, export_id, number, directory, size, sha256, "
        "storage_type, storage_key) VALUES (1, 1, 1, 0, 1, 'x', 'local', 'x')",
        "INSERT INTO email_damages (account_id, message_id, storage_key, kind, reason, found_at, "
        "next_attempt_at) VALUES (1, 1, 'x', 'missing', '', '2026-11-25', '2026-11-25')",
    )
    # Then rows, blobs and keys are found
    text = json.dumps(world.check()["leaked"])
    rows = [f"email_{name}" for name in ("accounts", "folders", "raw_messages", "events")]
    rows += ["webhook_deliveries", "email_damages", "email_exports", "email_export_parts"]
    for what in (*rows, "blob local", "redis"):
        assert what in text


def test_what_a_worker_never_ended_is_found_when_nobody_works(world: World) -> None:
    client = redis.Redis.from_url(world.backing.redis.url)
    client.sadd("mailpoll:__acks__.of-a-worker.process", "one")
    # Who works has something in hand, and nobody else has
    assert sets_found(world) == set()
    assert sets_found(world, "--settled") == {"stuck"}


def test_connections_that_a_process_had_not_before_are_found(world: World) -> None:
    had = usage(os.getpid())
    before = ":".join(map(str, (os.getpid(), *had.values())))
    options = ("--pid", str(os.getpid()), "--before", before)
    assert sets_found(world, *options) == set()
    with ExitStack() as stack:
        for _number in range(NOISE["connections"] + 10):
            stack.enter_context(socket.socket())
        assert sets_found(world, *options) == {"held"}


def test_a_secret_in_a_file_is_found(world: World) -> None:
    (world.directory / "dump.txt").write_text(f"login someone {PASSWORD}")
    assert sets_found(world) == {"leaked"}


def test_a_blob_in_two_stores_and_a_missing_object_are_found(
    server: Valkey, tmp_path: Path, postgres: Postgres, seaweed: Seaweed
) -> None:
    name = f"campaign-{uuid4().hex[:12]}"
    backing = Backing("production", server, postgres.create_database(name), seaweed, name, postgres)
    try:
        with World(tmp_path / "world", backing) as world:
            filled(world)
            assert sets_found(world) == set()
            objects = list(seaweed.client().list_objects(name, recursive=True))
            key = str(objects[0].object_name)
            content: Any = seaweed.client().get_object(name, key).read()
            path = world.data / "blobs" / key
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
            assert sets_found(world) == {"duplicated"}
            seaweed.client().remove_object(name, key)
            assert sets_found(world) == {"missing"}
    finally:
        postgres.drop_database(name)
        seaweed.drop_bucket(name)
