"""``mailpoll webhooks``: endpoints as the API has them, by the command line."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from standardwebhooks import Webhook

from mailpoll import database, webhooks
from mailpoll.cli import cli
from mailpoll.models import EmailEvent, EventType, WebhookEndpoint
from tests.integration.conftest import SETS, run_system
from tests.integration.system import System
from tests.servers.dovecot import Dovecot
from tests.servers.receiver import Receiver


@pytest.fixture(params=list(SETS))
def system(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    """Both sets, with receivers on this machine allowed."""
    variables = SETS[request.param](request, tmp_path)
    more = {"MAILPOLL_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8", "MAILPOLL_WEBHOOK_TIMEOUT": "2"}
    for system in run_system(variables, tmp_path, dovecot, **more):
        yield system
        with database.transaction():
            WebhookEndpoint.delete().execute()


def run(*arguments: str, code: int = 0, given: str | None = None) -> str:
    """What a command prints on standard output, with this exit code."""
    result = CliRunner().invoke(cli, ["webhooks", *arguments], input=given, env={"COLUMNS": "250"})
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def as_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def added(receiver: Receiver, *arguments: str) -> Any:
    return as_json("add", receiver.url, *arguments)


def happen(kind: EventType = EventType.STORAGE_FALLBACK) -> None:
    with database.transaction():
        EmailEvent.add(kind)


def deliver(uuid: str) -> None:
    endpoint = webhooks.find(uuid)
    assert endpoint
    webhooks.deliver(endpoint.id, 10)


def test_a_webhook_is_added_with_what_it_wants_to_be_told(system: System, address: str) -> None:
    account = system.add_account(address)
    with Receiver() as receiver:
        wanted = ("--type", "message.new", "--type", "account.state", "--account", address)
        more = ("--imports", "--payload", "bodies", "--body-limit", "10", "--rate", "5")
        hook = added(receiver, *wanted, *more, "--description", "the archive")
        assert hook["secret"].startswith("whsec_")
    shown = system.get(f"/admin/webhooks/{hook['id']}")
    assert shown == {name: value for name, value in hook.items() if name != "secret"}
    assert shown["types"] == ["message.new", "account.state"]
    assert shown["accounts"] == [account]
    names = ("imports", "payload", "body_limit", "rate", "description")
    assert [shown[name] for name in names] == [True, "bodies", 10, 5, "the archive"]


def test_the_secret_is_printed_alone_so_that_a_script_can_keep_it(system: System) -> None:
    with Receiver() as receiver:
        secret = run("add", receiver.url).strip()
        run("test", receiver.url)
        (got,) = receiver.received
    assert Webhook(secret).verify(got.body, got.headers)["type"] == "webhook.test"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ftp://example.org"], 1, "url: should be an https:// address"),
        (["https://u:p@example.org"], 1, "url: should hold no password"),
        (["https://example.org", "--rate", "0"], 1, "rate: Input should be greater"),
        (["https://example.org", "--type", "message.old"], 2, "is not one of message.new, "),
        (["https://example.org", "--account", "nobody"], 1, "there is no account nobody"),
    ],
)
def test_what_cannot_be_added_is_said(
    system: System, arguments: list[str], code: int, words: str
) -> None:
    assert words in run("add", *arguments, code=code)
    assert system.get("/admin/webhooks")["items"] == []


def test_lists_and_details_are_those_of_the_api(system: System) -> None:
    with Receiver() as receiver:
        hook = added(receiver, "--type", "message.new")
        happen()
        listed = [json.loads(line) for line in run("list", "--json").splitlines()]
        assert listed == system.get("/admin/webhooks")["items"]
        assert as_json("show", hook["id"]) == listed[0]
        assert listed[0]["behind"] == 1
        table = run("list")
        assert (receiver.url in table, "active" in table, hook["id"] in table) == (True,) * 3
        details = dict(line.split(maxsplit=1) for line in run("show", receiver.url).splitlines())
        assert details["types"] == "message.new"
        assert details["accounts"] == "all"
        assert details["payload"] == "ids"


def test_a_test_tells_what_the_receiver_answers(system: System) -> None:
    with Receiver(answer=lambda _: (500, {})) as receiver:
        hook = added(receiver)
        assert "the receiver answers 500" in run("test", hook["id"], code=1)
        receiver.answer = lambda _: (204, {})
        assert run("test", hook["id"]).startswith("delivered in ")
        assert as_json("test", hook["id"])["status"] == 204


def test_what_is_sent_again_has_the_ids_that_it_had(system: System) -> None:
    with Receiver() as receiver:
        hook = added(receiver)
        for _ in range(3):
            happen()
        deliver(hook["id"])
        first = list(receiver.ids)
        replayed = as_json("replay", hook["id"], "--after", "1")
        assert (replayed["position"], replayed["behind"]) == (1, 2)
        deliver(hook["id"])
        assert receiver.ids == [*first, *first[1:]]
        assert "3 events are sent again" in run("replay", hook["id"], "--since", "2020-01-01")
        deliver(hook["id"])
        assert receiver.ids == [*first, *first[1:], *first]


@pytest.fixture
def far_west(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A shell whose clocks are ten hours behind UTC."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Pacific/Honolulu")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_west")
def test_a_replay_begins_at_a_time_in_utc(system: System) -> None:
    with Receiver() as receiver:
        hook = added(receiver)
        for _ in range(3):
            happen()
        deliver(hook["id"])
        begin = datetime(2026, 1, 31, tzinfo=UTC)
        with database.transaction():
            for number, seconds in enumerate((-1, 0, 3_600), 1):
                moment = begin + timedelta(seconds=seconds)
                EmailEvent.update(created_at=moment).where(EmailEvent.number == number).execute()
        for since, position in (("2026-01-31", 1), ("2026-01-31T01:00:00", 2)):
            assert as_json("replay", hook["id"], "--since", since)["position"] == position


@pytest.mark.parametrize("given", [[], ["--after", "1", "--since", "2026-01-01"]])
def test_a_replay_begins_at_one_place(system: System, given: list[str]) -> None:
    with Receiver() as receiver:
        added(receiver)
        assert "give either --after or --since" in run("replay", receiver.url, *given, code=2)


def test_a_disabled_webhook_goes_on_where_it_was(system: System) -> None:
    with Receiver() as receiver:
        hook = added(receiver)
        assert f"mailpoll webhooks enable {hook['id']}" in run("disable", hook["id"])
        happen()
        deliver(hook["id"])
        assert receiver.ids == []
        assert as_json("show", hook["id"])["state"] == "paused"
        assert as_json("enable", hook["id"])["behind"] == 1
        deliver(hook["id"])
        assert len(receiver.ids) == 1


def test_deliveries_are_listed_newest_first_and_by_outcome(system: System) -> None:
    with Receiver() as receiver:
        hook = added(receiver)
        happen()
        deliver(hook["id"])
        receiver.answer = lambda _: (503, {})
        happen(EventType.STORAGE_RECOVERED)
        deliver(hook["id"])
        found = [json.loads(line) for line in run("deliveries", hook["id"], "--json").splitlines()]
        assert found == system.get(f"/admin/webhooks/{hook['id']}/deliveries")["items"]
        assert [one["outcome"] for one in found] == ["failed", "delivered"]
        (line,) = run("deliveries", hook["id"], "--outcome", "failed", "--json").splitlines()
        assert json.loads(line)["status"] == 503
        table = run("deliveries", hook["id"])
        assert "storage.recovered" in table
        assert "the receiver answers 503" in table


def test_removing_asks_first(system: System) -> None:
    with Receiver() as receiver:
        hook = added(receiver)
        run("remove", hook["id"], given="n\n", code=1)
        assert len(system.get("/admin/webhooks")["items"]) == 1
        assert "removed" in run("remove", hook["id"], given="y\n")
        added(receiver)
        run("remove", receiver.url, "--yes")
    assert system.get("/admin/webhooks")["items"] == []


def test_a_webhook_is_named_by_its_url_only_where_one_has_it(system: System) -> None:
    with Receiver() as receiver:
        first, _ = added(receiver), added(receiver)
        assert "2 webhooks have this URL: name one by its id" in run("show", receiver.url, code=1)
        assert as_json("show", first["id"])["url"] == receiver.url
    assert "see: mailpoll webhooks list" in run("show", "https://example.org", code=1)
