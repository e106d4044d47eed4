"""The ``mailpoll`` command as people and platforms run it."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from click.types import IntParamType

from mailpoll import __version__, database
from mailpoll.cli import cli
from mailpoll.cli.output import failing_with_2
from mailpoll.models import EmailAccount, EmailFolder
from mailpoll.settings import new_key, new_token
from tests.integration.rows import change_accounts
from tests.integration.system import PASSWORD, System, message
from tests.servers.process import free_ports

CANARY = "canary-7d1f"
COMMANDS = ["web", "scheduler", "poller", "worker", "notifier", "watcher", "up", "migrate"]


def run(
    *arguments: str, variables: dict[str, str], cwd: Path, given: bytes | None = None
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "mailpoll", *arguments],
        cwd=cwd,
        env=clean(variables),
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        timeout=60,
        check=False,
    )


def clean(variables: dict[str, str]) -> dict[str, str]:
    """The environment of a process that is configured by these variables only."""
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}


@pytest.fixture
def variables(embedded: System) -> dict[str, str]:
    """What configures a command like this process."""
    names = ("MAILPOLL_", "REDIS_URL", "DATABASE_URL", "STORAGE_URL")
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(names) and not name.startswith("MAILPOLL_TEST")
    }


# --- without a configuration


def test_it_tells_its_version(tmp_path: Path) -> None:
    result = run("--version", variables={}, cwd=tmp_path)
    assert result.stdout.decode().strip() == f"mailpoll, version {__version__}"
    assert list(tmp_path.iterdir()) == []


def leaves(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with its name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, *path, name)
        else:
            yield (*path, name), command


#: They run until they are ended, or write what programs read as it is: bytes, a secret, a script.
SPEAK_FOR_THEMSELVES = {
    *((name,) for name in COMMANDS if name != "migrate"),
    ("blob",),
    ("completion",),
    ("keys", "new"),
    ("messages", "attachment"),
    ("messages", "raw"),
    ("openapi",),
    ("tokens", "new"),
}


def test_every_command_speaks_json_and_explains_itself() -> None:
    found = dict(leaves(cli))
    assert {
        path
        for path, command in found.items()
        if not any("--json" in option.opts for option in command.params)
    } == SPEAK_FOR_THEMSELVES
    for path, command in found.items():
        assert len(command.help or "") >= 15, path
        for option in command.params:
            said = isinstance(option, click.Argument) or option.name == "as_json" or option.help
            obvious = isinstance(option.type, click.Choice | click.IntRange | IntParamType)
            assert said or obvious, (path, option.name)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["accounts", "add"]])
def test_every_command_has_help(command: list[str], tmp_path: Path) -> None:
    result = run(*command, "--help", variables={}, cwd=tmp_path)
    assert result.returncode == 0
    assert b"Usage: " in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_loads_nothing_that_only_commands_work_with() -> None:
    heavy = "cryptography dramatiq falcon minio peewee pydantic redis rich structlog"
    code = (
        "import sys; from mailpoll.cli import cli; cli(['--help'], standalone_mode=False); "
        f"print(*set({heavy.split()}) & sys.modules.keys(), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stderr.split() == []


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    result = run("fly", variables={}, cwd=tmp_path)
    assert result.returncode == 2
    assert b"No such command" in result.stderr


@pytest.mark.parametrize("kind", ["keys", "tokens"])
def test_new_secrets_differ_and_are_accepted(kind: str, tmp_path: Path) -> None:
    first, second = (run(kind, "new", variables={}, cwd=tmp_path).stdout.decode() for _ in "ab")
    assert first != second
    name = {"keys": "MAILPOLL_SECRET_KEY", "tokens": "MAILPOLL_API_TOKEN"}[kind]
    result = run("migrate", variables={name: f"{first.strip()},{second.strip()}"}, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


# --- completion


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell in which ``mailpoll`` is a command."""
    program = tmp_path / "mailpoll"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mailpoll "$@"\n')
    program.chmod(0o755)
    return clean({"PATH": f"{tmp_path}:{os.environ['PATH']}"})


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mailpoll webh", ["webhooks"]),
        ("mailpoll accounts re", ["receipt", "reconcile", "resume"]),
        ("mailpoll export --form", ["--format"]),
        ("mailpoll export --format m", ["maildir", "mbox"]),
        ("mailpoll events --type storage.", ["storage.fallback", "storage.recovered"]),
    ],
)
def test_bash_completes_commands_options_and_words(
    line: str, offered: list[str], shell: dict[str, str]
) -> None:
    script = (
        'eval "$(mailpoll completion bash)"; '
        f"COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        "_mailpoll_completion mailpoll; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    result = subprocess.run(["bash", "-c", script], env=shell, capture_output=True, check=True)
    assert sorted(result.stdout.decode().split()) == offered
    assert result.stderr == b""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("bash", "complete "),
        ("zsh", "compdef "),
        ("fish", "complete --no-files --command mailpoll"),
    ],
)
def test_each_shell_gets_its_own_script(name: str, line: str, tmp_path: Path) -> None:
    script = run("completion", name, variables={}, cwd=tmp_path).stdout.decode()
    assert line in script
    assert f"_MAILPOLL_COMPLETE={name}_complete" in script


