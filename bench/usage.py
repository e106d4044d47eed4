"""CPU time and memory of a process with all its descendants, read from /proc (Linux)."""

import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Usage:
    """Samples a process tree in a thread. CPU in seconds by process name, memory peaks in bytes."""

    pid: int
    cpu: dict[int, float] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    peaks: dict[int, int] = field(default_factory=dict)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def total_cpu(self) -> float:
        """Seconds of all processes together, now."""
        self._sample()
        return sum(self.cpu.values())

    def cpu_by_name(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for pid, seconds in self.cpu.items():
            found[self.names[pid]] = found.get(self.names[pid], 0) + seconds
        return found

    def peak_by_name(self) -> dict[str, int]:
        """The largest single process of each name."""
        found: dict[str, int] = {}
        for pid, peak in self.peaks.items():
            found[self.names[pid]] = max(found.get(self.names[pid], 0), peak)
        return found

    def _run(self) -> None:
        while not self._stopped.wait(0.2):
            self._sample()

    def _sample(self) -> None:
        for pid in _tree(self.pid):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self.names.setdefault(pid, _name(pid))
            except OSError:
                continue
            self.cpu[pid] = (int(fields[11]) + int(fields[12])) / TICKS
            self.peaks[pid] = max(self.peaks.get(pid, 0), int(fields[21]) * PAGE)


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
        (r"periodiq|scheduler", "scheduler"),
        (r"mailpoll up", "supervisor"),
    ):
        if re.search(pattern, command):
            return name
    return "other"
