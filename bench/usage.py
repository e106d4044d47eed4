"""CPU time and memory of a process with all its descendants, read from /proc (Linux)."""

import os
import re
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Usage:
    """Looks at a process tree. CPU in seconds and memory peaks in bytes, by process name."""

    pid: int
    cpu: dict[int, float] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    peaks: dict[int, int] = field(default_factory=dict)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Look every second, so that what ended processes took is known to within a second."""
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def settle(self, share: float = 0.1, patience: float = 30) -> None:
        """Wait until the tree has done with starting: a second in which it takes little CPU.

        Parameters:
          share: of one core.
        """
        end = time.monotonic() + patience
        before = self.total_cpu()
        while time.monotonic() < end:
            time.sleep(1)
            now = self.total_cpu()
            if now - before < share:
                return
            before = now

    def total_cpu(self) -> float:
        """Seconds of all processes together, now."""
        self._sample()
        return sum(self.cpu.values())

    def cpu_by_name(self) -> dict[str, float]:
        """Seconds of all processes of each name, now."""
        self._sample()
        found: dict[str, float] = {}
        for pid, seconds in self.cpu.items():
            found[self.names[pid]] = found.get(self.names[pid], 0) + seconds
        return found

    def peak_by_name(self) -> dict[str, int]:
        """The largest single process of each name since it started."""
        self._sample()
        found: dict[str, int] = {}
        for pid, peak in self.peaks.items():
            found[self.names[pid]] = max(found.get(self.names[pid], 0), peak)
        return found

    def kill(self) -> None:
        """End the whole tree at once."""
        for pid in _tree(self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _run(self) -> None:
        while not self._stopped.wait(1):
            self._sample()

    def _sample(self) -> None:
        for pid in _tree(self.pid):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                status = Path(f"/proc/{pid}/status").read_text()
                name = _name(pid)
            except OSError:
                continue
            peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
            if peak is None:  # it has ended and waits for its parent
                continue
            # A name can change: a new process bears its parent's until it executes its own.
            self.names[pid] = name
            self.cpu[pid] = (int(fields[11]) + int(fields[12])) / TICKS
            self.peaks[pid] = int(peak[1]) * 1024


def _tree(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        parents.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(path.parts[2]))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += parents.get(pid, [])
    return found


def _name(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    for pattern, name in (
        (r"queues poll", "poller"),
        (r"queues process", "worker"),
        (r"gunicorn", "web"),
        (r"valkey-server", "valkey"),
        (r"queues webhooks", "notifier"),
        (r"mailpoll watcher", "watcher"),
        (r"periodiq|scheduler", "scheduler"),
        (r"mailpoll up", "supervisor"),
    ):
        if re.search(pattern, command):
            return name
    return "other"
