"""mailpoll itself, as `mailpoll up` runs it, with each of its backing sets."""

import hashlib
import io
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Any, Self

import psycopg
import urllib3
import zstandard

from bench.contenders.contender import Contender, Took, wait_until
from bench.usage import Usage
from mailpoll.settings import new_token
from tests.servers.postgres import Postgres
from tests.servers.process import free_ports
from tests.servers.seaweed import Seaweed
from tests.servers.valkey import Flavour, Valkey

BUCKET = "bench"
#: Accounts that are not polled by themselves while something else is measured.
RARELY = 3_600

STORED = "SELECT count(*) FROM email_raw_messages"
UNFINISHED = "SELECT count(*) FROM email_raw_messages WHERE status <> 'processed'"
BUSY = """
    SELECT count(*) FROM email_accounts
    WHERE imported_at IS NULL OR lease_until IS NOT NULL OR failures > 0
"""
SUCCESSES = "SELECT uuid, last_success_at FROM email_accounts"
POLLS = "SELECT sum(lease_token) FROM email_accounts"
BLOBS = "SELECT sha256, storage_key FROM email_raw_messages WHERE status = 'processed'"


class Api:
    """The running mailpoll's API."""

    def __init__(self, port: int, token: str) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self._pool = urllib3.PoolManager(maxsize=16, headers={"Authorization": f"Bearer {token}"})

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._pool.request(method, self._base + path, json=body, retries=False, timeout=60)
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.data[:300]!r}")
        return answer.json()

    def ready(self) -> bool:
        try:
            return bool(self("GET", "/readyz")["ready"])
        except (urllib3.exceptions.HTTPError, RuntimeError):
            return False


class Mailpoll(Contender):
    """Progress is read from the database: requests would count as CPU of mailpoll's."""

    name = "mailpoll"
    api: Api
    usage: Usage
    #: The servers that are not part of mailpoll.
    servers: dict[str, Usage]

    def __enter__(self) -> Self:
        self.servers = {}
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, t: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        (port,) = free_ports(1)
        token = new_token()
        variables = {
            **self._backing(stack),
            "MAILPOLL_DATA_DIR": str(self.directory / "data"),
            "MAILPOLL_API_TOKEN": token,
            "MAILPOLL_IMAP_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
            "MAILPOLL_IMAP_CA_FILE": str(self.server.ca_file),
            "MAILPOLL_IMAP_PORTS": str(self.server.port),
            "MAILPOLL_POLL_INTERVAL": str(RARELY),
            "MAILPOLL_LOG_LEVEL": "warning",
            "PORT": str(port),
        }
        log = stack.enter_context((self.directory / "mailpoll.log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", "mailpoll", "up"],
            env={**os.environ, **variables},
            stdout=log,
            stderr=log,
        )
        stack.callback(self._stop, process)
        self.api = Api(port, token)
        wait_until(self.api.ready, 0.1, 60)
        self.usage = Usage(process.pid)
        self.usage.start()
        stack.callback(self.usage.stop)
        self.usage.settle()

    def _stop(self, process: "subprocess.Popen[bytes]") -> None:
        process.send_signal(signal.SIGTERM)
        process.wait()
        lines = (self.directory / "mailpoll.log").read_text(errors="replace").splitlines()
        if any("error" in line for line in lines):
            print("\n".join(lines[-20:]), file=sys.stderr)

    def _backing(self, stack: ExitStack) -> dict[str, str]:  # noqa: ARG002
        """The variables that name database, queue and store; the embedded set needs none."""
        return {}

    def cold_import(self, messages: int) -> Took:
        return self.timed(self.add_accounts, lambda: self._processed(messages), 0.1)

    def add_accounts(self) -> None:
        def add(user: str) -> None:
            place = {"host": self.server.host, "port": self.server.port, "test": False}
            login = {"address": user, "password": self.server.password}
            self.api("POST", "/admin/email-accounts", login | place)

        self._in_parallel(add, self.server.users)

    def poll(self, messages: int) -> Took:
        # The import's last polls may still be proving that all is there.
        wait_until(lambda: not self.ask(BUSY)[0][0], 0.1, self.limit)
        before: dict[Any, Any] = dict(self.ask(SUCCESSES))

        def done() -> bool:
            polled = all(before[uuid] != moment for uuid, moment in self.ask(SUCCESSES))
            return polled and self._processed(messages) and not self.ask(BUSY)[0][0]

        return self.timed(lambda: self._in_parallel(self._poll, list(before)), done, 0.03)

    def _poll(self, uuid: str) -> None:
        self.api("POST", f"/admin/email-accounts/{uuid}/poll")

    def timed(self, trigger: Callable[[], object], done: Callable[[], bool], pause: float) -> Took:
        """Trigger something and wait until it is done, looking every ``pause`` seconds."""
        cpu, start = self.usage.total_cpu(), time.monotonic()
        trigger()
        wait_until(done, pause, self.limit)
        return Took(time.monotonic() - start, self.usage.total_cpu() - cpu)

    def _in_parallel(self, work: Callable[[str], None], what: list[str]) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, what))

    def _processed(self, messages: int) -> bool:
        return self.ask(STORED)[0][0] >= messages and not self.ask(UNFINISHED)[0][0]

    def polls(self) -> int:
        """Polls of all accounts so far."""
        return int(self.ask(POLLS)[0][0])

    def verified(self, sent: set[str]) -> int:
        """Messages of which the row is processed and the blob's bytes hash to what was sent."""
        rows = [(digest, key) for digest, key in self.ask(BLOBS) if digest in sent]
        with ThreadPoolExecutor(8) as pool:
            digests = pool.map(self._hash, [key for _, key in rows])
            return len({d for (d, _), found in zip(rows, digests, strict=True) if d == found})

    def ask(self, query: str) -> list[Any]:
        database = self.directory / "data" / "mailpoll.db"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as reader:
            return reader.execute(query).fetchall()

    def _hash(self, key: str) -> str:
        with (self.directory / "data" / "blobs" / key).open("rb") as blob:
            return _content_hash(blob)


