"""Logging: one event a line, with no way for mail or servers to forge lines or leak secrets."""

import logging
import sys

import structlog
from structlog.typing import Processor

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
    # The console renderer quotes values with repr, so control characters arrive escaped.
    renderer = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
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
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
