"""gunicorn's threads, none of which a slow client can hold (CWE-400, "slowloris").

gunicorn waits as long as it takes for a request that has begun. Here a request must be there whole
within ``PATIENCE``; the time of the answer is not limited, as downloads may be large.
"""

import socket
import time
from typing import Any

from gunicorn.workers import gthread

#: Seconds within which a request must have come, its body too.
PATIENCE = 15.0
#: Seconds that a thread waits for the first byte on a new connection; the poller waits then.
FIRST_BYTE = 0.05


class Punctual(socket.socket):
    """A connection from which nothing can be read after its deadline, as if the client had gone."""

    #: ``time.monotonic()`` value.
    deadline = 0.0
    #: Something was missing at the deadline.
    late = False

    def recv(self, *args: Any) -> bytes:
        left = self.deadline - time.monotonic()
        if left <= 0:
            self.late = True
            return b""
        before = self.gettimeout()  # set while gunicorn empties what nobody has read
        self.settimeout(left if before is None else min(left, before))
        try:
            return super().recv(*args)
        except TimeoutError:
            if before is not None and before < left:
                raise  # to gunicorn an end would mean that all has been read
            self.late = True
            return b""
        finally:
            self.settimeout(before)


class Worker(gthread.ThreadWorker):
    """The ``--worker-class`` of the web process."""

    def init_process(self) -> None:
        gthread.DEFAULT_WORKER_DATA_TIMEOUT = FIRST_BYTE
        super().init_process()

    def handle(self, conn: Any) -> Any:
        if not isinstance(conn.sock, Punctual):
            conn.sock = Punctual(fileno=conn.sock.detach())
        conn.sock.deadline = time.monotonic() + PATIENCE
        keep = super().handle(conn)
        # What comes late would be taken for another request.
        return False if conn.sock.late else keep
