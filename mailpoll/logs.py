"""Logging: one event a line, with no way for mail or servers to forge lines or leak secrets."""

import logging
import sys
import threading
import time
from typing import Any

import structlog
from dramatiq.middleware import Shutdown
from structlog.typing import EventDict, Processor

from .blobs import StoreUnavailable
from .database import AWAY

#: Libraries whose debug output shows mail, commands or passwords: never below WARNING.
TALKATIVE = (
    "imapclient",
    "imapclient.imaplib",
    "urllib3",
    "minio",
    "peewee",
    "dramatiq",
    "peewee_migrate",
    "periodiq",
)

#: Seconds between two errors of the log that what everything needs is away.
SELDOM = 1.0

#: Characters that control a terminal or end a line, and those that turn the direction of text.
CONTROLS = (*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
#: How each is written instead.
ESCAPES = {code: ascii(chr(code))[1:-1] for code in CONTROLS}


def configure(level: str, form: str) -> None:
    """Set up structlog and the standard library's logging for this process.

    Parameters:
      level: debug, info, warning or error.
      form: ``json`` (one object a line) or ``console``.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: list[Processor] = (
        [structlog.processors.JSONRenderer()]
        if form == "json"
        else [_escaped, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    handler.addFilter(_end_quietly)
    handler.addFilter(Seldom())
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _end_quietly(record: logging.LogRecord) -> bool:
    """Let tasks that were interrupted when their process was told to end be no errors.

    Dramatiq logs them with a traceback; they are retried, and happen at each deployment.
    """
    if record.exc_info and isinstance(record.exc_info[1], Shutdown):
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args, record.exc_info = "task interrupted, to be retried", (), None
    return True


class Seldom(logging.Filter):
    """Lets one error a second say that the database or the store is away, and how often.

    Every task in hand fails of it and is tried again, each with a traceback: a queue of thousands
    would fill the log's disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._next = 0.0
        self._more = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.exc_info or not isinstance(record.exc_info[1], (*AWAY, StoreUnavailable)):
            return True
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                self._more += 1
                return False
            self._next, more, self._more = now + SELDOM, self._more, 0
        if more:
            words = f"{record.getMessage()} And {more:,} more errors of this kind before it."
            record.msg, record.args = words, ()
        return True


def _escaped(logger: Any, method: str, event: EventDict) -> EventDict:  # noqa: ARG001
    """Let no value move the terminal's cursor or begin a line of its own (CWE-117).

    JSON escapes by itself. The lines of a traceback are set in, so that none looks like an event.
    """
    for key, value in event.items():
        if isinstance(value, str):  # the renderer shows all others by repr, which escapes
            lines = value.split("\n") if key in ("exception", "stack") else [value]
            event[key] = "\n  ".join(line.translate(ESCAPES) for line in lines)
    return event