def test_a_shell_that_is_not_known_is_said(tmp_path: Path) -> None:
    result = run("completion", "tcsh", variables={}, cwd=tmp_path)
    assert result.returncode == 2
    assert b"'tcsh' is not one of 'bash', 'zsh', 'fish'" in result.stderr


# --- wrong variables

WRONG = [
    ("DATABASE_URL", f"mysql://u:{CANARY}@host/db"),
    ("DATABASE_URL", f"{CANARY}"),
    ("DATABASE_URL", f"postgresql://u:{CANARY}@127.0.0.1:1/db"),
    ("DATABASE_URL", f"postgresql://u:{CANARY}@127.0.0.1:port/db"),
    ("DATABASE_URL", f"postgresql://u:a@{CANARY}@127.0.0.1:1/db"),
    ("DATABASE_URL", f"postgresql://u:a/{CANARY}@127.0.0.1:1/db"),
    ("DATABASE_URL", "sqlite:////proc/none/mail.db"),
    ("DATABASE_URL", "sqlite:////dev/null/mail.db"),
    ("DATABASE_URL", "sqlite:////"),
    ("REDIS_URL", f"http://:{CANARY}@host"),
    ("REDIS_URL", f"redis://:{CANARY}@host:port/0"),
    ("REDIS_URL", f"redis://:{CANARY}@host:70000/0"),
    ("STORAGE_URL", f"ftp://k:{CANARY}@host/bucket"),
    ("STORAGE_URL", f"s3://k:{CANARY}@host"),
    ("STORAGE_URL", f"s3://k:{CANARY}@host:port/bucket"),
    ("STORAGE_URL", "file://relative"),
    ("STORAGE_URL", "file:///proc/none"),
    ("MAILPOLL_DATA_DIR", "/proc/none"),
    ("MAILPOLL_DATA_DIR", "/dev/null"),
    ("MAILPOLL_SECRET_KEY", CANARY),
    ("MAILPOLL_SECRET_KEY", f"{new_key()},{CANARY}"),
    ("MAILPOLL_API_TOKEN", CANARY),
    ("PORT", "0"),
    ("PORT", "70000"),
    ("PORT", CANARY),
    ("MAILPOLL_POLL_INTERVAL", "0"),
    ("MAILPOLL_POLL_INTERVAL", "soon"),
    ("MAILPOLL_IMAP_CA_FILE", "/nowhere/ca.pem"),
    ("MAILPOLL_IMAP_CA_FILE", "/etc/hostname"),
    ("MAILPOLL_IMAP_PORTS", "993,imap"),
    ("MAILPOLL_IMAP_PORTS", "0"),
    ("MAILPOLL_IMAP_PORTS", "993-143"),
    ("MAILPOLL_IMAP_PORTS", "9000-"),
    ("MAILPOLL_IMAP_PORTS", "-9000"),
    ("MAILPOLL_IMAP_ALLOWED_NETWORKS", "10.0.0.1/8"),
    ("MAILPOLL_IMAP_ALLOWED_NETWORKS", "everything"),
    ("MAILPOLL_IMAP_READ_TIMEOUT", "-1"),
    ("MAILPOLL_LOG_LEVEL", "loud"),
    ("MAILPOLL_LOG_FORMAT", "xml"),
    ("MAILPOLL_STORAGE_FALLBACK", "maybe"),
    ("WEB_CONCURRENCY", "0"),
]


