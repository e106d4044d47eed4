"""Runs one server and ends it when its owner ends.

Started as a script: ``supervisor.py OWNER_PID LOG STOP_SIGNAL USER COMMAND...``. It detaches
itself, so that Ctrl-C in the terminal does not reach the server before the tests have stopped,
prints ``<supervisor pid> <server pid>`` and watches: when the owner dies, whatever the way, or when
the supervisor gets SIGTERM, the server and everything it has started are ended. No test run leaves
a process behind.
"""

import ctypes
import os
import pwd
import resource
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
GRACE = 10.0  # seconds between the stop signal and SIGKILL


def main() -> None:
    owner, log, stop_signal, user, *command = sys.argv[1:]
    if os.fork() > 0:
        # The child prints; leaving without clean-up keeps its buffers out of our hands.
        os._exit(0)
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    asked_to_stop, wake = os.pipe()
    signal.set_wakeup_fd(_nonblocking(wake))
    signal.signal(signal.SIGTERM, lambda *_: None)
    with suppress(ProcessLookupError):
        owner_fd = os.pidfd_open(int(owner))
        server = _start(command, Path(log), user)
        print(os.getpid(), server.pid, flush=True)
        _forget_terminal()
        with suppress(ProcessLookupError):
            select.select([owner_fd, asked_to_stop, os.pidfd_open(server.pid)], [], [])
        _end(server, signal.Signals[stop_signal])


def _nonblocking(fd: int) -> int:
    os.set_blocking(fd, False)
    return fd


def _start(command: list[str], log: Path, user: str) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=log.parent,
            start_new_session=True,
            preexec_fn=lambda: _become(user),  # noqa: PLW1509 - there is one thread here
        )


def _become(user: str) -> None:
    """Raise the limit on open files as far as it goes, then drop to ``user`` ("" stays)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if user:
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)


def _forget_terminal() -> None:
    """Close the inherited pipe: whoever started us reads it to its end."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def _end(server: subprocess.Popen[bytes], stop_signal: signal.Signals) -> None:
    server.send_signal(stop_signal)
    try:
        server.wait(GRACE)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    # What the server had started is now a child of ours (we are the subreaper).
    while children := _children():
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _children() -> list[int]:
    own = os.getpid()
    return [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]


if __name__ == "__main__":
    main()
