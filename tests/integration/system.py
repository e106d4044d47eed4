"""A whole mailpoll inside the test process, on real servers, driven by hand."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import dramatiq
import falcon.testing
from dramatiq import Worker

from mailpoll import database, migrate, queues, runtime
from mailpoll.broker import Broker, make_broker
from mailpoll.models import TABLES
from mailpoll.settings import Settings, new_key, new_token, settings
from tests.servers.dovecot import Dovecot

TOKEN = new_token()
KEY = new_key()
PASSWORD = "secret"
#: Seconds that a test waits for background work; reached only when something is broken.
PATIENCE = 60


class System:
    """Database, store, queue and web application of one test.

    Parameters:
      dovecot: where the test's mailboxes are.
    """

    def __init__(self, dovecot: Dovecot, broker: Broker) -> None:
        self.dovecot = dovecot
        self.broker = broker

    @cached_property
    def api(self) -> falcon.testing.TestClient:
        """Made when a test first asks for it: many do not."""
        from mailpoll.web.app import create_app

        return falcon.testing.TestClient(create_app(), headers={"Authorization": f"Bearer {TOKEN}"})

    @property
    def settings(self) -> Settings:
        return settings()

    def new_account(self, address: str, **fields: Any) -> dict[str, Any]:
        """The JSON of a request that adds a mailbox of the test's Dovecot."""
        return {
            "address": address,
            "password": PASSWORD,
            "host": "localhost",
            "port": self.dovecot.imaps_port,
            **fields,
        }

    def add_account(self, address: str, **fields: Any) -> str:
        """Add a mailbox through the API; its id. Its first poll waits in the queue."""
        answer = self.api.simulate_post(
            "/admin/email-accounts", json=self.new_account(address, **fields)
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json["id"])

    def get(self, path: str, **params: Any) -> Any:
        """The JSON of a GET that must succeed."""
        answer = self.api.simulate_get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json

    def post(self, path: str, status: int = 200, **body: Any) -> Any:
        """The JSON of a POST that must answer with ``status``."""
        answer = self.api.simulate_post(path, json=body or None)
        assert answer.status_code == status, answer.text
        return answer.json

    def messages(self, account_id: str) -> list[dict[str, Any]]:
        """All messages of an account, page by page."""
        found: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            page = self.get(f"/admin/email-accounts/{account_id}/messages", limit=200, **cursor)
            found += page["items"]
            if page["next"] is None:
                return found
            cursor = {"cursor": page["next"]}

    @contextmanager
    def workers(self, threads: int = 4) -> Iterator[Worker]:
        """Pollers and workers for the block, as threads of this process."""
        worker = Worker(self.broker, worker_threads=threads, worker_timeout=50)
        worker.start()
        try:
            yield worker
        finally:
            worker.stop()

    def work_until(self, done: Callable[[], Any], threads: int = 4) -> None:
        """Run workers until ``done`` is true."""
        with self.workers(threads):
            wait_until(done)

    def poll_and_process(self, account_id: str) -> None:
        """Poll an account now and wait until all that it has is processed."""
        before = self.get(f"/admin/email-accounts/{account_id}")["last_success_at"]
        self.post(f"/admin/email-accounts/{account_id}/poll", 202)

        def done() -> bool:
            account = self.get(f"/admin/email-accounts/{account_id}")
            figures = self.get(f"/admin/email-accounts/{account_id}/stats")
            return (
                account["last_success_at"] not in (None, before)
                and account["imported_at"] is not None
                and figures["by_status"]["stored"] == 0
            )

        self.work_until(done)


def wait_until(done: Callable[[], Any]) -> None:
    """Return when ``done`` is true; fail when it never is."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@contextmanager
def configured(environ: Mapping[str, str]) -> Iterator[Broker]:
    """Set this process up as if it had been started with these variables."""
    import os

    before = dict(os.environ)
    os.environ.update(environ)
    settings.cache_clear()
    runtime.storage.cache_clear()
    runtime.keyring.cache_clear()
    runtime.data_keys.cache_clear()
    # A thread that an earlier test has left may have read the old variables just before.
    while str(settings().data_dir) != environ["MAILPOLL_DATA_DIR"]:
        settings.cache_clear()
    try:
        from mailpoll import actors

        runtime.start()
        migrate.migrate()
        broker = make_broker(settings())
        # A Redis that mailpoll has known for long: a new one gets everything once more.
        queues.remember_server(broker, queues.new_server(broker) or "")
        _adopt(actors.broker, broker)
        yield broker
    finally:
        _empty_database()
        database.close_database()
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()
        runtime.storage.cache_clear()
        runtime.keyring.cache_clear()
        runtime.data_keys.cache_clear()


def _adopt(old: Broker, new: Broker) -> None:
    """Let the actors, which were declared when they were imported, send to this test's broker."""
    dramatiq.set_broker(new)
    for actor in old.actors.values():
        actor.broker = new
        new.declare_actor(actor)


def _empty_database() -> None:
    with database.transaction():
        for table in reversed(TABLES):
            table.delete().execute()


def message(subject: str, body: str = "Hello\r\n", **headers: str) -> bytes:
    """A small message with CRLF line ends."""
    lines = [
        "From: Ann Example <ann@example.org>",
        "To: team@example.org",
        f"Subject: {subject}",
        "Date: Mon, 23 Nov 2026 10:00:00 +0000",
        f"Message-ID: <{abs(hash((subject, body)))}@example.org>",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def secret_directory(path: Path) -> Path:
    """A data directory as mailpoll makes it."""
    path.mkdir(mode=0o700)
    return path