@pytest.mark.parametrize(
    ("name", "value"), WRONG, ids=[f"{n}-{name}" for n, (name, _) in enumerate(WRONG)]
)
def test_a_wrong_variable_ends_it_with_one_line(name: str, value: str, tmp_path: Path) -> None:
    result = run("migrate", variables={name: value}, cwd=tmp_path)
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 1, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"mailpoll: {name}: ")
    assert len(lines[0]) > len(f"mailpoll: {name}: ") + 10
    assert CANARY not in lines[0]
    assert result.stdout == b""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_process_checks_before_it_starts(command: str, tmp_path: Path) -> None:
    for name in ("REDIS_URL", "STORAGE_URL", "PORT"):
        result = run(command, variables={name: "wrong://"}, cwd=tmp_path)
        lines = result.stderr.decode().splitlines()
        assert (result.returncode, len(lines)) == (1, 1), lines
        assert lines[0].startswith(f"mailpoll: {name}: ")


def test_several_wrong_variables_are_named_in_one_line(tmp_path: Path) -> None:
    result = run("web", variables={"PORT": "x", "REDIS_URL": "x"}, cwd=tmp_path)
    (line,) = result.stderr.decode().splitlines()
    assert "PORT: " in line
    assert "REDIS_URL: " in line


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("web", "MAILPOLL_API_TOKEN"),
        ("web", "MAILPOLL_SECRET_KEY"),
        ("poller", "MAILPOLL_SECRET_KEY"),
        ("worker", "MAILPOLL_SECRET_KEY"),
    ],
)
def test_a_missing_secret_is_named_with_its_remedy(command: str, name: str, tmp_path: Path) -> None:
    all_of_them = {"MAILPOLL_API_TOKEN": new_token(), "MAILPOLL_SECRET_KEY": new_key()}
    given = {key: value for key, value in all_of_them.items() if key != name}
    result = run(command, variables=given, cwd=tmp_path)
    (line,) = result.stderr.decode().splitlines()
    assert result.returncode == 1
    assert line.startswith(f"mailpoll: {name}: is not set")
    assert "new`" in line


# --- with a configuration


@pytest.mark.parametrize("arguments", [["accounts", "list"], ["stats"], ["accounts", "poll", "x"]])
def test_a_database_that_is_not_migrated_says_what_to_do(
    arguments: list[str], tmp_path: Path
) -> None:
    result = run(*arguments, variables={}, cwd=tmp_path)
    assert result.returncode == 1
    assert b"run `mailpoll migrate`" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def add(
    variables: dict[str, str],
    cwd: Path,
    system: System,
    address: str,
    *more: str,
    given: bytes = PASSWORD.encode() + b"\n",
) -> "subprocess.CompletedProcess[bytes]":
    place = ["--host", "localhost", "--port", str(system.dovecot.imaps_port)]
    arguments = ["accounts", "add", address, "--password-stdin", *place, *more]
    return run(*arguments, variables=variables, cwd=cwd, given=given)


