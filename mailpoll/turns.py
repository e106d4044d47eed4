"""Threads of a process take turns at what keeps the interpreter busy.

CPython runs one thread at a time, and offers to hand over at every system call. With 16 busy
threads that came to 12 context switches for each message, and to half as much CPU time again. So a
thread works while it has the turn, and gives it up where it waits: for the network or for a disk.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_turn = threading.Lock()
_mine = threading.local()


@contextmanager
def working() -> Iterator[None]:
    """Have the process's one turn for the block; not to be nested."""
    with _turn:
        _mine.held = True
        try:
            yield
        finally:
            _mine.held = False


@contextmanager
def waiting() -> Iterator[None]:
    """Let others have the turn during the block, which waits for something."""
    if not getattr(_mine, "held", False):
        yield
        return
    _mine.held = False
    try:
        _turn.release()  # in here, as an interrupt may come with its return
        yield
    finally:
        _turn.acquire()
        _mine.held = True
