"""The design that mailpoll replaces: Celery with a poll for each account, a task for each message.

Ten prefork processes, Redis as broker, PostgreSQL, the standard library's parser, a raw file for
each message, and a login for each task.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from bench.contenders.contender import Contender, Took, wait_until
from bench.usage import Usage
from tests.servers.postgres import Postgres
from tests.servers.valkey import Flavour, Valkey

PROCESSES = 10
ROOT = Path(__file__).parent.parent.parent


class CeleryDesign(Contender):
    name = "celery"
    slow = True

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec("celery") is not None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, t: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        from celery import Celery

        from bench.contenders import celery_tasks

        postgres = Postgres(self.directory / "postgres", durable=True)
        redis = Valkey(self.directory / "redis", Flavour.REDIS)
        stack.enter_context(postgres)
        stack.enter_context(redis)
        url = postgres.create_database("bench")
        self._reader = stack.enter_context(psycopg.connect(url, autocommit=True))
        self._reader.execute(celery_tasks.TABLES)
        with self._reader.cursor() as cursor:
            rows = [(user,) for user in self.server.users]
            cursor.executemany("INSERT INTO accounts VALUES (%s, 0, 0)", rows)
        (self.directory / "mail").mkdir()
        self._sender = stack.enter_context(Celery(broker=redis.url, set_as_current=False))
        self._poll = celery_tasks.poll.name
        self._work(stack, redis.url, url)

    def _work(self, stack: ExitStack, broker: str, database: str) -> None:
        place = {
            "host": self.server.host,
            "port": self.server.port,
            "ca_file": str(self.server.ca_file),
            "password": self.server.password,
            "directory": str(self.directory / "mail"),
            "database": database,
        }
        command = ["-A", "bench.contenders.celery_tasks", "-b", broker, "worker"]
        command += ["-c", str(PROCESSES), "--loglevel", "warning"]
        log = stack.enter_context((self.directory / "log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", *command],
            cwd=ROOT,
            env={**os.environ, "BENCH_CELERY": json.dumps(place), "C_FORCE_ROOT": "1"},
            stdout=log,
            stderr=log,
        )
        stack.callback(_end, process)
        self._usage = Usage(process.pid)
        self._usage.start()
        stack.callback(self._usage.stop)
        time.sleep(1)
        self._usage.settle()

    def cold_import(self, messages: int) -> Took:
        return self.poll(messages)

    def poll(self, messages: int) -> Took:
        polls = self._count("SELECT sum(polls) FROM accounts") + len(self.server.users)
        cpu, start = self._usage.total_cpu(), time.monotonic()
        for user in self.server.users:
            self._sender.send_task(self._poll, [user])

        def done() -> bool:
            return (
                self._count("SELECT sum(polls) FROM accounts") >= polls
                and self._count("SELECT count(*) FROM messages") >= messages
            )

        wait_until(done, 0.05, self.limit)
        return Took(time.monotonic() - start, self._usage.total_cpu() - cpu)

    def _count(self, query: str) -> int:
        row = self._reader.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    def verified(self, sent: set[str]) -> int:
        rows = self._reader.execute("SELECT sha256, file FROM messages").fetchall()
        return len(
            sent & {d for d, f in rows if hashlib.sha256(Path(f).read_bytes()).hexdigest() == d}
        )


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:  # a warm shutdown finishes what has been prefetched
        Usage(process.pid).kill()
        process.wait()
