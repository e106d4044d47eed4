"""Memory that messages took goes back to the system.

What threads free lies between what others hold, and glibc gives back only what lies at the end of
its heap. Over hours that adds up, though nothing is kept: see malloc_trim(3).
"""

import ctypes
import threading

from dramatiq import Broker, Middleware, Worker

#: Seconds between two times.
PERIOD = 10.0


class GiveBack(Middleware):
    """Gives unused pages back once in a while, where the C library is glibc."""

    def __init__(self) -> None:
        self._ended = threading.Event()

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            self._ended = threading.Event()
            threading.Thread(target=_go_on, args=(trim, self._ended), daemon=True).start()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        self._ended.set()


def _go_on(trim: "ctypes._NamedFuncPointer", ended: threading.Event) -> None:
    while not ended.wait(PERIOD):
        trim(0)
