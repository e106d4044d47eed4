"""What the log says of tasks that a deployment interrupts, or an outage."""

import logging
import time
from collections.abc import Iterator

import peewee
import pytest
from dramatiq.middleware import Shutdown

from mailpoll import logs
from mailpoll.blobs import StoreUnavailable


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("error", "words", "silent"),
    [(Shutdown, "[info", "Traceback"), (ValueError, "[error", "interrupted")],
)
def test_only_tasks_that_fail_of_themselves_are_errors(
    error: type[BaseException], words: str, silent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", "console")
    try:
        raise error
    except BaseException:
        logging.getLogger("tasks").exception("Failed to process message with unhandled exception.")
    said = capsys.readouterr().err
    assert words in said
    assert silent not in said


def fail(error: Exception, times: int) -> None:
    for _ in range(times):
        try:
            raise error
        except Exception:
            logging.getLogger("tasks").exception("Failed to process message %s.", "poll(1)")


@pytest.mark.parametrize("error", [peewee.OperationalError("gone"), StoreUnavailable("away")])
def test_an_outage_is_told_once_a_second_however_many_tasks_fail_of_it(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.configure("info", "json")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    fail(error, 1_000)
    fail(ValueError("a bug"), 3)
    now += logs.SELDOM
    fail(error, 1)
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "a bug" in line]) == 3
    first, last = (line for line in lines if "a bug" not in line)
    assert "more errors" not in first
    assert "poll(1). And 999 more errors of this kind before it." in last
