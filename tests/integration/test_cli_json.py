"""``--json`` at every command: what programs read is JSON, on real data, and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mailpoll import database, webhooks
from mailpoll.cli import cli
from mailpoll.crypto import key_id
from mailpoll.models import EmailRawMessage, MessageStatus, WebhookEndpoint
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import change_messages
from tests.integration.system import KEY, PASSWORD, System, message
from tests.integration.test_cli import run
from tests.integration.test_retention import days_ago, letter
from tests.security.test_audit import variables
from tests.security.test_key_rotation import NEW
from tests.servers.dovecot import Dovecot
from tests.servers.receiver import Receiver
from tests.unit.test_help import COMMANDS, SPEAK_NO_JSON


@pytest.fixture(params=list(SETS))
def system(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    """Both sets, with receivers of webhooks on this machine."""
    variables = SETS[request.param](request, tmp_path)
    more = {
        "MAILPOLL_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        "MAILPOLL_NOTIFY_URLS": "json://127.0.0.1:9",  # nobody is there
    }
    for system in run_system(variables, tmp_path, dovecot, **more):
        yield system
        with database.transaction():
            WebhookEndpoint.delete().execute()


def documents(text: str) -> list[Any]:
    """One JSON document, or one on each line."""
    try:
        return [json.loads(text)]
    except ValueError:
        return [json.loads(line) for line in text.splitlines()]


class Shell:
    """Types commands, and notes which were typed."""

    def __init__(self) -> None:
        self.typed: set[str] = set()

    def __call__(
        self, words: str, *arguments: str, given: str | None = None, codes: tuple[int, ...] = (0,)
    ) -> list[Any]:
        """The documents that a command prints; there is one at least."""
        line = [*words.split(), *arguments, "--json"]
        result = CliRunner().invoke(cli, line, input=given)
        assert result.exit_code in codes, (words, result.output, result.exception)
        found = documents(result.stdout)
        assert found, words
        self.typed.add(words)
        return found


def test_every_command_speaks_json(system: System, address: str, tmp_path: Path) -> None:
    told = Shell()
    accounts_and_mail(told, system, address, tmp_path)
    with Receiver() as receiver:
        hooks(told, receiver)
    keys_and_the_rest(told, tmp_path)
    told("accounts delete", address, "--yes")
    (deletion,) = told("accounts deletions")
    told("accounts receipt", deletion["id"], codes=(1,))  # its job has not run
    assert COMMANDS.keys() - told.typed == SPEAK_NO_JSON


def accounts_and_mail(told: Shell, system: System, address: str, tmp_path: Path) -> None:
    mail = [letter("an invoice"), message("broken")]
    system.dovecot.deliver_many(address, mail, received_at=days_ago(40))
    place = ("--host", "localhost", "--port", str(system.dovecot.imaps_port))
    (added,) = told("accounts add", address, *place, "--password-stdin", given=f"{PASSWORD}\n")
    assert added["address"] == address
    system.poll_and_process(added["id"])
    change_messages(status=MessageStatus.FAILED, error="by hand", subject="broken")
    with database.connected():
        number = str(EmailRawMessage.get(EmailRawMessage.attachment_count == 1).id)
    file = tmp_path / "accounts.csv"
    file.write_text("address,password,host\nnew@example.org,secret,imap.example.org\n")
    told("accounts import", str(file), "--dry-run", codes=(0, 1))
    for words in ("list", "show", "test", "poll", "reconcile", "pause", "resume"):
        told(f"accounts {words}", *([] if words == "list" else [address]))
    told("accounts edit", address, "--retention-days", "30")
    told("messages list", address)
    told("messages show", number)
    told("messages failed")
    told("messages retry", "--error", "by hand")
    told("attachments", address)
    told("search", "invoice")
    told("reindex")
    told("stats")
    told("holds set", address, "--reason", "case 7")
    told("holds list")
    told("holds lift", address)
    told("retention", "--dry-run")
    told("export", address, "--output", str(tmp_path / "all.mbox"))
    told("import", "archive@example.org", str(tmp_path / "all.mbox"), "--create")
    told("events")


def hooks(told: Shell, receiver: Receiver) -> None:
    (hook,) = told("webhooks add", receiver.url, "--type", "message.new", "--imports")
    told("webhooks replay", hook["id"], "--after", "0")
    endpoint = webhooks.find(hook["id"])
    assert endpoint
    webhooks.deliver(endpoint.id, 10)
    for words in ("list", "show", "test", "deliveries", "disable", "enable"):
        told(f"webhooks {words}", *([] if words == "list" else [hook["id"]]))
    told("webhooks remove", hook["id"], "--yes")


def keys_and_the_rest(told: Shell, tmp_path: Path) -> None:
    told("keys status")
    told("keys rotate")
    ring = {**variables(), "MAILPOLL_SECRET_KEY": f"{KEY},{NEW}"}
    removed = run("keys", "remove", key_id(NEW), "--json", variables=ring, cwd=tmp_path)
    assert documents(removed.stdout.decode())
    told.typed.add("keys remove")
    told("api-keys create", "dashboard", "--scope", "read")
    told("api-keys list")
    told("api-keys revoke", "dashboard")
    told("audit")
    told("notify test", codes=(1,))
    told("migrate")
    told("report")
    told("top", "--once")
    told("fsck", "--offline", codes=(0, 1))
    told("doctor", codes=(0, 1))
