"""S3 servers that misbehave: one that answers as told, and one that never answers."""

import hashlib
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"


@dataclass(slots=True)
class Answer:
    """What comes back for a PUT; None for ``etag`` means the right one."""

    status: int = 200
    code: str = ""
    etag: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False
    pause_per_block: float = 0.0  # seconds after each block of the body that is read


class ScriptedS3:
    """Says that every bucket exists, takes PUTs as ``answers`` say (the last one repeats)."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.puts = 0
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_PUT(self) -> None:
                script.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"{HOST}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.puts += 1
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        body = self._read(request, answer.pause_per_block)
        if answer.hang_up:
            request.close_connection = True
            return
        content = b""
        request.send_response(answer.status)
        if answer.status == 200:
            self.objects[request.path] = body
            etag = hashlib.md5(body).hexdigest() if answer.etag is None else answer.etag
            request.send_header("ETag", f'"{etag}"')
        else:
            content = f"<Error><Code>{answer.code}</Code></Error>".encode()
            request.send_header("Content-Type", "application/xml")
        for name, value in answer.headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def _read(request: BaseHTTPRequestHandler, pause: float) -> bytes:
        left = int(request.headers["Content-Length"])
        blocks = []
        while left:
            block = request.rfile.read(min(left, 1 << 20))
            blocks.append(block)
            left -= len(block)
            time.sleep(pause)
        return b"".join(blocks)


class BlackHole:
    """Accepts connections and never says a word."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self.endpoint = f"{HOST}:{self._listener.getsockname()[1]}"
        self._accepted: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def connections(self) -> int:
        """How many connections there have been."""
        return len(self._accepted)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # shutdown and not just close: only that wakes a thread that waits in accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for connection in (*self._accepted, self._listener):
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                self._accepted.append(self._listener.accept()[0])
            except OSError:
                return
