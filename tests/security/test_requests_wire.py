"""Requests on the wire, to the web process as it runs: too much, too slow, or ambiguous."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.integration.system import TOKEN, System
from tests.security.live import Web, healthy, running
from tests.servers.process import HOST

HEAD = f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n".encode()
PATH = b"/admin/email-accounts"
THREADS = 4


@pytest.fixture
def web(embedded: System, tmp_path: Path) -> Iterator[Web]:
    with running(tmp_path, MAILPOLL_WEB_THREADS=str(THREADS)) as started:
        yield started
        assert b"Traceback" not in started.log.read_bytes()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else 0


def request(method: bytes, head: bytes = b"", body: bytes = b"") -> bytes:
    return (
        method
        + b" "
        + PATH
        + b" HTTP/1.1\r\n"
        + HEAD
        + b"Connection: close\r\n"
        + head
        + b"\r\n"
        + body
    )


def test_a_body_of_a_gigabyte_is_refused_before_it_comes(web: Web) -> None:
    """S51"""
    started = time.monotonic()
    answer = web.ask(request(b"POST", b"Content-Length: 1000000000\r\n", b"x" * 100_000), 10)
    assert status(answer) == 413
    assert time.monotonic() - started < 9
    assert healthy(web)


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
BODIES = {
    "deep list": b"[" * 100_000 + b"]" * 100_000,
    "deep object": DEEP,
    "deep enough for one of two readers": b"[" * 1_020 + b"]" * 1_020,
    "NaN": b'{"poll_interval": NaN}',
    "Infinity": b'{"poll_interval": -Infinity}',
    "a name twice": b'{"address": "a@b.example", "password": "x", "address": "c@d.example"}',
    "a name twice, hidden": b'{"address": "a@b.example", "\\u0061ddress": "c@d.example"}',
    "a name twice, within": b'{"address": {"a": 1, "a": 2}}',
    "not UTF-8": b'{"address": "\xff"}',
    "two documents": b'{"a": 1}{"b": 2}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_two_readers_may_read_differently_is_refused(embedded: System, body: bytes) -> None:
    """S51: depth, numbers that are none, names that are there twice."""
    answer = embedded.api.simulate_post(
        PATH.decode(), body=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


AMBIGUOUS = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 50\r\n",
    "signed length": b"Content-Length: +5\r\n",
    "odd encoding": b"Transfer-Encoding: xchunked\r\n",
    "chunks twice": b"Transfer-Encoding: chunked, identity\r\n",
    "hidden chunks": b"Content-Length: 5\r\nTransfer-Encoding : chunked\r\n",
    "folded": b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n",
}


@pytest.mark.parametrize("head", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_request_whose_end_is_ambiguous_is_refused_and_nothing_after_it_is_read(
    web: Web, head: bytes
) -> None:
    """S51: request smuggling: the second request must not be taken for one."""
    smuggled = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    start = b"POST " + PATH + b" HTTP/1.1\r\n" + HEAD + head + b"\r\n"
    answer = web.ask(start + smuggled, 8)
    assert status(answer) in (400, 411, 501)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b'"ok"' not in answer
    assert healthy(web)


@pytest.mark.parametrize("authorization", [b"", HEAD], ids=["stranger", "known"])
def test_the_rest_of_a_refused_body_is_not_read_as_a_request(
    web: Web, authorization: bytes
) -> None:
    """S51: the refusal does not wait for the body, which comes when nobody expects it any more."""
    inner = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    start = (
        b"POST " + PATH + b" HTTP/1.1\r\nHost: x\r\n" + authorization.replace(b"Host: x\r\n", b"")
    )
    start += f"Content-Length: {len(inner) + 10_000_000 * bool(authorization)}\r\n\r\n".encode()
    with socket.create_connection((HOST, web.port), timeout=8) as client:
        client.sendall(start)
        answer = client.recv(65_536)
        time.sleep(0.5)
        with suppress(OSError):
            client.sendall(inner)
            while chunk := client.recv(65_536):
                answer += chunk
    assert status(answer) == (413 if authorization else 401)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert healthy(web)


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT", b"PUT", b"X9"])
def test_a_method_that_is_not_meant_is_refused_and_shows_nothing(web: Web, method: bytes) -> None:
    """S51: TRACE would give a page's scripts what the browser sends."""
    answer = web.ask(request(method))
    assert status(answer) in (400, 405)
    assert TOKEN.encode() not in answer
    assert healthy(web)


def clients(web: Web, count: int, stack: ExitStack, first: bytes = b"") -> list[socket.socket]:
    made = []
    for _ in range(count):
        client = stack.enter_context(socket.create_connection((HOST, web.port), timeout=60))
        client.sendall(first)
        made.append(client)
    return made


def test_connections_that_say_nothing_hold_nobody_up(web: Web) -> None:
    """S51: far more of them than there are threads."""
    with ExitStack() as stack:
        clients(web, 50 * THREADS, stack)
        assert healthy(web, 20)


SLOW = {
    "head": b"POST /admin/email-accounts HTTP/1.1\r\nHost: x\r\nX-A: ",
    "body": b"POST /admin/email-accounts HTTP/1.1\r\n" + HEAD + b"Content-Length: 500000\r\n\r\n{",
}


@pytest.mark.parametrize("first", SLOW.values(), ids=SLOW)
def test_clients_that_send_a_byte_now_and_then_free_their_threads(web: Web, first: bytes) -> None:
    """S51: slowloris, with all threads and some more, a byte a second."""
    with ExitStack() as stack:
        slow = clients(web, 2 * THREADS, stack, first)
        end = time.monotonic() + 55
        answered = False
        while time.monotonic() < end and not answered:
            for client in slow:
                try:
                    client.sendall(b"x")
                except OSError:
                    slow = [one for one in slow if one is not client]
            try:
                answered = healthy(web, 1)
            except OSError:
                time.sleep(0.1)
        assert answered


def test_a_slow_reader_gets_all_of_a_large_answer(web: Web) -> None:
    """S51: the limit is on requests; answers may take as long as they need."""
    with socket.create_connection((HOST, web.port), timeout=60) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.sendall(
            b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nConnection: close\r\n"
            + HEAD
            + b"\r\n"
        )
        time.sleep(17)
        answer = b""
        while chunk := client.recv(65_536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(
        line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    assert len(body) == int(length.partition(b":")[2])
    assert len(body) > 500_000


def test_every_answer_names_its_request(web: Web) -> None:
    """S52: a client's report finds the line in the log."""
    for path in ("/healthz", "/nowhere", "/admin/stats"):
        answer = web.ask(
            b"GET " + path.encode() + b" HTTP/1.1\r\nConnection: close\r\n" + HEAD + b"\r\n"
        )
        assert b"x-request-id: " in answer.lower()
