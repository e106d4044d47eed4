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
from .maintain import drain_fallback, sweep  # noqa: E402
from .poll import begin_polls, continue_import, poll_account  # noqa: E402
from .process import import_messages, process_message  # noqa: E402
from .schedule import schedule_polls  # noqa: E402

__all__ = [
    "begin_polls",
    "broker",
    "continue_import",
    "delete_account",
    "drain_fallback",
    "import_messages",
    "poll_account",
    "process_message",
    "schedule_polls",
    "sweep",
]
