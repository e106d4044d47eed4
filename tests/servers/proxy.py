"""A TCP proxy in front of a loopback port that does to bytes what networks do to them.

It runs in a thread of its own. Without faults it only passes bytes on, after ``round_trip / 2`` in
each direction; each fault treats what comes its way before that.
"""

import asyncio
import random
import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from tests.servers.process import HOST, free_ports

BUFFER = 1 << 20  # bytes read at once
#: Bytes on the way in one direction of one connection: 800 MB/s at 40 ms. Only a peer that does
#: not read fills it.
WINDOW = 32 << 20

#: Pieces that are no bytes: the end of the stream, and the abrupt one of the connection.
END, RESET = b"", b"\0reset"
CLIENT, SERVER = "client", "server"

Piece = tuple[float, bytes]


@dataclass
class Fault:
    """Treats bytes on the way ``toward`` one end. Counts of bytes are for each connection."""

    toward: str = CLIENT

    def treat(self, way: "Direction", data: bytes) -> Iterable[Piece]:
        """What becomes of ``data``: pieces, each after so many seconds more."""
        raise NotImplementedError


@dataclass
class Latency(Fault):
    seconds: float = 2.0
    jitter: float = 0.0

    def treat(self, way: "Direction", data: bytes) -> Iterable[Piece]:
        yield self.seconds + random.uniform(0, self.jitter), data


@dataclass
class Slicer(Fault):
    """``size`` bytes at a time, with a pause after each: 1 byte per 2 s, or a bandwidth."""

    size: int = 1
    pause: float = 2.0

    def treat(self, way: "Direction", data: bytes) -> Iterable[Piece]:
        if data in (END, RESET):
            yield 0.0, data
            return
        for start in range(0, len(data), self.size):
            yield self.pause, data[start : start + self.size]