class MailpollProduction(Mailpoll):
    """With a PostgreSQL that flushes, Redis, and SeaweedFS; their CPU is not mailpoll's."""

    name = "mailpoll-production"

    def _backing(self, stack: ExitStack) -> dict[str, str]:
        postgres = Postgres(self.directory / "postgres", durable=True)
        redis = Valkey(self.directory / "redis", Flavour.REDIS)
        seaweed = Seaweed(self.directory / "seaweed")
        for server in (postgres, redis, seaweed):
            stack.enter_context(server)
            assert server.pid is not None
            self.servers[server.program] = Usage(server.pid)
        self._store = seaweed.client()
        self._warm_up()
        self._url = postgres.create_database("bench")
        self._reader = stack.enter_context(psycopg.connect(self._url, autocommit=True))
        return {
            "DATABASE_URL": self._url,
            "REDIS_URL": redis.url,
            "STORAGE_URL": seaweed.url_of(BUCKET),
        }

    def _warm_up(self) -> None:
        """A bucket in use: the first objects of a new one wait until its volumes are made."""
        self._store.make_bucket(BUCKET)

        def put(number: int) -> None:
            self._store.put_object(BUCKET, f"warm/{number}", io.BytesIO(b"warm"), 4)
            self._store.remove_object(BUCKET, f"warm/{number}")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, range(64)))

    def ask(self, query: str) -> list[Any]:
        return self._reader.execute(query).fetchall()

    def _hash(self, key: str) -> str:
        answer = self._store.get_object(BUCKET, key)
        try:
            return _content_hash(answer)
        finally:
            answer.close()
            answer.release_conn()


def _content_hash(stored: Any) -> str:
    """SHA-256 of what a stored zstd frame holds."""
    with zstandard.ZstdDecompressor().stream_reader(stored, closefd=False) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
