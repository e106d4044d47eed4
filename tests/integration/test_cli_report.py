"""``mailpoll report``: what came in a period, and how things stand."""

import json
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from click.testing import CliRunner

from mailpoll import alarms
from mailpoll.cli import cli
from mailpoll.models import AccountState
from tests.integration.rows import change_accounts
from tests.integration.system import System, message
from tests.integration.test_tasks import make_dead
from tests.servers.process import free_ports

#: INTERNALDATE of the newest message.
NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
LAST = NOON.date().isoformat()
#: Days before it of all messages.
AGES = [0, 0, 1, 6, 7, 29, 31, 60]


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["report", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def as_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


@pytest.fixture
def account(system: System, address: str) -> str:
    """A mailbox whose messages came over two months."""
    for number, age in enumerate(AGES):
        moment = int((NOON - timedelta(days=age)).timestamp())
        system.dovecot.deliver(address, message(f"number {number}"), received_at=moment)
    account = system.add_account(address)
    system.poll_and_process(account)
    return account


def test_an_empty_installation_has_a_report(system: System) -> None:
    found = as_json()
    yesterday = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
    assert (found["period"], found["first"]) == ("day", found["last"])
    assert found["last"] in (yesterday, datetime.now(UTC).date().isoformat())
    assert (found["mail"]["messages"], found["accounts"], found["dead"]) == (0, [], [])
    assert "mailboxes now: none" in run()
    assert "0 tasks failed for good" in run("--html")


@pytest.mark.parametrize(
    ("period", "first", "messages", "before"),
    [("day", "2026-03-31", 2, 1), ("week", "2026-03-25", 4, 1), ("month", "2026-03-02", 6, 1)],
)
def test_a_period_is_whole_days_beside_as_many_before(
    system: System, account: str, period: str, first: str, messages: int, before: int
) -> None:
    found = as_json("--period", period, "--last", LAST)
    assert (found["first"], found["last"]) == (first, LAST)
    assert (found["mail"]["messages"], found["before"]["messages"]) == (messages, before)
    days = {day["day"]: day["messages"] for day in found["days"]}
    assert len(days) == (date.fromisoformat(LAST) - date.fromisoformat(first)).days + 1
    assert (sum(days.values()), days[LAST]) == (messages, 2)
    (most,) = found["accounts"]
    assert (most["id"], most["messages"]) == (account, messages)
    assert most["bytes"] == found["mail"]["bytes"] > 0


def test_people_see_sums_days_and_tasks(system: System, account: str, address: str) -> None:
    lines = run("--period", "week", "--last", LAST).splitlines()
    assert lines[0] == "the week: 2026-03-25 to 2026-03-31 (UTC)"
    assert [line.split()[1:6:2] for line in lines if "│ messages" in line] == [
        ["messages", "4", "1"]
    ]
    (last,) = (line for line in lines if line.startswith(LAST))
    assert last.split()[1:] == ["█" * 40, "2"]
    assert any(address in line for line in lines)
    assert any("process_message" in line or "import_messages" in line for line in lines)


def test_what_is_wrong_stands_in_it(system: System, account: str, address: str) -> None:
    make_dead(system, 1, 2)
    words = "[b]no\x1b <script>"
    change_accounts(state=AccountState.AUTH_FAILED, last_error=words)
    alarms.look(system.broker)
    today = datetime.now(UTC).date().isoformat()
    found = as_json("--period", "week", "--last", today)
    assert [one["address"] for one in found["troubled"]] == [address]
    assert {"auth_failed", "dead_letters"} <= {alarm["name"] for alarm in found["alarms"]}
    assert [one["actor"] for one in found["dead"]] == ["delete_account"]
    assert as_json("--last", "2026-01-01")["dead"] == []
    text = run("--period", "week", "--last", today)
    assert f"{address}  auth_failed  [b]no\ufffd <script>" in text
    assert "tasks that failed for good in this week: 1" in text


class Page(HTMLParser):
    """What a mail program would see: tags, addresses to load from, text, and the title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_mail_programs_get_a_document_that_loads_nothing(
    system: System, account: str, address: str
) -> None:
    change_accounts(last_error="<script>\x1b")
    page = Page(run("--period", "week", "--last", LAST, "--html"))
    allowed = {"charset", "name", "content", "lang", "style"}
    assert page.attributes <= allowed
    assert not {"script", "img", "link", "style"} & set(page.tags)
    assert "mailpoll, week 2026-03-25 to 2026-03-31: 4 messages" in page.text
    assert f"{address}" in page.text
    assert "<script>\ufffd" in page.text


def test_it_is_made_while_the_queue_is_away(
    system: System, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mailpoll.settings import settings

    (port,) = free_ports(1)
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{port}/0")
    settings.cache_clear()
    found = as_json("--last", LAST)
    monkeypatch.undo()
    settings.cache_clear()
    assert (found["tasks"], found["dead"], found["mail"]["messages"]) == (None, None, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--html", "--json"], "give either --html or --json"),
        (["--last", "0001-01-01"], "should be from 1970 on"),
        (["--last", "yesterday"], "does not match the format"),
        (["--period", "year"], "'year' is not one of"),
    ],
)
def test_what_is_no_report_is_said(embedded: System, arguments: list[str], words: str) -> None:
    assert words in run(*arguments, code=2)
