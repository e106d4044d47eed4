"""What messages took of memory goes back to the system."""

import ctypes
from pathlib import Path

import pytest
from dramatiq import Worker

from mailpoll.middleware import memory
from tests.integration.system import System, wait_until


def resident() -> int:
    """Bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096


def test_a_worker_gives_back_what_lies_free_between_what_is_kept(
    embedded: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "PERIOD", 0.1)
    # Given 200 MB in blocks that are too small to be taken from the system each, and of which a few
    # at the end are kept
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(20_000) for _ in range(10_000)]
    for block in blocks:
        ctypes.memset(block, 1, 20_000)
    for block in blocks[:-10]:
        libc.free(block)
    before = resident()
    worker = Worker(embedded.broker, worker_threads=1)
    worker.start()
    try:
        wait_until(lambda: resident() < before - 150_000_000)
    finally:
        worker.stop()
        for block in blocks[-10:]:
            libc.free(block)
