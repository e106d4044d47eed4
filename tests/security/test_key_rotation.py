"""The key ring: replacing a key under load, killed half way, and taking one away too early."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import peewee
import pytest

from mailpoll import accounts, alarms, database, keys, oauth, runtime, webhooks
from mailpoll.crypto import KeyRing, key_id
from mailpoll.models import TABLES, AuditEvent, EmailAccount
from mailpoll.settings import SettingsError, from_environment, new_key, settings
from tests.integration.rows import account_row
from tests.integration.system import KEY, PASSWORD, System
from tests.integration.test_cli import clean, run
from tests.security.test_audit import variables

Fill = Callable[..., list[str]]

NEW = new_key()
BOTH = KeyRing([NEW, KEY])


@contextmanager
def ring(*ring_keys: str) -> Iterator[KeyRing]:
    """Let this process have another ring, as if it had been started again."""
    before = os.environ["MAILPOLL_SECRET_KEY"]
    os.environ["MAILPOLL_SECRET_KEY"] = ",".join(ring_keys)
    try:
        settings.cache_clear()
        runtime.keyring.cache_clear()
        yield runtime.keyring()
    finally:
        os.environ["MAILPOLL_SECRET_KEY"] = before
        settings.cache_clear()
        runtime.keyring.cache_clear()


def _fill(amount: int, with_tokens: bool = False) -> list[str]:
    """Accounts that nobody polls, their secrets sealed with the old key; their uuids."""
    sealing, moment = KeyRing([KEY]), datetime.now(UTC)
    rows = []
    for number in range(amount):
        uuid = str(uuid4())
        names = [
            "credential",
            *(("refresh_token", "access_token", "data_key") if with_tokens else ()),
        ]
        rows.append(
            {
                "uuid": uuid,
                "address": f"{uuid}@example.org",
                "host": "localhost",
                "port": 993,
                "security": "tls",
                "username": "u",
                "data_key": "",
                **{name: sealing.encrypt(f"{name} {number}", f"{uuid}:{name}") for name in names},
                "poll_interval": 86_400,
                "state": "paused",
                "next_poll_at": moment,
                "created_at": moment,
                "updated_at": moment,
            }
        )
    with database.transaction():
        for page in peewee.chunked(rows, 100):
            EmailAccount.insert_many(page).execute()
    return [row["uuid"] for row in rows]


@pytest.fixture
def fill() -> Iterator[Fill]:
    """Makes such accounts. To be named after the system, whose end would take long with so many."""
    yield _fill
    with database.transaction():
        EmailAccount.delete().where(EmailAccount.username == "u").execute()


def opened(*ring_keys: str) -> set[str]:
    """Every credential, opened."""
    with database.connected():
        rows = list(EmailAccount.select(EmailAccount.uuid, EmailAccount.credential))
    opening = KeyRing(list(ring_keys))
    return {opening.decrypt(row.credential, f"{row.uuid}:credential") for row in rows}


def sealed_by(key: str) -> int:
    return sum(keys.counts().get(key_id(key), {}).values())


def test_every_secret_is_sealed_with_the_new_key(system: System, fill: Fill) -> None:
    """S42: n of n, column by column, and it says the same as before."""
    fill(250, with_tokens=True)
    seen = []
    done = keys.rotate(BOTH, lambda rotation: seen.append(rotation.done))
    assert (done.done, done.total, done.unreadable) == (1_000, 1_000, [])
    assert seen == [400, 800, 1_000]
    assert keys.counts() == {
        key_id(NEW): {
            "email_accounts.credential": 250,
            "email_accounts.refresh_token": 250,
            "email_accounts.access_token": 250,
            "email_accounts.data_key": 250,
        }
    }
    assert opened(NEW) == {f"credential {number}" for number in range(250)}


def test_a_second_run_finds_nothing_to_do(system: System, fill: Fill) -> None:
    """S42"""
    fill(3)
    keys.rotate(BOTH, lambda _: None)
    with database.connected():
        before = list(EmailAccount.select().dicts())
    assert keys.rotate(BOTH, lambda _: None).total == 0
    with database.connected():
        assert list(EmailAccount.select().dicts()) == before


def test_no_sealed_column_is_left_out(system: System, address: str) -> None:
    """S42: what looks sealed anywhere in the database is in the list that is rotated."""
    account = system.add_account(address)
    grant = oauth.Grant("access", "refresh", 3_600)
    kept = {**oauth.stored(account, "generic", "refresh"), **oauth.granted(account, grant)}
    endpoint, _ = webhooks.create("https://example.org/")
    webhooks.rotate(endpoint)
    with database.transaction():
        EmailAccount.update(**kept).execute()
        found = {
            f"{table._meta.table_name}.{name}"
            for table in TABLES
            for row in table.select().dicts()
            for name, value in row.items()
            if isinstance(value, str) and re.match(r"v\d+\.[0-9a-f]{8}\.", value)
        }
    assert len(found) >= 3
    assert found == {f"{c.model._meta.table_name}.{c.name}" for c in keys.SEALED}


def test_a_rotation_that_is_killed_goes_on_where_it_was(
    system: System, fill: Fill, tmp_path: Path
) -> None:
    """S42"""
    fill(3_000)
    environ = {**variables(), "MAILPOLL_SECRET_KEY": f"{NEW},{KEY}"}
    # Given a rotation that is killed after its first transactions
    process = subprocess.Popen(
        [sys.executable, "-m", "mailpoll", "keys", "rotate"],
        cwd=tmp_path,
        env=clean(environ),
        stderr=subprocess.PIPE,
    )
    assert b"of 3,000 secrets" in process.stderr.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    # Then nothing is lost, some is done, and some is not
    new, old = sealed_by(NEW), sealed_by(KEY)
    assert new + old == 3_000
    assert new > 0
    assert old > 0
    assert len(opened(NEW, KEY)) == 3_000
    # And the old key may not go yet
    result = run("keys", "remove", key_id(KEY), variables=environ, cwd=tmp_path)
    assert result.returncode == 1
    assert f"{key_id(KEY)} is needed by {old:,} email_accounts.credential" in result.stderr.decode()
    # When it is run again
    result = run("keys", "rotate", "--json", variables=environ, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["done"], report["total"], report["left"]) == (old, old, {})
    # Then the new key opens everything, and the old one may go
    assert len(opened(NEW)) == 3_000
    result = run("keys", "remove", key_id(KEY), variables=environ, cwd=tmp_path)
    assert result.returncode == 0
    assert KEY.encode() not in result.stdout + result.stderr


def test_what_is_written_meanwhile_is_kept(system: System, fill: Fill) -> None:
    """S42: under load, each secret is the last that was written."""
    uuids = fill(600)
    with ring(NEW, KEY):
        failures: list[BaseException] = []

        def write(mine: list[str], name: str) -> None:
            try:
                for round_number in range(4):
                    for uuid in mine:
                        fields = {"password": f"{name} {round_number}"}
                        accounts.change(account_row(uuid), fields, test=False)
            except BaseException as failure:
                failures.append(failure)

        threads = [
            threading.Thread(target=write, args=(uuids[n : n + 20], f"writer {n}"))
            for n in (0, 200, 400, 580)
        ]
        for thread in threads:
            thread.start()
        done = keys.rotate(BOTH, lambda _: None)
        for thread in threads:
            thread.join()
    assert failures == []
    assert done.unreadable == []
    assert sealed_by(KEY) == 0
    found = opened(NEW)
    assert {f"writer {n} 3" for n in (0, 200, 400, 580)} <= found
    assert len(found) == 600 - 80 + 4


class Meddling(KeyRing):
    """A ring whose first encryption takes long enough for somebody else to write."""

    def __init__(self, ring_keys: list[str], meddler: threading.Thread) -> None:
        super().__init__(ring_keys)
        self._meddler = meddler

    def encrypt(self, text: str, context: str) -> str:
        if self._meddler.ident is None:
            self._meddler.start()
            self._meddler.join(0.5)
        return super().encrypt(text, context)


def test_a_change_in_the_middle_of_a_page_is_not_overwritten(system: System, fill: Fill) -> None:
    """S42: a change comes before the page or after it."""
    (uuid,) = fill(1)

    def change() -> None:
        accounts.change(account_row(uuid), {"password": "meanwhile"}, test=False)

    with ring(NEW, KEY):
        meddler = threading.Thread(target=change)
        keys.rotate(Meddling([NEW, KEY], meddler), lambda _: None)
        meddler.join()
    assert opened(NEW) == {"meanwhile"}


def test_polls_go_on_with_either_key(system: System, address: str) -> None:
    """S42"""
    account = system.add_account(address)
    with ring(NEW, KEY) as both:
        system.poll_and_process(account)
        keys.rotate(both, lambda _: None)
        system.poll_and_process(account)
    with ring(NEW):
        system.poll_and_process(account)
        assert system.get(f"/admin/email-accounts/{account}")["last_error"] is None


def test_what_no_key_opens_is_named_and_left(system: System, fill: Fill, tmp_path: Path) -> None:
    """S42"""
    (uuid, *_) = fill(2)
    lost = KeyRing([new_key()]).encrypt(PASSWORD, f"{uuid}:credential")
    with database.transaction():
        EmailAccount.update(credential=lost).where(EmailAccount.uuid == uuid).execute()
    environ = {**variables(), "MAILPOLL_SECRET_KEY": f"{NEW},{KEY}"}
    result = run("keys", "rotate", "--json", variables=environ, cwd=tmp_path)
    report = json.loads(result.stdout)
    assert result.returncode == 1
    assert report["done"] == 1
    assert report["unreadable"] == [f"{uuid}:credential"]
    with database.connected():
        assert EmailAccount.get(EmailAccount.uuid == uuid).credential == lost


def test_keys_that_are_old_or_missing_are_an_alarm(system: System, fill: Fill) -> None:
    """S42"""

    def words() -> str | None:
        alarms.look(system.broker)
        return next((one.words for one in alarms.known() if one.name == "keys"), None)

    fill(3)
    assert words() is None
    with ring(NEW, KEY) as both:
        assert words() == "3 stored secrets are sealed with an old key"
        keys.rotate(both, lambda _: None)
        assert alarms.ALARMS["keys"].look(system.broker) is None
    assert words() == "3 stored secrets cannot be opened: their keys are missing"


def test_the_status_counts_rows_of_each_key(system: System, fill: Fill, tmp_path: Path) -> None:
    """S42"""
    fill(3)
    environ = {**variables(), "MAILPOLL_SECRET_KEY": f"{NEW},{KEY}"}
    result = run("keys", "status", "--json", variables=environ, cwd=tmp_path)
    assert result.returncode == 0
    assert json.loads(result.stdout)["keys"] == [
        {"id": key_id(NEW), "in_ring": True, "first": True, "secrets": 0, "columns": {}},
        {
            "id": key_id(KEY),
            "in_ring": True,
            "first": False,
            "secrets": 3,
            "columns": {"email_accounts.credential": 3},
        },
    ]
    environ["MAILPOLL_SECRET_KEY"] = NEW
    result = run("keys", "status", variables=environ, cwd=tmp_path)
    assert result.returncode == 1
    assert b"missing" in result.stdout


def test_the_metrics_count_rows_of_each_key(system: System, fill: Fill) -> None:
    """S42"""
    fill(3)
    with ring(NEW, KEY):
        text = system.api.simulate_get("/metrics").text
    assert f'mailpoll_key_rows{{key_id="{key_id(KEY)}"}} 3.0' in text
    assert f'mailpoll_key_rows{{key_id="{key_id(NEW)}"}} 0.0' in text


@pytest.mark.parametrize("command", ["web", "poller", "up"])
def test_no_process_starts_without_a_key_that_is_needed(
    system: System, fill: Fill, tmp_path: Path, command: str
) -> None:
    """S42: it says which key, and how much needs it."""
    fill(3)
    environ = {**variables(), "MAILPOLL_SECRET_KEY": NEW}
    result = run(command, variables=environ, cwd=tmp_path)
    line = result.stderr.decode().splitlines()[-1]
    assert result.returncode == 1
    assert line.startswith("mailpoll: MAILPOLL_SECRET_KEY: ")
    assert f"{key_id(KEY)} (3 email_accounts.credential)" in line
    assert "MAILPOLL_ALLOW_MISSING_KEYS" in line


def test_a_key_that_is_lost_for_good_need_not_stop_everything(
    system: System, fill: Fill, caplog: pytest.LogCaptureFixture
) -> None:
    """S42: but the log says so at each start."""
    fill(3)
    config = from_environment({"MAILPOLL_SECRET_KEY": NEW, "MAILPOLL_ALLOW_MISSING_KEYS": "yes"})
    keys.require(config)
    assert key_id(KEY) in caplog.text
    assert any("MAILPOLL_ALLOW_MISSING_KEYS" in concern for concern in config.concerns())
    strict = from_environment({"MAILPOLL_SECRET_KEY": NEW})
    with pytest.raises(SettingsError):
        keys.require(strict)


@pytest.mark.parametrize(
    ("name", "reason"),
    [(key_id(NEW), "first key"), ("00000000", "has no key 00000000")],
    ids=["first", "unknown"],
)
def test_a_key_that_cannot_go_is_refused(
    embedded: System, tmp_path: Path, name: str, reason: str
) -> None:
    """S42"""
    environ = {**variables(), "MAILPOLL_SECRET_KEY": f"{NEW},{KEY}"}
    result = run("keys", "remove", name, variables=environ, cwd=tmp_path)
    assert result.returncode == 1
    assert reason in result.stderr.decode()


def test_a_key_in_a_file_is_taken_out_of_it(embedded: System, fill: Fill, tmp_path: Path) -> None:
    """S42: refused while it is needed, and the file stays its owner's alone."""
    fill(1)
    file = embedded.settings.data_dir / "secret.key"
    file.touch(0o600)
    file.write_text(f"{NEW}\n{KEY}\n")
    environ = {n: v for n, v in variables().items() if n != "MAILPOLL_SECRET_KEY"}

    def remove() -> "subprocess.CompletedProcess[bytes]":
        return run("keys", "remove", key_id(KEY), variables=environ, cwd=tmp_path)

    assert remove().returncode == 1
    assert file.read_text().split() == [NEW, KEY]
    assert run("keys", "rotate", variables=environ, cwd=tmp_path).returncode == 0
    assert remove().returncode == 0
    assert file.read_text().split() == [NEW]
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.glob("secret*")) == [file]
    with database.connected():
        actions = [row.action for row in AuditEvent.select().order_by(AuditEvent.id)]
    assert actions == ["keys.rotate", "keys.remove"]


def test_a_secret_moved_to_another_row_or_changed_opens_nothing(
    embedded: System, fill: Fill
) -> None:
    """S41, S42: a rotation does not make a moved secret good."""
    first, second = fill(2)
    moved: Any = account_row(first).credential
    with database.transaction():
        EmailAccount.update(credential=moved).where(EmailAccount.uuid == second).execute()
    done = keys.rotate(BOTH, lambda _: None)
    assert done.unreadable == [f"{second}:credential"]
    assert account_row(second).credential == moved
