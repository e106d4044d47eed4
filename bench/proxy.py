"""A TCP proxy that makes the way to a server longer: bytes arrive later, and no slower.

``python -m bench.proxy`` measures what it carries and the CPU that it takes for that.
"""

import argparse
import asyncio
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.process import HOST, free_ports

BUFFER = 1 << 20  # bytes read at once
#: Bytes on the way in one direction of one connection: 800 MB/s at 40 ms. Only a peer that does
#: not read fills it.
WINDOW = 32 << 20


class DelayProxy:
    """A proxy process in front of a loopback port.

    Parameters:
      target: the port of the server.
      round_trip: seconds to the server and back; the handshake of TCP takes one more.
    """

    def __init__(self, target: int, round_trip: float) -> None:
        (self.port,) = free_ports(1)
        self._arguments = ["--port", str(self.port), "--target", str(target)]
        self._arguments += ["--round-trip", str(round_trip)]

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "bench.proxy", *self._arguments]
        root = Path(__file__).parent.parent
        self._process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("the delay proxy did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, t: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def cpu(self) -> float:
        """Seconds of CPU so far."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


class Direction(asyncio.BufferedProtocol):
    """One end of a connection: what it receives is sent by ``peer`` after ``delay`` seconds."""

    def __init__(self, delay: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay = delay
        self._not_before = 0.0
        self._buffer = memoryview(bytearray(BUFFER))
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._paused = self._blocked = False
        self._transport: asyncio.Transport
        self.peer: Direction

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WINDOW)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def hold(self, seconds: float) -> None:
        """Let nothing arrive for a while: the handshake is still under way."""
        self._not_before = self._loop.time() + seconds

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._send(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        self._send(b"")
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.peer._transport.abort() if error else self._send(b"")

    def pause_writing(self) -> None:
        self.peer._blocked = True
        self.peer._balance()

    def resume_writing(self) -> None:
        self.peer._blocked = False
        self.peer._balance()

    def _send(self, data: bytes) -> None:
        """Put bytes on their way; none at all are the end."""
        due = max(self._loop.time() + self._delay, self._not_before)
        if not self._under_way:
            self._loop.call_at(due, self._arrive)
        self._under_way.append((due, data))
        self._bytes += len(data)
        self._balance()

    def _arrive(self) -> None:
        # The loop runs timers up to its clock's resolution early.
        now = self._loop.time() + 0.0005
        while self._under_way and self._under_way[0][0] <= now:
            _, data = self._under_way.popleft()
            self._bytes -= len(data)
            if self.peer._transport.is_closing():
                continue
            if data:
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


async def serve(port: int, target: int, round_trip: float) -> None:
    loop = asyncio.get_running_loop()

    async def accept(client: socket.socket) -> None:
        near, far = Direction(round_trip / 2), Direction(round_trip / 2)
        near.peer, far.peer = far, near
        near.hold(round_trip * 1.5)
        try:
            await loop.create_connection(lambda: far, HOST, target)
            await loop.connect_accepted_socket(lambda: near, client)
        except OSError:
            client.close()

    listener = socket.create_server((HOST, port), backlog=1024)
    listener.setblocking(False)
    print("ready", flush=True)
    tasks = set()
    while True:
        client, _ = await loop.sock_accept(listener)
        task = asyncio.create_task(accept(client))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def throughput(megabytes: int = 1_000, connections: int = 8) -> tuple[float, float]:
    """What it carries at a round trip of 40 ms: MB/s, and its CPU in milliseconds for each MB."""
    source = socket.create_server((HOST, 0))
    share = megabytes * 1_000_000 // connections
    for _ in range(connections):
        threading.Thread(target=_pour, args=(source, share), daemon=True).start()
    with DelayProxy(source.getsockname()[1], 0.040) as proxy:
        before, start = proxy.cpu, time.monotonic()
        drains = [threading.Thread(target=_drain, args=(proxy.port,)) for _ in range(connections)]
        for thread in drains:
            thread.start()
        for thread in drains:
            thread.join()
        seconds = time.monotonic() - start
        return megabytes / seconds, (proxy.cpu - before) / megabytes * 1_000


def _pour(listener: socket.socket, size: int) -> None:
    block = bytes(1 << 20)
    client, _ = listener.accept()
    with client:
        while size > 0:
            size -= client.send(block[:size])


def _drain(port: int) -> None:
    buffer = bytearray(1 << 20)
    with socket.create_connection((HOST, port), timeout=30) as server:
        while server.recv_into(buffer):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.proxy", description=__doc__)
    parser.add_argument("--port", type=int)
    parser.add_argument("--target", type=int)
    parser.add_argument("--round-trip", type=float, default=0.040, help="seconds")
    options = parser.parse_args()
    if options.port:
        # A connection of IMAP takes two descriptors here.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        asyncio.run(serve(options.port, options.target, options.round_trip))
    else:
        speed, cpu = throughput()
        print(f"{speed:.0f} MB/s, {cpu:.2f} ms of CPU for each MB")


if __name__ == "__main__":
    main()
