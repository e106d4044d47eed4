"""Points at which a test lets a process die, stop, fail or dawdle; in production there are none.

``MAILPOLL_FAULT`` names them as ``point:action:nth``, several separated by commas, and is read once
and only with ``MAILPOLL_TEST=1``. The n-th time that a process comes to the point, the action is
done; ``MAILPOLL_FAULT_DIR`` counts over all processes instead, so that the one which takes the
place of a killed one does not die there again, and keeps there what was done.
"""

import fcntl
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

#: What has just happened at each point, in the order of a message's way. ``docs/reliability.md``
#: has the table.
POINTS = (
    *("logged-in", "uids-listed", "mid-literal", "file-written", "put-sent", "blobs-durable"),
    *("before-commit", "committed", "announced"),
    *("claimed", "attachments-stored", "before-finish", "finished"),
    *("deletion-asked", "queues-forgotten", "rows-deleted", "account-deleted"),
    *("local-emptied", "objects-deleted", "stores-emptied"),
    *("fell-back", "copied", "local-removed", "moved"),
    *("account-written", "account-added", "keys-page", "key-removed"),
    *("before-retention", "retention-committed", "blobs-doomed", "retention-blobs-deleted"),
)
#: Seconds of ``sleep``.
DAWDLE = 5


class Injected(Exception):
    """What ``raise`` raises: no part of mailpoll expects it."""


def _sleep() -> None:
    time.sleep(DAWDLE)


def _raise() -> None:
    raise Injected


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": _raise,
    "sleep": _sleep,
}


class Plan:
    """What is to happen at which hit of which point.

    Parameters:
      text: as in ``MAILPOLL_FAULT``.
      directory: where hits are counted for all processes; ``None`` counts those of this one.

    Raises:
      ValueError: there is no such point or action. A misspelt fault would be a test that passes.
    """

    def __init__(self, text: str, directory: Path | None = None) -> None:
        self._actions: dict[tuple[str, int], str] = {}
        self._hits: Counter[str] = Counter()
        self._directory = directory
        self._lock = threading.Lock()
        for entry in filter(None, text.split(",")):
            point, action, nth = entry.split(":")
            if point not in POINTS or action not in ACTIONS:
                raise ValueError(f"MAILPOLL_FAULT: no such point or action: {entry!r}")
            self._actions[point, int(nth)] = action
        self._points = {point for point, _ in self._actions}

    def reach(self, point: str) -> None:
        """Count a hit, and do what the plan says of it."""
        if point not in self._points:
            return
        hit = self._count(point)
        action = self._actions.get((point, hit))
        if action is not None:
            if self._directory:
                (self._directory / f"{point}.{hit}.{action}").touch()
            ACTIONS[action]()

    def _count(self, point: str) -> int:
        with self._lock:
            if self._directory is None:
                self._hits[point] += 1
                return self._hits[point]
            with (self._directory / point).open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(b".")
                file.flush()
                return file.tell()


def _of(environ: Mapping[str, str]) -> Callable[[str], None]:
    """What is called at each point: nothing, unless this is a test."""
    text = environ.get("MAILPOLL_FAULT", "")
    if environ.get("MAILPOLL_TEST") != "1" or not text:
        return lambda _point: None
    directory = environ.get("MAILPOLL_FAULT_DIR")
    return Plan(text, Path(directory) if directory else None).reach


#: Called where a process comes to a point of ``POINTS``.
point = _of(os.environ)
