"""A layer before an S3 server that breaks requests: refused, done but not answered, or not true."""

import http.client
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

from tests.servers.process import HOST
from tests.servers.seaweed import Seaweed

#: What can become of a request, by the method that it concerns ("" for every method).
KINDS = {
    "refuse": "",  # 503 SlowDown
    "forbid": "",  # 403 InvalidAccessKeyId
    "no-bucket": "",  # 404 NoSuchBucket
    "drop": "PUT",  # done, and the connection ends without an answer
    "silence": "PUT",  # done, and no answer comes
    "cut-put": "PUT",  # 200, but half of the bytes are stored
    "flip-put": "PUT",  # 200, but a bit of what is stored is wrong
    "flip-get": "GET",
    "cut-get": "GET",
}
ANSWERS = {
    "refuse": (503, "SlowDown"),
    "forbid": (403, "InvalidAccessKeyId"),
    "no-bucket": (404, "NoSuchBucket"),
}
#: Seconds that ``silence`` lasts: longer than any client waits.
SILENCE = 30


@dataclass
class StoreFault:
    """Parameters: a kind of ``KINDS``; how probable it is; how often it happens at most."""

    kind: str
    probability: float = 1.0
    times: int = 1_000_000

    def concerns(self, method: str, path: str, chance: random.Random) -> bool:
        blob = path.strip("/").count("/") >= 3  # bucket/account/digits/name
        wanted = KINDS[self.kind]
        if not self.times or (wanted and (wanted != method or not blob)):
            return False
        if chance.random() >= self.probability:
            return False
        self.times -= 1
        return True


class StoreLayer:
    """Passes requests on to ``server``, except as ``faults`` say."""

    def __init__(self, server: Seaweed, chance: random.Random) -> None:
        self.faults: tuple[StoreFault, ...] = ()
        self.done: Counter[str] = Counter()
        self._target = server
        self._chance = chance
        self._lock = threading.Lock()
        layer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def do_GET(self) -> None:
                layer.serve(self)

            do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815 - the library's names

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])

    def url_of(self, bucket: str) -> str:
        return self._target.url_of(bucket).replace(self._target.endpoint, f"{HOST}:{self.port}")

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        kind = self._kind_for(request)
        if kind in ANSWERS:
            status, code = ANSWERS[kind]
            error = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
            self._answer(request, status, {"Content-Type": "application/xml"}, error)
            return
        if kind in ("cut-put", "flip-put"):
            self._store_wrong(request, body, kind)
            return
        status, headers, content = self._forward(request, body)
        if kind in ("drop", "silence"):
            time.sleep(SILENCE if kind == "silence" else 0)
            request.close_connection = True
            return
        if kind == "flip-get" and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._answer(request, status, headers, content, cut=kind == "cut-get")

    def _kind_for(self, request: BaseHTTPRequestHandler) -> str:
        path = urlsplit(request.path).path
        with self._lock:
            for fault in self.faults:
                if fault.concerns(request.command, path, self._chance):
                    self.done[fault.kind] += 1
                    return fault.kind
        return ""

    def _store_wrong(self, request: BaseHTTPRequestHandler, body: bytes, kind: str) -> None:
        import io

        wrong = body[: len(body) // 2] if kind == "cut-put" else body[:-1] + bytes([body[-1] ^ 1])
        _, bucket, key = urlsplit(request.path).path.split("/", 2)
        put = self._target.client().put_object(bucket, key, io.BytesIO(wrong), len(wrong))
        self._answer(request, 200, {"ETag": f'"{put.etag}"'}, b"")

    def _forward(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self._target.endpoint, timeout=60)
        try:
            connection.putrequest(
                request.command, request.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in request.headers.items():
                if name.lower() != "connection":
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    @staticmethod
    def _answer(
        request: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        content: bytes,
        *,
        cut: bool = False,
    ) -> None:
        request.send_response_only(status)
        length = headers.get("Content-Length") if request.command == "HEAD" else None
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                request.send_header(name, value)
        request.send_header("Content-Length", length or str(len(content)))
        request.end_headers()
        if request.command != "HEAD" and status != 204:
            request.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            request.close_connection = True