def bandwidth(bytes_per_second: int, toward: str = CLIENT) -> Slicer:
    """At most so many bytes per second, in steps of a twentieth of one."""
    return Slicer(toward, max(1, bytes_per_second // 20), 0.05)


@dataclass
class SlowClose(Fault):
    seconds: float = 5.0

    def treat(self, way: "Direction", data: bytes) -> Iterable[Piece]:
        yield (self.seconds if data == END else 0.0), data


@dataclass
class BlackHole(Fault):
    """Nothing arrives and nobody is told: a time-out, or a peer that is gone without a word.

    Parameters:
      after: bytes that still pass.
    """

    after: int = 0

    def treat(self, way: "Direction", data: bytes) -> Iterable[Piece]:
        passed = max(0, self.after - (way.came - len(data)))
        if data not in (END, RESET) and passed:
            yield 0.0, data[:passed]


@dataclass
class Cut(Fault):
    """The connection ends after so many bytes, orderly or with a reset.

    Parameters:
      times: connections that this happens to; then all is well.
    """

    after: int = 0
    reset: bool = False
    times: int = 1_000_000

    def treat(self, way: "Direction", data: bytes) -> Iterable[Piece]:
        before = way.came - len(data)
        if not self.times or way.came < self.after or data in (END, RESET):
            yield 0.0, data
            return
        if before <= self.after:
            self.times -= 1
            if data[: self.after - before]:
                yield 0.0, data[: self.after - before]
            yield 0.0, RESET if self.reset else END


@dataclass
class Flip(Fault):
    """One bit of the byte at ``offset`` is wrong."""

    offset: int = 1_000
    times: int = 1

    def treat(self, way: "Direction", data: bytes) -> Iterable[Piece]:
        position = self.offset - (way.came - len(data))
        if self.times and data not in (END, RESET) and 0 <= position < len(data):
            self.times -= 1
            data = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        yield 0.0, data


@dataclass
class DropReply(Fault):
    """The server gets and does what matches ``request``; its answer is lost with the connection.

    Parameters:
      request: searched in what the client sends at once.
      done: how often it has happened.
    """

    request: bytes = b""
    times: int = 1
    done: int = 0
    _waiting: set[int] = field(default_factory=set)

    def treat(self, way: "Direction", data: bytes) -> Iterable[Piece]:
        if id(way.peer) in self._waiting or id(way) in self._waiting:
            if way.toward == CLIENT:
                self._waiting.discard(id(way.peer))
                yield 0.0, RESET
                return
        elif way.toward == SERVER and self.times and re.search(self.request, data, re.DOTALL):
            self.times -= 1
            self.done += 1
            self._waiting.add(id(way))
        yield 0.0, data


class Direction(asyncio.BufferedProtocol):
    """One end of a connection: what it receives is sent by ``peer``, treated and later."""

    def __init__(self, proxy: "Proxy", toward: str, delay: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._proxy = proxy
        self.toward = toward
        self._delay = delay
        self._not_before = 0.0
        self._last = 0.0
        self._buffer = memoryview(bytearray(BUFFER))
        self._under_way: deque[Piece] = deque()
        self._bytes = 0
        self._paused = self._blocked = False
        self._transport: asyncio.Transport
        self.came = 0
        self.peer: Direction

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._proxy.transports.add(transport)
        transport.set_write_buffer_limits(high=WINDOW)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def hold(self, seconds: float) -> None:
        """Let nothing arrive for a while: the handshake is still under way."""
        self._not_before = self._loop.time() + seconds

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.came += nbytes
        self._send(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        self._send(END)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._proxy.transports.discard(self._transport)
        self.peer._transport.abort() if error else self._send(END)

    def pause_writing(self) -> None:
        self.peer._blocked = True
        self.peer._balance()

    def resume_writing(self) -> None:
        self.peer._blocked = False
        self.peer._balance()

    def _send(self, data: bytes) -> None:
        """Put bytes on their way; none at all are the end."""
        now = self._loop.time()
        for delay, piece in self._treated(data):
            due = max(now + self._delay, self._not_before, self._last) + delay
            # Only what is slowed down waits for the pieces before it.
            self._last = due if delay else self._last
            if not self._under_way:
                self._loop.call_at(due, self._arrive)
            self._under_way.append((due, piece))
            self._bytes += len(piece)
        self._balance()

    def _treated(self, data: bytes) -> Iterator[Piece]:
        pieces: list[Piece] = [(0.0, data)]
        for fault in self._proxy.faults:
            if fault.toward == self.toward or isinstance(fault, DropReply):
                pieces = [
                    (delay + more, piece)
                    for delay, one in pieces
                    for more, piece in fault.treat(self, one)
                ]
        yield from pieces

    def _arrive(self) -> None:
        # The loop runs timers up to its clock's resolution early.
        now = self._loop.time() + 0.0005
        while self._under_way and self._under_way[0][0] <= now:
            _, data = self._under_way.popleft()
            self._bytes -= len(data)
            if self.peer._transport.is_closing():
                continue
            if data is RESET:
                reset(self.peer._transport)
                self._transport.abort()
            elif data:
                self.peer._transport.write(data)
            else:
                self.peer._transport.close()
        if self._under_way:
            self._loop.call_at(self._under_way[0][0], self._arrive)
        self._balance()

    def _balance(self) -> None:
        """Read no more than fits under way."""
        full = self._blocked or self._bytes > WINDOW
        if full != self._paused and not self._transport.is_closing():
            self._paused = full
            (self._transport.pause_reading if full else self._transport.resume_reading)()


def reset(transport: asyncio.Transport) -> None:
    """End a connection so that its peer gets a reset and not an orderly end."""
    linger = struct.pack("ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()


class Proxy:
    """A proxy in front of a loopback port.

    Parameters:
      target: the port of the server.
      round_trip: seconds to the server and back; the handshake of TCP takes one more.
      port: 0 takes any that is free.

    ``faults`` may be replaced at any time, by any thread, and holds for bytes that come afterwards.
    """

    def __init__(self, target: int, round_trip: float = 0.0, port: int = 0) -> None:
        self.target = target
        self.port = port or free_ports(1)[0]
        self.faults: tuple[Fault, ...] = ()
        self.connections = 0
        self.transports: set[asyncio.Transport] = set()
        self._round_trip = round_trip
        self._loop = asyncio.new_event_loop()
        self._server: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def up(self) -> None:
        """Accept connections (again)."""
        self._do(self._listen())

    def down(self) -> None:
        """Refuse connections, and end with a reset those that there are."""
        self._do(self._close())

    def cut(self) -> None:
        """End with a reset the connections that there are; new ones are accepted."""
        self._do(self._reset_all())

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = socket.create_server((HOST, self.port), backlog=1024)
            self._server.setblocking(False)
            self._accepting = self._loop.create_task(self._accept(self._server))

    async def _close(self) -> None:
        if self._server is not None and self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
            self._server.close()
            self._server = None
        await self._reset_all()

    async def _reset_all(self) -> None:
        for transport in list(self.transports):
            reset(transport)
        await asyncio.sleep(0)

    async def _accept(self, listener: socket.socket) -> None:
        tasks = set()
        while True:
            client, _ = await self._loop.sock_accept(listener)
            self.connections += 1
            task = asyncio.create_task(self._connect(client))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _connect(self, client: socket.socket) -> None:
        near = Direction(self, SERVER, self._round_trip / 2)
        far = Direction(self, CLIENT, self._round_trip / 2)
        near.peer, far.peer = far, near
        near.hold(self._round_trip * 1.5)
        try:
            await self._loop.create_connection(lambda: far, HOST, self.target)
            await self._loop.connect_accepted_socket(lambda: near, client)
        except OSError:
            client.close()
