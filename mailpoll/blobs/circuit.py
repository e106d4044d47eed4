"""A circuit breaker: an outage costs one time-out, not one per message."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from .blob import StoreUnavailable

log = logging.getLogger(__name__)


class Circuit:
    """Refuses calls for a while after one failed with StoreUnavailable.

    After the pause one call is let through as a probe while the others are still refused: it closes
    the circuit if it succeeds, and doubles the pause if it fails. Safe to share between threads.

    Args:
      first_pause: seconds.
      longest_pause: seconds; doubling stops there. Less than a minute, so that what runs each
        minute and moves blobs back may ask each time, and not at every second run.
      clock: seconds that only ever go forward.
    """

    def __init__(
        self,
        first_pause: float = 5.0,
        longest_pause: float = 40.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_pause = first_pause
        self._longest_pause = longest_pause
        self._clock = clock
        self._lock = Lock()
        self._pause = 0.0  # 0: closed
        self._probe_at = 0.0
        self._probing = False
        # Counts failures. Calls that began before the last one have nothing to say any more: twenty
        # that time out together are one failure.
        self._failures = 0

    @property
    def is_open(self) -> bool:
        """Whether a call would be refused now."""
        with self._lock:
            return self._pause > 0 and (self._probing or self._clock() < self._probe_at)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Around a call. Raises StoreUnavailable at once while the circuit is open."""
        began = self._enter()
        try:
            yield
        except StoreUnavailable as failure:
            self._failed(began, failure)
            raise
        except BaseException:
            # It says nothing about the store, and the thread may be on its way out.
            self._settle(began)
            raise
        self._settle(began, succeeded=True)

    def _enter(self) -> int:
        with self._lock:
            if self._pause:
                wait = self._probe_at - self._clock()
                if wait > 0 or self._probing:
                    message = "the object store failed just now and is not asked again yet"
                    raise StoreUnavailable(message, retry_after=max(wait, 1.0))
                self._probing = True
            return self._failures

    def _settle(self, began: int, *, succeeded: bool = False) -> None:
        with self._lock:
            if began != self._failures:
                return
            self._probing = False
            if succeeded and self._pause:
                self._pause = 0.0
                log.warning("object store answers again")

    def _failed(self, began: int, failure: StoreUnavailable) -> None:
        with self._lock:
            if began != self._failures:
                return
            self._failures += 1
            self._probing = False
            self._pause = min(max(self._first_pause, self._pause * 2), self._longest_pause)
            self._probe_at = self._clock() + self._pause
            log.warning("object store unavailable, next try in %.0f s: %s", self._pause, failure)
