"""Turns and the database's connections: neither may wait for the other for ever."""

import threading
from collections.abc import Callable

import pytest

from mailpoll import database, turns
from mailpoll.models import EmailAccount
from tests.integration.system import PATIENCE, System

THREADS, TIMES = 6, 20


def test_more_threads_than_connections_all_get_their_work_done(
    system: System,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a pool with one connection, which gives up when it is waited for in vain
    database.close_database()
    monkeypatch.setattr(database.proxy.obj, "_max_connections", 1)
    monkeypatch.setattr(database.proxy.obj, "_wait_timeout", PATIENCE / 4)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(TIMES):
                with turns.working():
                    with database.transaction():
                        EmailAccount.select().count()
                    with database.connected():
                        EmailAccount.select().count()
        except BaseException as error:
            failures.append(error)

    run_at_once(work)
    assert failures == []


def run_at_once(work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
