"""What the log says of tasks that a deployment interrupts."""

import logging
from collections.abc import Iterator

import pytest
from dramatiq.middleware import Shutdown

from mailpoll import logs


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
