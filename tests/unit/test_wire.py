"""The reader under IMAP: what a server announces is not what it sends."""

import os
import socket
import threading
import time
import tracemalloc

import pytest

from mailpoll.imap import Fault, ImapError
from mailpoll.imap.wire import PIECE, Wire


def test_what_is_announced_and_does_not_come_takes_no_memory() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Wire(ours, 5, time.monotonic() + 20)
        theirs.sendall(b"the beginning")
        theirs.close()
        tracemalloc.start()
        try:
            with pytest.raises(ImapError) as caught:
                wire.read(60_000_000)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert caught.value.fault is Fault.CONNECTION_LOST
    assert peak < 3 * PIECE


def test_a_literal_in_many_pieces_is_whole() -> None:
    content = os.urandom(2 * PIECE + 17)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Wire(ours, 5, time.monotonic() + 20)
        sent = b"* 1 FETCH\r\n"
        theirs.sendall(sent + content[:10])
        assert wire.readline() == sent
        theirs.setblocking(False)
        rest = memoryview(content)[10:]
        rest = rest[theirs.send(rest) :]
        assert wire.read(20) == content[:20]
        theirs.setblocking(True)
        sender = threading.Thread(target=theirs.sendall, args=(rest,))
        sender.start()
        assert wire.read(len(content) - 20) == content[20:]
        sender.join()


def test_silence_ends_with_a_time_out() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Wire(ours, 0.1, time.monotonic() + 20)
        theirs.sendall(b"half a li")
        with pytest.raises(ImapError) as caught:
            wire.readline()
    assert caught.value.fault is Fault.TIMED_OUT
