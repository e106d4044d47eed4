"""Every command and snippet of README, CONTRIBUTING and pages is run, against a running mailpoll.

Commands of a page are typed one after another in one shell, with what the pages call ``$RECEIVER``,
``$ID`` (an account), ``$MESSAGE`` (one of its messages), ``$TOKEN``, ``$A`` and ``$B`` given. A
reader's ``example.org`` is the test's Dovecot, port 8025 the test's, and an answer of 400 or more
fails.
"""

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml
from standardwebhooks import Webhook

from mailpoll.cli import cli
from mailpoll.settings import from_environment
from tests.docs.blocks import ALL, KINDS, ROOT, Block
from tests.docs.compose import compose_schema
from tests.docs.installation import PREPARE, reader
from tests.docs.pages import openapi
from tests.integration.system import wait_until
from tests.integration.test_message_read import letter
from tests.servers.dovecot import Dovecot
from tests.servers.process import accepts, free_ports

#: Blocks that are not run, by page and first line, and why. Of them is checked that Bash can read
#: them, that their ``mailpoll`` commands and options exist, and their targets of make.
CHECKED = {
    (
        "README.md",
        "make demo    # everything with 20 sample mailboxes, on this machine, without root",
    ): ("they are the demo and these tests"),
    (
        "CONTRIBUTING.md",
        "make test    # installs what the tests need, and runs them",
    ): "these tests",
    ("docs/quickstart.md", "python3 -m venv .venv"): "`make release-check` installs as this does",
    (
        "docs/deployment.md",
        "useradd --system --home-dir /var/lib/mailpoll --shell /usr/sbin/nologin mailpoll",
    ): ("changes the machine"),
    ("docs/deployment.md", "systemctl enable --now mailpoll-up"): "changes the machine",
    ("docs/deployment.md", "systemctl start mailpoll-migrate"): "changes the machine",
    ("docs/deployment.md", "docker build --file docker/Dockerfile --tag mailpoll:0.1.0 ."): (
        "needs a cluster"
    ),
    (
        "docs/deployment.md",
        "cp docker/.env.example docker/.env    # then fill in the passwords, the key and the token",
    ): ("needs Docker"),
    (
        "docs/deployment.md",
        "mailpoll migrate && honcho start --port 8025 web scheduler poller worker notifier watcher",
    ): ("goes on for ever; test_packaging.py runs it"),
    (
        "docs/providers.md",
        "curl https://oauth2.googleapis.com/token -d grant_type=authorization_code \\",
    ): ("asks Google"),
    (
        "docs/providers.md",
        "L=https://login.microsoftonline.com/${MAILPOLL_OAUTH_MICROSOFT_TENANT:-common}/oauth2/v2.0",
    ): ("asks Microsoft"),
    ("docs/operations.md", 'pg_dump --format=custom --file=mailpoll.dump "$DATABASE_URL"'): (
        "tests/integration/test_backup.py types it"
    ),
    ("docs/releasing.md", "make release-check"): "they are checks themselves, and take minutes",
    ("docs/releasing.md", "make upgrade-check FROM=v0.1.0"): "the same",
    ("docs/releasing.md", "git tag --annotate --message 'mailpoll 0.2.0' v0.2.0"): "publishes",
}
#: Python that goes on until it is ended: what starts it is in a test of its own below.
SERVERS = {("docs/webhooks.md", "import os")}
#: Kubernetes' version whose schemas are used.
KUBERNETES = "1.31"


def of_kind(kind: str) -> list[Block]:
    return [block for block in ALL if block.kind == kind]


def named(block: Block) -> str:
    return block.place


# --- what there is


def test_every_block_is_of_a_kind_that_is_run_or_checked() -> None:
    assert [block.place for block in ALL if block.kind not in KINDS] == []


def test_what_is_only_checked_is_there() -> None:
    there = {block.name for block in ALL}
    assert CHECKED.keys() - there == set()
    assert SERVERS - there == set()


# --- commands


def typed() -> dict[str, list[Block]]:
    """The blocks of each page that are run, in their order."""
    found: dict[str, list[Block]] = {}
    for block in of_kind("sh"):
        if block.name not in CHECKED:
            found.setdefault(block.page, []).append(block)
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", typed())
def test_the_commands_of_a_page_do_what_they_say(
    page: str, tmp_path: Path, dovecot: Dovecot
) -> None:
    parts = [f"# {block.place}\n{block.text}" for block in typed()[page]]
    text = "\n".join(parts)
    for address in ("ann@example.org", "me@example.org"):
        dovecot.deliver(address, letter({"plain.txt": "text/plain"}))
    with reader(tmp_path, dovecot) as who:
        if "mailpoll up" not in text:
            text = _prepared(text) + text
        printed = who.types(_traced(text))
        assert "Traceback" not in printed
        log = who.directory / "up.log"
        assert not log.exists() or "Traceback" not in log.read_text()


def _prepared(text: str) -> str:
    """Start mailpoll and add what the page takes as given."""
    added = re.search(r'accounts add me@example\.org|"address":"me@example\.org","password"', text)
    return "mailpoll up\n" + "".join(
        PREPARE.replace("{address}", address)
        for address in ("me@example.org", "ann@example.org")
        if address != "me@example.org" or not added
    )


def _traced(text: str) -> str:
    """Let the log show which command failed."""
    return f"PS4='+ '; set -x\n{text}"


