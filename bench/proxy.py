"""A TCP proxy that makes the way to a server longer: bytes arrive later, and no slower.

``python -m bench.proxy`` measures what it carries and the CPU that it takes for that.
"""

import argparse
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.process import HOST, free_ports
from tests.servers.proxy import Proxy


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
        with Proxy(options.target, options.round_trip, options.port):
            print("ready", flush=True)
            threading.Event().wait()
    else:
        speed, cpu = throughput()
        print(f"{speed:.0f} MB/s, {cpu:.2f} ms of CPU for each MB")


if __name__ == "__main__":
    main()
