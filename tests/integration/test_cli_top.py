"""``mailpoll top``: one look, and a terminal that is kept up to date."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner

from mailpoll import actors, alarms, database
from mailpoll.cli import cli
from mailpoll.models import AccountState, EmailEvent, EventType
from mailpoll.settings import settings
from tests.integration.rows import account_row, change_accounts
from tests.integration.system import PATIENCE, System, message
from tests.integration.test_tasks import make_dead
from tests.servers.process import free_ports


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["top", *arguments], env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def look() -> Any:
    return json.loads(run("--once", "--json"))


def row_of(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_an_installation_at_rest_has_zeros(system: System) -> None:
    found = look()
    assert {one["queue"] for one in found["queues"]} == {
        one["queue"] for one in system.get("/admin/tasks")["queues"]
    }
    names = ("messages_per_minute", "polls_per_minute", "late_accounts", "waiting", "polling")
    assert [found[name] for name in names] == [0, 0, 0, 0, []]
    assert "no poll is running" in run("--once")


def test_what_came_in_the_last_minute_is_counted(system: System, address: str) -> None:
    system.dovecot.deliver_many(address, [message(f"number {n}") for n in range(3)])
    system.poll_and_process(system.add_account(address))
    with database.transaction():
        EmailEvent.add(EventType.MESSAGE_FAILED)
    found = look()
    assert (found["messages_per_minute"], found["failures_per_minute"]) == (3, 1)
    assert (found["polls_per_minute"], found["accounts"]["active"]) == (1, 1)
    assert found["lateness_p95_ms"] is not None
    long_ago = database.now() - timedelta(seconds=61)
    with database.transaction():
        EmailEvent.update(created_at=long_ago).execute()
    change_accounts(last_poll_at=long_ago)
    assert (look()["messages_per_minute"], look()["polls_per_minute"]) == (0, 0)


def test_queues_running_polls_and_trouble_are_shown(system: System, address: str) -> None:
    make_dead(system, 1, 2)
    row = account_row(system.add_account(address))
    actors.process_message.send(1)
    moment = database.now()
    held = {
        "last_poll_at": moment - timedelta(seconds=90),
        "lease_until": moment.replace(year=9000),
    }
    change_accounts(**held, next_poll_at=moment - timedelta(seconds=90))
    alarms.look(system.broker)
    text = run("--once")
    assert row_of(text, "maintenance")[-1] == "1"
    assert row_of(text, "process")[1] == "1"
    assert row_of(text, row.address)[1] in ("90 s", "91 s", "92 s")
    assert "mailboxes: 1 active; 1 late" in text
    assert "alarm: 1 tasks have failed for good" in text
    change_accounts(lease_until=None, next_poll_at=moment, state=AccountState.PAUSED)
    assert "mailboxes: 1 paused; 0 late" in run("--once")


def test_a_look_is_possible_while_the_queue_is_away(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{port}/0")
    settings.cache_clear()
    found, text = look(), run("--once")
    monkeypatch.undo()
    settings.cache_clear()
    assert found["queues"] is None
    assert "the queue does not answer" in text


def test_a_file_gets_no_live_view(embedded: System) -> None:
    assert "standard output is no terminal: give --once" in run(code=1)
    assert "--json: goes with --once" in run("--json", code=2)
    assert "is not in the range" in run("--interval", "0", code=2)


def test_a_terminal_is_kept_up_to_date_until_ctrl_c(system: System) -> None:
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "mailpoll", "top", "--interval", "0.5"],
        env={**os.environ, "TERM": "xterm"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    try:
        read_until(controller, r"0 messages, 0 polls")
        with database.transaction():
            EmailEvent.add(EventType.MESSAGE_NEW)
        read_until(controller, r"1 messages, 0 polls")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def read_until(terminal: int, pattern: str) -> None:
    """Read what is drawn, without what moves the cursor, until the pattern was there."""
    end, drawn = time.monotonic() + PATIENCE, b""
    while time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            drawn += os.read(terminal, 65_536)
            if re.search(
                pattern, re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", drawn).decode(errors="replace")
            ):
                return
    raise AssertionError(f"{pattern} was not drawn, but {drawn[-2_000:]!r}")
