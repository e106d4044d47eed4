"""Run the demo: start everything, send the sample mail, watch it arrive, verify it.

``ONCE=1`` ends after the verification: exit code 0 when everything sent is stored and processed.
``python -m mailpoll.demo send [MAILBOX]`` sends one more mail to a demo that is running.
"""

import hashlib
import json
import os
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import corpus
from .server import HOST, PASSWORD

DIRECTORY = Path("demo-data")
#: Seconds that starting may take, and that the import may stand still.
PATIENCE = 120

console = Console()


class Failure(Exception):
    """The demo cannot go on; the message says why."""


@dataclass(slots=True)
class Demo:
    """What runs, where, and what was sent: mailbox to the SHA-256 of its messages."""

    imap_port: int
    smtp_port: int
    web_port: int
    token: str = ""
    sent: dict[str, list[str]] = field(default_factory=dict)
    pool: urllib3.PoolManager = field(default_factory=urllib3.PoolManager)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.web_port}"

    def request(self, method: str, path: str, body: Any = None) -> urllib3.BaseHTTPResponse:
        """Ask mailpoll's API.

        Raises:
          Failure: it answered with an error.
        """
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = self.pool.request(
            method, self.address + path, json=body, headers=headers, timeout=30, retries=False
        )
        if answer.status >= 400:
            raise Failure(f"{method} {path} answered {answer.status}: {answer.data.decode()[:500]}")
        return answer

    def get(self, path: str) -> Any:
        return self.request("GET", path).json()


