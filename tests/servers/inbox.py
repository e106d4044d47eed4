"""A small HTTP server that takes notifications, as Apprise's ``json://`` sends them."""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(slots=True)
class Inbox:
    """Keeps what it is sent.

    Parameters:
      status: what it answers with.
      pause: seconds before it answers.
    """

    status: int = 200
    pause: float = 0.0
    received: list[dict[str, Any]] = field(default_factory=list)
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        assert self._server
        return f"json://user:canary-word-77e1@127.0.0.1:{self._server.server_port}/"

    @property
    def titles(self) -> list[str]:
        return [message["title"] for message in self.received]

    @property
    def texts(self) -> list[str]:
        return [message["message"] for message in self.received]

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _taking(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server
        self._server.shutdown()
        self._server.server_close()


def _taking(inbox: Inbox) -> type[BaseHTTPRequestHandler]:
    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(inbox.pause)
            if inbox.status == 200:
                inbox.received.append(json.loads(body))
            self.send_response(inbox.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    return Answers