def test_an_account_is_added_from_standard_input(
    variables: dict[str, str], embedded: System, address: str, tmp_path: Path
) -> None:
    result = add(variables, tmp_path, embedded, address, "--json")
    assert result.returncode == 0, result.stderr
    added = json.loads(result.stdout)
    assert embedded.get(f"/admin/email-accounts/{added['id']}")["address"] == address
    # and it is polled by whoever runs
    embedded.dovecot.deliver(address, message("hello"))
    embedded.work_until(lambda: embedded.messages(added["id"]))


def test_an_account_is_added_by_typing_its_password_unseen(
    variables: dict[str, str], embedded: System, address: str, tmp_path: Path
) -> None:
    host = ["--host", "localhost", "--port", str(embedded.dovecot.imaps_port)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mailpoll", "accounts", "add", address, *host],
        cwd=tmp_path,
        env=clean(variables),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = read_until(ours, b"Password: ")
    os.write(ours, f"{PASSWORD}\n".encode())
    shown += read_until(ours, b"mailpoll stats")
    assert process.wait(30) == 0
    os.close(ours)
    assert PASSWORD.encode() not in shown
    assert [item["address"] for item in embedded.get("/admin/email-accounts")["items"]] == [address]


def read_until(terminal: int, text: bytes) -> bytes:
    shown = b""
    end = time.monotonic() + 30
    while text not in shown:
        assert select.select([terminal], [], [], end - time.monotonic())[0], shown
        shown += os.read(terminal, 1_000)
    return shown


@pytest.mark.parametrize(
    ("more", "given", "field"),
    [
        ([], b"wrong-canary\n", "password"),
        ([], b"", "password"),
        ([], b"\xff\xfe\n", "password"),
        (["--interval", "0"], b"secret\n", "poll_interval"),
        (["--port", "70000"], b"secret\n", "port"),
        (["--port", "22"], b"secret\n", "port"),
        (["--host", "imap.invalid"], b"secret\n", "host"),
        (["--folder", "Nowhere"], b"secret\n", "folders"),
    ],
)
def test_a_refusal_names_the_field_and_saves_nothing(
    variables: dict[str, str],
    embedded: System,
    address: str,
    tmp_path: Path,
    more: list[str],
    given: bytes,
    field: str,
) -> None:
    result = add(variables, tmp_path, embedded, address, *more, given=given)
    (line,) = result.stderr.decode().splitlines()
    assert result.returncode == 1
    assert line.startswith(f"mailpoll: {field}: ")
    assert "canary" not in line
    assert embedded.get("/admin/email-accounts")["items"] == []


def test_an_account_is_added_while_the_queue_is_away(
    variables: dict[str, str], embedded: System, address: str, tmp_path: Path
) -> None:
    (closed,) = free_ports(1)
    away = {**variables, "REDIS_URL": f"redis://127.0.0.1:{closed}/0"}
    result = add(away, tmp_path, embedded, address)
    assert result.returncode == 0
    assert b"the queue does not answer" in result.stderr
    assert b"Traceback" not in result.stderr


@pytest.fixture
def account(embedded: System, address: str) -> str:
    """An account with what a hostile server can put into its columns."""
    account = embedded.add_account(address)
    hostile = "[/red] [bold]NO[/bold] \x1b]0;owned\x07 [link=x]"
    change_accounts(last_error=hostile)
    return account


def test_lists_and_figures_parse(
    variables: dict[str, str], account: str, address: str, tmp_path: Path
) -> None:
    for arguments in (["accounts", "list"], ["stats"], ["stats", address], ["stats", account]):
        result = run(*arguments, "--json", variables=variables, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert isinstance(json.loads(result.stdout), dict)


def test_lists_and_figures_show_a_servers_words_as_they_are(
    variables: dict[str, str], account: str, address: str, tmp_path: Path
) -> None:
    wide = {**variables, "COLUMNS": "200"}
    for arguments in (["accounts", "list"], ["stats"], ["stats", address]):
        result = run(*arguments, variables=wide, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert b"\x1b" not in result.stdout
        assert b"[/red] [bold]NO[/bold]" in result.stdout


def test_pausing_resuming_polling_and_testing(
    variables: dict[str, str], account: str, embedded: System, address: str, tmp_path: Path
) -> None:
    url = f"/admin/email-accounts/{account}"
    for verb, state in (("pause", "paused"), ("resume", "active"), ("poll", "active")):
        result = run("accounts", verb, address, variables=variables, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert embedded.get(url)["state"] == state
    result = run("accounts", "test", account, variables=variables, cwd=tmp_path)
    assert b"INBOX" in result.stdout.splitlines()


def test_what_cannot_be_polled_is_said_and_not_enqueued(
    variables: dict[str, str], account: str, embedded: System, address: str, tmp_path: Path
) -> None:
    embedded.post(f"/admin/email-accounts/{account}/pause")
    archive = f"archive-{address}"
    embedded.post("/admin/email-accounts", 201, address=archive, archive=True)
    for verb, name, words in (
        ("poll", address, b"is paused: resume it first"),
        ("reconcile", address, b"is paused: resume it first"),
        ("resume", archive, b"the account has no server"),
    ):
        result = run("accounts", verb, name, variables=variables, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (1, b"")
        assert words in result.stderr
        assert b"Traceback" not in result.stderr
    listed = run(
        *("accounts", "list", "--state", "archive", "--json"), variables=variables, cwd=tmp_path
    )
    assert json.loads(listed.stdout)["address"] == archive


def test_several_mailboxes_at_once_or_none(
    variables: dict[str, str], account: str, embedded: System, address: str, tmp_path: Path
) -> None:
    other = embedded.add_account(f"b{address}", test=False)
    both = (address, other)

    def states() -> list[str]:
        return [one["state"] for one in embedded.get("/admin/email-accounts")["items"]]

    refused = run("accounts", "pause", *both, "nobody", variables=variables, cwd=tmp_path)
    assert refused.returncode == 1
    assert states() == ["active", "active"]
    done = run("accounts", "pause", *both, "--json", variables=variables, cwd=tmp_path)
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["id"], one["state"]) for one in shown] == [(account, "paused"), (other, "paused")]
    assert states() == ["paused", "paused"]
    listed = run(
        "accounts",
        "list",
        "--state",
        "paused",
        "--address",
        f"b{address}",
        "--json",
        variables=variables,
        cwd=tmp_path,
    )
    assert [json.loads(line)["id"] for line in listed.stdout.splitlines()] == [other]


def test_a_mailbox_is_shown_and_changed(
    variables: dict[str, str], account: str, embedded: System, address: str, tmp_path: Path
) -> None:
    def edit(*words: str, given: str = "", code: int = 0) -> str:
        result = run(
            *("accounts", "edit", address, *words),
            variables=variables,
            cwd=tmp_path,
            given=f"{given}\n".encode(),
        )
        assert result.returncode == code, result.stderr
        return (result.stderr if code else result.stdout).decode()

    def shown() -> Any:
        result = run("accounts", "show", address, "--json", variables=variables, cwd=tmp_path)
        return json.loads(result.stdout)

    assert shown() == embedded.get(f"/admin/email-accounts/{account}")
    edit("--interval", "30", "--interval-max", "300", "--push", "--folder", "INBOX")
    changed = shown()
    names = ("poll_interval", "poll_interval_max", "push", "folders")
    assert [changed[name] for name in names] == [30, 300, True, ["INBOX"]]
    edit("--all-folders", "--no-push")
    assert (shown()["folders"], shown()["push"]) == (None, False)
    # A login is tried before it is saved, and never shown
    before = shown()
    assert "password" in edit("--password-stdin", given=CANARY, code=1)
    assert CANARY not in edit("--password-stdin", given=CANARY, code=1)
    assert shown() == before
    assert "changed" in edit("--password-stdin", given=PASSWORD)
    assert "poll_interval" in edit("--interval", "-1", code=1)
    assert "poll_interval_max: should not be below" in edit("--interval-max", "29", code=1)
    assert "what is to change" in edit(code=2)


@pytest.mark.parametrize("verb", ["pause", "resume", "poll", "test", "delete"])
def test_an_account_that_is_not_there(variables: dict[str, str], verb: str, tmp_path: Path) -> None:
    result = run("accounts", verb, "nobody@example.org", variables=variables, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.decode().strip() == "mailpoll: there is no account nobody@example.org"


def test_deleting_asks(
    variables: dict[str, str], account: str, embedded: System, address: str, tmp_path: Path
) -> None:
    refused = run("accounts", "delete", address, variables=variables, cwd=tmp_path, given=b"n\n")
    assert refused.returncode == 1
    assert embedded.get(f"/admin/email-accounts/{account}")["state"] == "active"
    result = run("accounts", "delete", address, variables=variables, cwd=tmp_path, given=b"y\n")
    assert result.returncode == 0, result.stderr
    assert embedded.api.simulate_get(f"/admin/email-accounts/{account}").status_code == 404
    job = result.stdout.decode().split()[-1]
    embedded.work_until(lambda: embedded.get(f"/admin/jobs/{job}")["state"] == "done")


def test_the_api_document_can_be_written(variables: dict[str, str], tmp_path: Path) -> None:
    del variables["MAILPOLL_API_TOKEN"]  # whoever generates a client from it has none
    result = run("openapi", "api.json", variables=variables, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "/admin/stats" in json.loads((tmp_path / "api.json").read_text())["paths"]


def test_the_api_document_needs_a_place(variables: dict[str, str], tmp_path: Path) -> None:
    nowhere = run("openapi", "no/api.json", variables=variables, cwd=tmp_path)
    assert (nowhere.returncode, nowhere.stderr.count(b"\n")) == (1, 1)
    assert b"no/api.json: No such file or directory" in nowhere.stderr


@pytest.mark.parametrize(
    "arguments",
    [["accounts", "deletions", "--limit", "-5"], ["retention", "--list", "--yes"]],
)
def test_what_was_written_wrongly_ends_with_2(
    variables: dict[str, str], arguments: list[str], tmp_path: Path
) -> None:
    assert run(*arguments, variables=variables, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    "command",
    [
        "fsck --offline",
        "export box@example.org --output there.mbox",
        "accounts receipt box@example.org",
        "keys status",
        "keys rotate",
        "webhooks test https://example.org",
        "doctor box@example.org",
        "notify test",
    ],
)
def test_what_finds_something_ends_with_2_where_it_cannot_run(
    variables: dict[str, str], command: str, tmp_path: Path
) -> None:
    # Given a PostgreSQL that is not there, and no receiver
    variables["DATABASE_URL"] = f"postgresql://nobody@127.0.0.1:{free_ports(1)[0]}/nothing"
    variables["PGCONNECT_TIMEOUT"] = "2"
    result = run(*command.split(), variables=variables, cwd=tmp_path)
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 1), result.stderr
    assert result.stderr.startswith(b"mailpoll: ")


@pytest.mark.parametrize(
    ("error", "words"),
    [(KeyboardInterrupt(), "mailpoll: interrupted\n"), (ZeroDivisionError("x"), "Traceback")],
)
def test_what_ends_a_search_is_not_taken_for_something_found(
    error: BaseException, words: str
) -> None:
    @click.command()
    @failing_with_2
    def searching() -> None:
        raise error

    result = CliRunner().invoke(searching)
    assert result.exit_code == 2
    assert result.stderr.startswith(words)


def test_a_proof_shows_what_is_not_nothing(
    embedded: System, variables: dict[str, str], account: str, address: str, tmp_path: Path
) -> None:
    embedded.poll_and_process(account)
    with database.connected():
        folder = EmailFolder.get(EmailFolder.account == EmailAccount.get(uuid=account))
        folder.proof = {**folder.proof, "server": 2, "too_large": 1}
        folder.save()
    shown = run("stats", address, variables=variables, cwd=tmp_path).stdout.decode()
    assert "too large" in shown
    assert "unreadable" not in shown
