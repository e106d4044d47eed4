"""One order to end, however many signals bring it.

honcho and dyno platforms signal every process, and Dramatiq's main process passes its own signal
on, so that each worker process gets two. Dramatiq takes the second for an order to end at once, in
the middle of polls.
"""

import signal
import time
from types import FrameType

from dramatiq import Broker, Middleware

#: Seconds within which further signals belong to the first.
TOGETHER = 2.0


class OneSignal(Middleware):
    """Takes SIGTERMs that arrive together for one; a later one ends the process at once."""

    def after_process_boot(self, broker: Broker) -> None:  # noqa: ARG002
        passed_on = signal.getsignal(signal.SIGTERM)
        if not callable(passed_on):
            return
        first: float | None = None

        def end(number: int, frame: FrameType | None) -> None:
            nonlocal first
            if first is None:
                first = time.monotonic()
            elif time.monotonic() - first < TOGETHER:
                return
            passed_on(number, frame)

        signal.signal(signal.SIGTERM, end)
