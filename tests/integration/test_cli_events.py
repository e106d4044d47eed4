"""``mailpoll events``: the event log for people and shell scripts."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from queue import Empty, Queue
from typing import IO, Any

import pytest
from click.testing import CliRunner

from mailpoll import database
from mailpoll.cli import cli
from mailpoll.models import EmailEvent, EventType
from tests.integration.rows import account_row
from tests.integration.system import PATIENCE, System, message


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["events", *arguments], env={"COLUMNS": "200"})


def told(*arguments: str) -> list[dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def happen(kind: EventType, account: str | None = None, **data: Any) -> None:
    row = account_row(account).id if account else None
    with database.transaction():
        EmailEvent.add(kind, row, None, data)


@pytest.fixture
def account(system: System, address: str) -> str:
    """An account with a message, and two events of no account behind its own."""
    system.dovecot.deliver(address, message("hello"))
    account = system.add_account(address)
    system.poll_and_process(account)
    happen(EventType.STORAGE_FALLBACK)
    happen(EventType.STORAGE_RECOVERED)
    return account


def test_events_are_listed_as_the_api_tells_them(system: System, account: str) -> None:
    assert told() == system.get("/admin/events")["items"]
    assert [event["id"] for event in told("--after", "1")] == [
        event["id"] for event in system.get("/admin/events", after=1)["items"]
    ]


def test_the_latest_are_shown_oldest_first(system: System, account: str) -> None:
    assert [event["type"] for event in told("--limit", "2")] == [
        "storage.fallback",
        "storage.recovered",
    ]
    assert [event["id"] for event in told("--after", "0", "--limit", "2")] == [1, 2]


def test_types_and_accounts_choose(system: System, address: str, account: str) -> None:
    kinds = ("--type", "message.new", "--type", "storage.fallback")
    assert [event["type"] for event in told(*kinds)] == ["message.new", "storage.fallback"]
    assert {event["account_id"] for event in told("--account", address)} == {account}


def test_people_get_a_table_with_addresses(system: System, address: str, account: str) -> None:
    happen(EventType.FSCK_DIFFERENCE, difference="blob", count=1)
    happen(EventType.MESSAGE_FLAGS, account=account, folder="[red]\x1b", flags=["\\Seen", "x"])
    result = run()
    assert result.exit_code == 0, result.output
    (new,) = (line for line in result.stdout.splitlines() if "message.new" in line)
    assert address in new
    assert "imported=yes" in new
    assert "count=1, difference=blob" in result.stdout
    assert "flags=\\Seen x, folder=[red]\ufffd" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--type", "message.old"], 2, "'message.old' is not one of message.new, "),
        (["--account", "nobody@example.org"], 1, "there is no account nobody@example.org"),
        (["--after", "-1"], 2, "-1 is not in the range"),
    ],
)
def test_what_is_wrong_is_said(
    embedded: System, arguments: list[str], code: int, words: str
) -> None:
    result = run(*arguments)
    assert (result.exit_code, words in result.output) == (code, True), result.output


# --- following


class Following:
    """``mailpoll events --follow`` in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mailpoll", "events", "--follow", *arguments],
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: Queue[str] = Queue()
        assert self._process.stdout
        threading.Thread(target=self._read, args=[self._process.stdout], daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)

    def line(self) -> str:
        try:
            return self._lines.get(timeout=PATIENCE)
        except Empty:
            raise AssertionError("nothing was told") from None

    def interrupt(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(PATIENCE)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def following(request: pytest.FixtureRequest) -> Iterator[Any]:
    begun: list[Following] = []

    def follow(*arguments: str) -> Following:
        begun.append(Following(*arguments))
        return begun[-1]

    yield follow
    for one in begun:
        one.end()


def test_events_are_followed_as_they_come_until_ctrl_c(system: System, following: Any) -> None:
    for _ in range(3):
        happen(EventType.STORAGE_FALLBACK)
    follower = following("--json", "--after", "2")
    assert json.loads(follower.line())["id"] == 3
    for number in (4, 5):
        happen(EventType.STORAGE_RECOVERED)
        assert json.loads(follower.line())["id"] == number
    assert follower.interrupt() == 0


def test_followed_events_can_be_chosen_too(
    system: System, address: str, account: str, following: Any
) -> None:
    follower = following("--type", "account.state", "--limit", "1")
    happen(EventType.STORAGE_FALLBACK)
    system.post(f"/admin/email-accounts/{account}/pause")
    line = follower.line()
    assert "account.state" in line
    assert f"{address}  state=paused" in line
    assert follower.interrupt() == 0