def main() -> None:
    once = os.environ.get("ONCE", "") not in ("", "0")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(run(once))
    except KeyboardInterrupt:
        console.print("stopped")
    except Failure as error:
        console.print(f"demo failed: {error}", style="red", markup=False)
        _show_log()
        sys.exit(1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def run(once: bool) -> int:
    """The whole demo; the exit code."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir()
    demo = Demo(_free_port(), _free_port(), _free_port(8025))
    with ExitStack() as stack:
        console.print("starting the sample mail server and mailpoll")
        stack.enter_context(_child("mail server", _server_command(demo), {}))
        mailpoll = stack.enter_context(_child("mailpoll", _mailpoll_command(), _environment(demo)))
        _wait_until_ready(demo, mailpoll)
        _send_all(demo)
        _add_accounts(demo)
        _watch(demo)
        wrong = _verify(demo)
        _show_table(demo)
        for line in wrong:
            console.print(line, style="red", markup=False)
        if not wrong:
            total = sum(map(len, demo.sent.values()))
            console.print(f"verified: all {total} messages stored once, every SHA-256 as sent")
        if once or wrong:
            return 1 if wrong else 0
        _show_addresses(demo)
        _follow(demo, mailpoll)
    return 0


def _free_port(wanted: int = 0) -> int:
    """A free loopback port, the wanted one if it is free."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return int(probe.getsockname()[1])
            except OSError:
                continue
    raise Failure("no free port")


def _server_command(demo: Demo) -> list[str]:
    ports = (str(demo.imap_port), str(demo.smtp_port))
    return [sys.executable, "-m", "mailpoll.demo.server", *ports]


def _mailpoll_command() -> list[str]:
    return [sys.executable, "-m", "mailpoll", "up"]


def _environment(demo: Demo) -> dict[str, str]:
    """Sample mailboxes and receivers are on this machine; mailboxes of one's own may be added."""
    ports = os.environ.get("MAILPOLL_IMAP_PORTS", "143,993")
    return {
        "MAILPOLL_DATA_DIR": str(DIRECTORY.resolve()),
        "MAILPOLL_POLL_INTERVAL": "5",
        "MAILPOLL_DASHBOARD": "yes",
        "MAILPOLL_IMAP_ALLOW_PLAIN": "yes",
        "MAILPOLL_IMAP_ALLOWED_NETWORKS": "127.0.0.0/8",
        "MAILPOLL_IMAP_PORTS": f"{ports},{demo.imap_port}",
        "MAILPOLL_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        "PORT": str(demo.web_port),
    }


@contextmanager
def _child(
    name: str, command: list[str], environ: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process for the block, its output in the demo's directory.

    It gets a session of its own, so that Ctrl-C ends the demo, and the demo ends its children.
    """
    clean = {key: value for key, value in os.environ.items() if not _configures(key)}
    with (DIRECTORY / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            command, env={**clean, **environ}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()


def _configures(variable: str) -> bool:
    """Whether a variable of the caller would lead the demo to real data."""
    own = ("DATABASE_URL", "REDIS_URL", "STORAGE_URL", "WEB_CONCURRENCY")
    harmless = "MAILPOLL_IMAP_CA_FILE"
    return variable in own or (variable.startswith("MAILPOLL_") and variable != harmless)


def _wait_until_ready(demo: Demo, mailpoll: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if mailpoll.poll() is not None:
            raise Failure("mailpoll ended")
        token = DIRECTORY / "api.token"
        if token.is_file():
            demo.token = token.read_text().split()[0]
            try:
                if demo.get("/readyz")["ready"]:
                    return
            except (urllib3.exceptions.HTTPError, Failure):
                pass
        time.sleep(0.2)
    raise Failure(f"mailpoll was not ready within {PATIENCE} s")


def _send_all(demo: Demo) -> None:
    """Send the sample mail over SMTP and remember the hash of every message."""
    with smtplib.SMTP(HOST, demo.smtp_port, timeout=30) as smtp:
        for number in range(corpus.MAILBOXES):
            address = corpus.address_of(number)
            mail = corpus.mailbox(number)
            for raw in mail:
                smtp.sendmail("sample@example.com", [address], raw, mail_options=["BODY=8BITMIME"])
            demo.sent[address] = [hashlib.sha256(raw).hexdigest() for raw in mail]
    (DIRECTORY / "smtp.port").write_text(str(demo.smtp_port))
    total = sum(map(len, demo.sent.values()))
    console.print(f"sent {total} messages to {len(demo.sent)} sample mailboxes")


def _add_accounts(demo: Demo) -> None:
    for address in demo.sent:
        account = {
            "address": address,
            "password": PASSWORD,
            "host": HOST,
            "port": demo.imap_port,
            "security": "plain",
        }
        demo.request("POST", "/admin/email-accounts", account)
    console.print(f"added {len(demo.sent)} accounts through the API")


def _watch(demo: Demo) -> None:
    """Show the progress until all is processed, or nothing moves any more."""
    total = sum(map(len, demo.sent.values()))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        stored = progress.add_task("stored", total=total)
        processed = progress.add_task("processed", total=total)
        last, moved = -1, time.monotonic()
        while True:
            stats = demo.get("/admin/stats")
            done = stats["by_status"]["processed"]
            progress.update(stored, completed=stats["messages"])
            progress.update(processed, completed=done)
            if done >= total or stats["by_status"]["failed"]:
                return
            if done != last:
                last, moved = done, time.monotonic()
            elif time.monotonic() - moved > PATIENCE:
                return
            time.sleep(0.25)


def _accounts(demo: Demo) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = demo.get("/admin/email-accounts?limit=200")["items"]
    return found


def _messages(demo: Demo, account_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = demo.get(f"/admin/email-accounts/{account_id}/messages?limit=200{cursor}")
        found += page["items"]
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"


def _verify(demo: Demo) -> list[str]:
    """Compare what is stored with what was sent, re-hashing every download; what differs."""
    wrong = []
    for account in _accounts(demo):
        address = account["address"]
        stored = []
        for message in _messages(demo, account["id"]):
            raw = demo.request("GET", f"/admin/messages/{message['id']}/raw").data
            stored.append(hashlib.sha256(raw).hexdigest())
            if message["status"] != "processed":
                wrong.append(f"{address}: message {message['id']} is {message['status']}")
        if sorted(stored) != sorted(set(demo.sent[address])):
            wrong.append(
                f"{address}: {len(demo.sent[address])} messages sent, {len(stored)} stored, "
                f"{len(set(stored) & set(demo.sent[address]))} of them as sent"
            )
    return wrong


def _show_table(demo: Demo) -> None:
    table = Table(title="stored per account")
    table.add_column("account", no_wrap=True, min_width=19)
    table.add_column("state")
    for name in ("messages", "MB", "files", "processed", "failed"):
        table.add_column(name, justify="right")
    for account in _accounts(demo):
        stats = demo.get(f"/admin/email-accounts/{account['id']}/stats")
        table.add_row(
            stats["address"],
            stats["state"],
            str(stats["messages"]),
            f"{stats['bytes'] / 1e6:.1f}",
            str(stats["attachments"]),
            str(stats["by_status"]["processed"]),
            str(stats["by_status"]["failed"]),
        )
    console.print(table)


def _show_addresses(demo: Demo) -> None:
    lines = (
        f"console     {demo.address}/",
        f"token       {demo.token}",
        f"API docs    {demo.address}/docs",
        f"dashboard   {demo.address}/dashboard",
        f'API         curl -H "Authorization: Bearer {demo.token}" {demo.address}/admin/stats',
        f"send mail   {Path(sys.executable)} -m mailpoll.demo send {corpus.address_of(0)}",
        "Mail that arrives is shown below. Ctrl-C ends everything.",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _follow(demo: Demo, mailpoll: "subprocess.Popen[bytes]") -> None:
    """Show what arrives, until Ctrl-C."""
    known = {item["id"] for account in _accounts(demo) for item in _messages(demo, account["id"])}
    count = demo.get("/admin/stats")["by_status"]["processed"]
    while mailpoll.poll() is None:
        time.sleep(1)
        now = demo.get("/admin/stats")["by_status"]["processed"]
        if now == count:
            continue
        count = now
        for account in _accounts(demo):
            page = demo.get(f"/admin/email-accounts/{account['id']}/messages?limit=20")
            for item in page["items"]:
                if item["id"] not in known and item["status"] == "processed":
                    known.add(item["id"])
                    text = f"new: {account['address']}  {json.dumps(item['subject'])}"
                    console.print(text, markup=False, highlight=False)
    raise Failure("mailpoll ended")


def send(address: str) -> None:
    """Send one mail to the running demo."""
    port = DIRECTORY / "smtp.port"
    if not port.is_file():
        raise SystemExit("no demo is running here: start it with `make demo`")
    moment = time.strftime("%H:%M:%S")
    raw = (
        f"From: you@example.com\r\nTo: {address}\r\nSubject: sent at {moment}\r\n"
        f"Message-ID: <{time.time_ns()}@example.com>\r\n\r\nHello!\r\n"
    )
    with smtplib.SMTP(HOST, int(port.read_text()), timeout=10) as smtp:
        smtp.sendmail("you@example.com", [address], raw.encode())
    console.print(f"sent to {address}")


def _show_log() -> None:
    for log in sorted(DIRECTORY.glob("*.log")):
        tail = log.read_text(errors="replace").splitlines()[-15:]
        if tail:
            console.print(f"--- the end of {log}", style="bold")
            console.print("\n".join(tail), markup=False, highlight=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["send"]:
        send(sys.argv[2] if len(sys.argv) > 2 else corpus.address_of(0))
    else:
        main()