@pytest.mark.parametrize("block", of_kind("sh"), ids=named)
def test_bash_can_read_it_and_its_commands_exist(block: Block) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for words in commands(block.text):
        program, *arguments = words
        if program == "mailpoll":
            try:
                parse(cli, arguments)
            except click.BadParameter as error:  # files that commands before it make, variables
                assert re.search(r"does not exist|'\$", error.message), error
        elif program == "make":
            targets = [word for word in arguments if "=" not in word and not word.startswith("-")]
            assert set(targets) <= make_targets(), block.place
        elif program == "python" and arguments[:1] == ["-m"]:
            assert (ROOT / arguments[1].replace(".", "/")).exists() or (
                ROOT / f"{arguments[1].replace('.', '/')}.py"
            ).exists()


def commands(text: str) -> list[list[str]]:
    """The words of each simple command of a program that we know."""
    found: list[list[str]] = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # quotes over several lines: there is none of ours in them
            continue
        current: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("();<>|&"):
                found += [current] if current else []
                current = []
            elif current or not re.match(r"\w+=", word):  # variables of the command alone
                current.append(word)
    return [words for words in found if words[0] in ("mailpoll", "make", "python")]


def parse(command: click.Command, arguments: list[str], parent: Any = None) -> None:
    """Let click read a command line without doing what it says.

    Raises:
      click.UsageError: a command or an option is not there.
    """
    context = command.make_context(command.name, list(arguments), parent=parent)
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        _, found, rest = command.resolve_command(context, rest)
        assert found
        parse(found, rest, context)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


# --- programs


def programs() -> list[Block]:
    return [block for block in of_kind("python") if block.name not in SERVERS]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", programs(), ids=named)
def test_a_program_does_what_its_page_says(block: Block, tmp_path: Path, dovecot: Dovecot) -> None:
    dovecot.deliver("me@example.org", letter({"plain.txt": "text/plain"}))
    with reader(tmp_path, dovecot) as who:
        port = who.variables["PORT"]
        who.variables["MAILPOLL_ADDRESS"] = f"http://127.0.0.1:{port}"
        (who.directory / "program.py").write_text(block.text)
        prepare = PREPARE.replace("{address}", "me@example.org")
        started = f"mailpoll up\n{prepare}\nexport TOKEN ID MESSAGE"
        printed = who.types(f"{started}\ntimeout 100 {sys.executable} program.py")
        assert "attached" in printed


def test_the_receiver_takes_signed_requests_and_no_others(tmp_path: Path) -> None:
    (block,) = (block for block in of_kind("python") if block.name in SERVERS)
    (port,) = free_ports(1)
    secret = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    program = tmp_path / "receiver.py"
    program.write_text(block.text)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", program],
            env={**os.environ, "RECEIVER_PORT": str(port), "WEBHOOK_SECRET": secret},
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: process.poll() is not None or _accepts(port))
        body = json.dumps({"type": "message.new", "data": {"id": 17}})
        moment = datetime.now(UTC)
        headers = {
            "webhook-id": "1",
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": Webhook(secret).sign("1", moment, body),
        }
        assert _post(port, body, headers) == 204
        assert _post(port, body.replace("17", "18"), headers) == 401
        assert "message.new" in log.read_text()
    finally:
        process.terminate()
        process.wait(10)


def _accepts(port: int) -> bool:
    try:
        return accepts(port)
    except OSError:
        return False


def _post(port: int, body: str, headers: dict[str, str]) -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/", data=body.encode(), headers=headers, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


# --- documents


@pytest.mark.parametrize("block", of_kind("json"), ids=named)
def test_json_is_what_the_api_takes_or_answers(block: Block) -> None:
    """The fence says which: ``Body of POST /admin/…`` or ``Answer of GET /admin/…``."""
    match = re.fullmatch(r'title="(Body|Answer) of (\w+) (\S+)"', block.title)
    assert match, f"{block.place}: a title says what it is"
    direction, method, path = match.groups()
    spec = openapi()
    operation = spec["paths"][path][method.lower()]
    if direction == "Body":
        content = operation["requestBody"]["content"]
    else:
        (content,) = (
            answer["content"]
            for status, answer in operation["responses"].items()
            if status.startswith("2")
        )
    schema = {**content["application/json"]["schema"], "components": spec["components"]}
    jsonschema.Draft202012Validator(schema).validate(json.loads(block.text))


def test_yaml_is_what_its_reader_takes() -> None:
    for block in of_kind("yaml"):  # at this time there is none, nor of TOML
        for found in yaml.safe_load_all(block.text):
            assert validated(found), block.place


def validated(found: Any) -> bool:
    """Check a document for Kubernetes or for compose, whichever it is."""
    if "apiVersion" in found:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
        return True
    jsonschema.Draft7Validator(compose_schema()).validate(found)
    return "services" in found


def test_toml_is_toml() -> None:
    for block in of_kind("toml"):
        assert tomllib.loads(block.text), block.place


@pytest.mark.parametrize("block", of_kind("dotenv"), ids=named)
def test_variables_are_those_of_mailpoll(block: Block) -> None:
    given = dict(line.split("=", 1) for line in block.text.splitlines() if line[:1].isupper())
    settings = from_environment(given)
    known = {str(field.alias) for field in type(settings).model_fields.values()}
    assert given.keys() <= known


@pytest.mark.parametrize("block", of_kind("ini"), ids=named)
def test_a_unit_is_one(block: Block, tmp_path: Path) -> None:
    unit = tmp_path / "mailpoll.service"
    unit.write_text(block.text)
    check_unit(unit)


def check_unit(unit: Path) -> None:
    """Read it, and where systemd is installed let it say what is wrong.

    Parameters:
      unit: a copy, which is changed: its program is one that is there.
    """
    program = unit.with_name("mailpoll")
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit.write_text(unit.read_text().replace("/opt/mailpoll/bin/mailpoll", str(program)))
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string(unit.read_text())
    assert parser.sections()
    systemd = shutil.which("systemd-analyze")
    if systemd:
        done = subprocess.run(
            [systemd, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
