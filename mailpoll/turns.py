"""Threads of a process take turns at what keeps the interpreter busy.

CPython runs one thread at a time, and offers to hand over at every system call. With 16 busy
threads that came to 12 context switches for each message, and to half as much CPU time again. So a
thread works while it has the turn, and gives it up where it waits: for the network or for a disk.

Work whose end nobody can promise, as what is done to a stranger's mail, says how long it may have
the turn: one endless message would hold up all that the process does.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from dramatiq.threading import raise_thread_exception

_turn = threading.Lock()
_mine = threading.local()

#: Seconds between two looks at whether a turn has been held for too long.
LOOK = 0.5


class TurnTooLong(Exception):
    """A thread worked for longer than it may without waiting for anything."""


@dataclass(slots=True)
class _Limit:
    """Who has the turn, and for how many seconds more.

    They are counted by looks and not by a clock: while a process is stopped they stand still.
    """

    thread: int = 0
    left: float = float("inf")


_limit = _Limit()
#: Held while the limit changes or a thread is interrupted, so that none is once its work has ended.
_limiting = threading.Lock()


@contextmanager
def working(seconds: float = float("inf")) -> Iterator[None]:
    """Have the process's one turn for the block; not to be nested.

    Parameters:
      seconds: that it may have the turn; after each wait they begin anew.

    Raises:
      TurnTooLong: in the midst of the block, which took longer. Only Python can be interrupted: of
        native code it is raised when that returns.
    """
    with _turn:
        _mine.held, _mine.seconds = True, seconds
        try:
            _set_limit(seconds)
            yield
        finally:
            _mine.held = False
            _set_limit(float("inf"))


@contextmanager
def waiting() -> Iterator[None]:
    """Let others have the turn during the block, which waits for something."""
    if not getattr(_mine, "held", False):
        yield
        return
    _set_limit(float("inf"))  # not within: until it is done an interrupt may come
    _mine.held = False
    try:
        _turn.release()  # in here, as an interrupt may come with its return
        yield
    finally:
        _turn.acquire()
        _mine.held = True
        _set_limit(_mine.seconds)


def _set_limit(seconds: float) -> None:
    """Say for how long the thread that has the turn may have it."""
    if seconds != float("inf"):
        _watcher()
    with _limiting:
        _limit.thread, _limit.left = threading.get_ident(), seconds


@cache
def _watcher() -> threading.Thread:
    """The process's thread that interrupts who has the turn for too long."""
    watcher = threading.Thread(target=_watch, name="turns", daemon=True)
    watcher.start()
    return watcher


def _watch() -> None:
    while True:
        time.sleep(LOOK)
        with _limiting:
            _limit.left -= LOOK
            if _limit.left < 0:
                _limit.left = float("inf")
                raise_thread_exception(_limit.thread, TurnTooLong)
