"""The limit: download everything over 16 connections, pipelined, and keep nothing of it.

Run as a script it is given one JSON file, which also holds what it knows from the last run.
"""

import json
import re
import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.contenders.script import Script

CONNECTIONS = 16
TAIL = 100  # bytes that the last line of an answer fits into
BODY = b" BODY[] {"
UIDNEXT = re.compile(rb"UIDNEXT (\d+)")


class Raw(Script):
    """As fast as the server, TLS and this machine allow."""

    name = "raw"
    module = __name__

    def verified(self, sent: set[str]) -> int:
        """As many as it saw go by: there is nothing to hash."""
        return min(len(sent), self.known()["messages"])


def main() -> None:
    path = Path(sys.argv[1])
    job = json.loads(path.read_text())
    context = ssl.create_default_context(cafile=job["ca_file"])
    seen = job.setdefault("uidnext", {})
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        answers = list(pool.map(lambda user: mailbox(job, context, user), job["users"]))
    for user, (uidnext, messages) in zip(job["users"], answers, strict=True):
        seen[user] = uidnext
        job["messages"] = job.get("messages", 0) + messages
    path.write_text(json.dumps(job))


def mailbox(job: dict[str, Any], context: ssl.SSLContext, user: str) -> tuple[int, int]:
    """What the mailbox's UIDNEXT is, and how many messages were new."""
    first = job["uidnext"].get(user, 1)
    with (
        socket.create_connection((job["host"], job["port"])) as plain,
        context.wrap_socket(plain, server_hostname=job["host"]) as connection,
    ):
        look = f"a LOGIN {user} {job['password']}\r\nb STATUS INBOX (UIDNEXT)\r\n"
        fetch = f"c EXAMINE INBOX\r\nd UID FETCH {first}:* BODY.PEEK[]\r\n"
        # The first time there is no need to wait for the answer whether there is mail.
        connection.sendall((look + fetch if first == 1 else look).encode())
        answer = read_until(connection, b"\r\nb OK")
        found = UIDNEXT.search(answer)
        assert found, answer
        uidnext = int(found[1])
        if uidnext == first:
            return uidnext, 0
        if first > 1:
            connection.sendall(fetch.encode())
        return uidnext, bodies(connection, answer)


def read_until(connection: ssl.SSLSocket, end: bytes) -> bytes:
    answer = b""
    while end not in answer:
        received = connection.recv(1 << 16)
        if not received:
            raise ConnectionError(answer[-200:])
        answer += received
    return answer


def bodies(connection: ssl.SSLSocket, answer: bytes) -> int:
    """Read to the end of the FETCH that ``answer`` begins; how many bodies it had."""
    view = memoryview(bytearray(1 << 18))
    count, tail = answer.count(BODY), answer[-TAIL:]
    while b"\r\nd OK" not in tail:
        received = connection.recv_into(view)
        if not received:
            raise ConnectionError(tail)
        text = tail + view[:received]
        count += text.count(BODY) - tail.count(BODY)
        tail = text[-TAIL:]
    return count


if __name__ == "__main__":
    main()
