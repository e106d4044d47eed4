"""Import 100 Dovecot mailboxes, poll them again without news, and report the figures.

``python -m bench [--accounts N] [--messages N] [--set embedded|production] [--json FILE]``
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import urllib3

from bench.corpus import mailbox
from bench.usage import Usage
from mailpoll.settings import new_token
from tests.servers.dovecot import Dovecot
from tests.servers.postgres import Postgres
from tests.servers.process import free_ports
from tests.servers.seaweed import Seaweed
from tests.servers.valkey import Flavour, Valkey

PASSWORD = "secret"
PATIENCE = 900


class Api:
    """The running mailpoll's API."""

    def __init__(self, port: int, token: str) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self._pool = urllib3.PoolManager(maxsize=16, headers={"Authorization": f"Bearer {token}"})

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._pool.request(method, self._base + path, json=body, retries=False, timeout=60)
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.data[:300]!r}")
        return answer.json()

    def ready(self) -> bool:
        try:
            return bool(self("GET", "/readyz")["ready"])
        except (urllib3.exceptions.HTTPError, RuntimeError):
            return False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--accounts", type=int, default=100)
    parser.add_argument("--messages", type=int, default=100, help="per mailbox")
    parser.add_argument("--set", choices=["embedded", "production"], default="embedded")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mailpoll-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)
        figures = run(options.accounts, options.messages, options.set, directory, stack)
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


def run(
    accounts: int, messages: int, backing: str, directory: Path, stack: ExitStack
) -> dict[str, Any]:
    dovecot = stack.enter_context(Dovecot(directory / "dovecot"))
    sent = fill(dovecot, accounts, messages)
    (port,) = free_ports(1)
    token = new_token()
    environ = {
        **backing_variables(backing, directory, stack),
        "MAILPOLL_DATA_DIR": str(directory / "data"),
        "MAILPOLL_API_TOKEN": token,
        "MAILPOLL_IMAP_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
        "MAILPOLL_IMAP_CA_FILE": str(dovecot.ca_file),
        "MAILPOLL_IMAP_PORTS": str(dovecot.imaps_port),
        "MAILPOLL_POLL_INTERVAL": "3600",
        "MAILPOLL_LOG_LEVEL": "warning",
        "PORT": str(port),
    }
    api = Api(port, token)
    with mailpoll(environ, directory) as process:
        wait_until(api.ready)
        usage = Usage(process.pid)
        usage.start()
        figures = {"set": backing, "messages": len(sent), "bytes": sum(map(len_of, sent))}
        figures |= cold_import(api, usage, dovecot, accounts, len(sent))
        verify(api, {digest for digest, _ in sent})
        figures |= idle_round(api, usage)
        usage.stop()
        figures["peak_mb"] = {n: round(b / 1e6, 1) for n, b in usage.peak_by_name().items()}
    return figures


def len_of(item: tuple[str, int]) -> int:
    return item[1]


def fill(dovecot: Dovecot, accounts: int, messages: int) -> list[tuple[str, int]]:
    """Deliver the corpus; the SHA-256 and size of each message."""
    sent = []
    for number in range(accounts):
        mail = list(mailbox(number, messages))
        dovecot.deliver_many(user(number), mail)
        sent += [(hashlib.sha256(raw).hexdigest(), len(raw)) for raw in mail]
    return sent


def user(number: int) -> str:
    return f"user{number:05}@example.org"


def backing_variables(backing: str, directory: Path, stack: ExitStack) -> dict[str, str]:
    if backing == "embedded":
        return {}
    postgres = stack.enter_context(Postgres(directory / "postgres", durable=True))
    redis = stack.enter_context(Valkey(directory / "redis", Flavour.REDIS))
    seaweed = stack.enter_context(Seaweed(directory / "seaweed"))
    return {
        "DATABASE_URL": postgres.create_database("bench"),
        "REDIS_URL": redis.url,
        "STORAGE_URL": seaweed.url_of("bench"),
    }


@contextmanager
def mailpoll(environ: dict[str, str], directory: Path) -> Iterator["subprocess.Popen[bytes]"]:
    log = (directory / "mailpoll.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "mailpoll", "up"],
        env={**os.environ, **environ},
        stdout=log,
        stderr=log,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        tail = (directory / "mailpoll.log").read_text(errors="replace").splitlines()[-20:]
        if any("error" in line for line in tail):
            print("\n".join(tail), file=sys.stderr)


def cold_import(
    api: Api, usage: Usage, dovecot: Dovecot, accounts: int, messages: int
) -> dict[str, Any]:
    """Seconds from the first account's request until every message is processed."""
    cpu = usage.total_cpu()
    start = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        new = [
            {
                "address": user(number),
                "password": PASSWORD,
                "host": "localhost",
                "port": dovecot.imaps_port,
                "test": False,
            }
            for number in range(accounts)
        ]
        list(pool.map(lambda body: api("POST", "/admin/email-accounts", body), new))
    added = time.monotonic() - start

    def done() -> bool:
        stats = api("GET", "/admin/stats")
        return bool(stats["by_status"]["processed"] >= messages)

    wait_until(done, 0.25)
    seconds = time.monotonic() - start
    spent = usage.total_cpu() - cpu
    return {
        "import_seconds": round(seconds, 2),
        "adding_seconds": round(added, 2),
        "messages_per_second": round(messages / seconds, 1),
        "cpu_ms_per_message": round(spent / messages * 1_000, 2),
        "cpu_by_process": {n: round(s, 2) for n, s in usage.cpu_by_name().items()},
    }


def verify(api: Api, digests: set[str]) -> None:
    """What is stored is exactly what was sent."""
    found: set[str] = set()
    cursor = ""
    ids = []
    while True:
        page = api("GET", f"/admin/email-accounts?limit=200{cursor}")
        ids += [account["id"] for account in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    for account in ids:
        cursor = ""
        while True:
            path = f"/admin/email-accounts/{account}/messages?limit=200&status=processed{cursor}"
            page = api("GET", path)
            found |= {message["sha256"] for message in page["items"]}
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
    if found != digests:
        raise SystemExit(f"{len(digests - found)} messages missing, {len(found - digests)} unknown")


def idle_round(api: Api, usage: Usage) -> dict[str, Any]:
    """Seconds for a poll of every mailbox when none has news."""
    accounts = api("GET", "/admin/email-accounts?limit=200")["items"]
    before = {account["id"]: account["last_success_at"] for account in accounts}
    cpu = usage.total_cpu()
    start = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: api("POST", f"/admin/email-accounts/{i}/poll"), before))

    def done() -> bool:
        now = api("GET", "/admin/email-accounts?limit=200")["items"]
        return all(account["last_success_at"] != before[account["id"]] for account in now)

    wait_until(done, 0.1)
    return {
        "idle_round_seconds": round(time.monotonic() - start, 2),
        "idle_polls": len(before),
        "cpu_ms_per_idle_poll": round((usage.total_cpu() - cpu) / len(before) * 1_000, 2),
    }


def wait_until(done: Callable[[], bool], pause: float = 0.1) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > end:
            raise SystemExit("gave up waiting")
        time.sleep(pause)


def report(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
