"""The background work. Importing this package sets up the process: Dramatiq and Periodiq load it.

``mailpoll.actors`` is what the ``dramatiq`` and ``periodiq`` commands are given.
"""

import dramatiq

from .. import runtime
from ..broker import make_broker
from ..settings import settings

runtime.start()
broker = make_broker(settings())
dramatiq.set_broker(broker)

from .delete import delete_account  # noqa: E402
from .export import expire_exports, make_export  # noqa: E402
from .maintain import (  # noqa: E402
    clear_fallback,
    drain_fallback,
    empty_deleted,
    erase_words,
    forget_events,
    prune_audit,
    retain,
    scrub,
    sweep,
)
from .notify import deliver_events  # noqa: E402
from .poll import begin_polls, continue_import, poll_account  # noqa: E402
from .process import import_messages, process_message  # noqa: E402
from .schedule import schedule_polls  # noqa: E402
from .watch import watch  # noqa: E402

__all__ = [
    "begin_polls",
    "broker",
    "clear_fallback",
    "continue_import",
    "delete_account",
    "deliver_events",
    "drain_fallback",
    "empty_deleted",
    "erase_words",
    "expire_exports",
    "forget_events",
    "import_messages",
    "make_export",
    "poll_account",
    "process_message",
    "prune_audit",
    "retain",
    "schedule_polls",
    "scrub",
    "sweep",
    "watch",
]
