"""A web server over TLS that serves what a test puts there."""

import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self


@dataclass(slots=True)
class HttpsFiles:
    """Serves in threads on a loopback port, as ``localhost``.

    Parameters:
      directory: holds ``server.pem`` and ``server.key``.
      files: path to (status, content).
      drips: send a byte of the content a second.
      packed: say that the content is packed with gzip.
    """

    directory: Path
    files: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    drips: bool = False
    packed: bool = False
    asked: list[str] = field(default_factory=list)
    _server: ThreadingHTTPServer | None = None

    @property
    def port(self) -> int:
        assert self._server
        return self._server.server_port

    def __enter__(self) -> Self:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "server.pem", self.directory / "server.key")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _serving(self))
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server
        self._server.shutdown()
        self._server.server_close()


def _serving(server: HttpsFiles) -> type[BaseHTTPRequestHandler]:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(self.path)
            status, content = server.files.get(self.path, (404, b"not here"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if server.packed:
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Location", "https://169.254.169.254/")
            self.end_headers()
            if not server.drips:
                self.wfile.write(content)
                return
            try:
                for position in range(len(content)):
                    self.wfile.write(content[position : position + 1])
                    time.sleep(1)
            except OSError:
                return

        def log_message(self, *_: Any) -> None:
            return

    return Answers
