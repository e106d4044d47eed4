"""A password and a token go nowhere but where they belong, whatever goes wrong."""

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from mailpoll import database, logs
from mailpoll.models import TABLES
from tests.integration.conftest import _embedded, _production, run_system
from tests.integration.system import PASSWORD, System, message
from tests.integration.test_cli import clean, run
from tests.servers.dovecot import Dovecot

RIGHT = PASSWORD
WRONG = "canary-password-91c4"
TOKEN = "canary-token-52a0-" + "x" * 20
URL = "/admin/email-accounts"
NAMES = ("MAILPOLL_", "REDIS_URL", "DATABASE_URL", "STORAGE_URL")


@pytest.fixture(params=[_embedded, _production], ids=["embedded", "production"])
def system(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    variables = request.param(request, tmp_path)
    tokens = {"MAILPOLL_API_TOKEN": f"{TOKEN},{TOKEN[::-1]}", "MAILPOLL_LOG_LEVEL": "debug"}
    for started in run_system(variables, tmp_path, dovecot, **tokens):
        # What the process writes, at a level that lets everything through
        root = logging.getLogger()
        root.setLevel(logging.DEBUG)
        started.log = io.StringIO()
        root.handlers[0].setStream(started.log)
        yield started
        logs.configure("info", "console")


def everything_in_redis(system: System) -> str:
    client = redis.Redis.from_url(system.settings.redis)
    readers = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
    }
    return repr([(key, readers[client.type(key)](key)) for key in client.scan_iter()])


def everything_in_the_database() -> str:
    with database.connected():
        return repr([list(table.select().dicts()) for table in TABLES])


def test_canaries_stay_where_they_belong(
    system: System,
    address: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    system.api = type(system.api)(system.api.app, headers={"Authorization": f"Bearer {TOKEN}"})
    shown = []

    def note(method: str, path: str, **options: object) -> None:
        answer = system.api.simulate_request(method, path, **options)
        shown.append(f"{answer.status_code} {answer.headers} {answer.text}")

    # Given an account that works, and one whose password is refused
    system.dovecot.deliver(address, message("hello"))
    good = system.add_account(address)
    system.poll_and_process(good)
    bad = system.add_account(f"bad-{address}", password=WRONG, test=False)
    system.work_until(lambda: system.get(f"{URL}/{bad}")["last_error"])

    # When everything is asked for, and much of it goes wrong
    refused = system.new_account(f"worse-{address}", password=WRONG)
    note("POST", URL, json=refused)
    note("POST", URL, json={**refused, "host": "imap.invalid"})
    note("POST", URL, json={**refused, "port": 0, "colour": WRONG})
    note("POST", URL, json={**refused, "password": [WRONG]})
    note("POST", URL, body=b'{"password": "' + WRONG.encode())
    note("POST", URL, json={**refused, "security": "starttls", "port": system.dovecot.imap_port})
    note("PATCH", f"{URL}/{good}", json={"password": WRONG})
    note("POST", f"{URL}/{bad}/test")
    for account in (good, bad):
        for part in ("", "/stats", "/messages"):
            note("GET", f"{URL}/{account}{part}")
    for path in ("/admin/stats", "/admin/tasks", "/metrics", "/readyz", "/dashboard", URL):
        note("GET", path)
    note("GET", "/dashboard/queues/poll")
    note("GET", "/admin/stats", headers={"Authorization": f"Bearer {TOKEN}x"})
    note("GET", "/admin/nowhere")

    # And by the command line too
    variables = clean({n: v for n, v in os.environ.items() if n.startswith(NAMES)})
    variables["MAILPOLL_LOG_LEVEL"] = "debug"
    place = ["--host", "localhost", "--port", str(system.dovecot.imaps_port)]
    for arguments, given in (
        (["accounts", "add", f"cli-{address}", "--password-stdin", *place], WRONG),
        (["accounts", "add", f"cli-{address}", "--password-stdin", "--port", "1"], WRONG),
        (["accounts", "test", f"bad-{address}"], ""),
        (["accounts", "list", "--json"], ""),
        (["stats"], ""),
        (["stats", f"bad-{address}"], ""),
    ):
        result = run(*arguments, variables=variables, cwd=tmp_path, given=given.encode())
        shown.append((result.stdout + result.stderr).decode())

    # Then neither canary is anywhere
    places = {
        "answers and commands": "\n".join(shown),
        "log": system.log.getvalue()
        + caplog.text
        + repr([record.__dict__ for record in caplog.records]),
        "redis": everything_in_redis(system),
        "database": everything_in_the_database(),
    }
    for name, text in places.items():
        assert text, name
        for canary in (WRONG, TOKEN, TOKEN[::-1], system.settings.secret_keys[0]):
            assert canary not in text, name
    assert f"'{RIGHT}'" not in places["database"]
