"""What is written to the log: one event a line, whatever mail, servers and clients say."""

import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from imapclient.exceptions import IMAPClientError

from mailpoll import logs
from mailpoll.imap import Fault, ImapError
from mailpoll.imap.connection import translated
from tests.integration.scripted import add, polled
from tests.integration.system import System, message
from tests.servers.scripted_imap import Mailbox, Rule, ScriptedImap

FORGED = [
    "a\r\n2026-01-01T00:00:00Z [error    ] forged",
    "\x1b[2J\x1b[31mred\x07",
    '"}\n{"event": "forged"}',
    "\u2028forged\u2029\x85forged",
    "\u202egnp.exe",
    "\x1b]0;title\x07",
    "plain\x9b31m",
]


def written(form: str, values: list[str]) -> str:
    """What a process of its own writes when a value gets into an event, its name, or an error."""
    program = textwrap.dedent("""
        import logging, sys, json
        import structlog
        from mailpoll import logs
        logs.configure("info", sys.argv[1])
        log = structlog.get_logger()
        for value in json.load(sys.stdin):
            log.warning("event", value=value)
            log.warning(value)
            logging.getLogger("gunicorn.error").warning("foreign %s", value)
            try:
                raise ValueError(value)
            except ValueError as error:
                log.error("failed", exc_info=error)
    """)
    ended = subprocess.run(
        [sys.executable, "-c", program, form],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    return ended.stderr


def test_json_has_one_object_a_line() -> None:
    """S36"""
    lines = written("json", FORGED).split("\n")
    assert lines.pop() == ""
    assert len(lines) == 4 * len(FORGED)
    events = [json.loads(line) for line in lines]
    assert all(event["level"] in ("warning", "error") for event in events)
    assert not any(event["event"] == "forged" for event in events)
    assert all(line.isascii() and line.isprintable() for line in lines)


def test_the_console_gets_no_control_characters_and_no_forged_lines() -> None:
    """S36: also for events, foreign loggers and the text of errors."""
    text = written("console", FORGED)
    assert all(line.isprintable() for line in text.split("\n"))
    starts = [line for line in text.split("\n") if line[:1].isdigit()]
    assert len(starts) == 4 * len(FORGED)
    assert not any("[error    ] forged" in line[:60] for line in starts)


def test_what_servers_and_clients_say_is_one_line(
    capfd: pytest.CaptureFixture[str], scripted: System
) -> None:
    """S36: a folder's name, a refusal and a path, on their real ways into the log."""
    evil = b"\x1b[31mred \xc2\x85 forged"
    with ScriptedImap(
        {1: message("x")}, rules=[Rule("LOGIN", b"{tag} NO " + evil + b"\r\n")]
    ) as server:
        server.folders[evil] = Mailbox()
        polled(add(server))
    scripted.api.simulate_get("/admin/\x1b[31mred%0d%0aforged")
    text = capfd.readouterr().err
    assert "poll failed" in text
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("level", ["debug", "info"])
def test_talkative_libraries_stay_silent_at_any_level(level: str) -> None:
    """S37: imapclient would log bodies and what servers echo."""
    logs.configure(level, "console")
    try:
        for name in ("imapclient", "imapclient.imaplib", "urllib3", "minio", "peewee", "dramatiq"):
            logger = logging.getLogger(name)
            assert not logger.isEnabledFor(logging.DEBUG)
            assert not logger.isEnabledFor(logging.INFO)
        assert logging.getLogger("mailpoll").isEnabledFor(logging.DEBUG) == (level == "debug")
    finally:
        logs.configure("info", "console")


def test_no_body_gets_into_the_log(
    scripted: System, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """S37: at the level of debugging, with the root logger open for everything."""
    logs.configure("debug", "console")
    try:
        with ScriptedImap({1: message("canary-subject", "canary-body\r\n")}) as server:
            account = polled(add(server))
            scripted.work_until(
                lambda: [m["status"] for m in scripted.messages(account.uuid)] == ["processed"]
            )
    finally:
        logs.configure("info", "console")
    assert "canary" not in "".join(capfd.readouterr())


SECRETS = ["hunter2", "pässwörd", 'with "quotes" and \\', "it's", "tök€n-" + "x" * 40]


@pytest.mark.parametrize("secret", SECRETS)
def test_no_echo_of_a_secret_is_kept(secret: str) -> None:
    """S39: as it is, quoted, as bytes are shown, in the base64 of PLAIN and XOAUTH2."""
    import base64

    quoted = secret.replace("\\", "\\\\").replace('"', '\\"')
    plain = base64.b64encode(f"\0me@example.org\0{secret}".encode()).decode()
    bearer = base64.b64encode(f"user=me\x01auth=Bearer {secret}\x01\x01".encode()).decode()
    echoes = [
        f'LOGIN me "{quoted}" failed',
        f"LOGIN me {secret} failed",
        repr(f'LOGIN me "{quoted}" failed'.encode()),
        repr(f"LOGIN me {secret} failed".encode()),
        f"AUTHENTICATE PLAIN {plain} failed",
        repr(f"AUTHENTICATE XOAUTH2 {bearer} failed".encode()),
        f"AUTHENTICATE PLAIN {plain.rstrip('=')}, failed",
    ]
    for echo in echoes:
        with pytest.raises(ImapError) as caught, translated(secret):
            raise IMAPClientError(echo)
        said = str(caught.value)
        assert caught.value.fault is Fault.REFUSED
        assert "failed" in said
        for form in (secret, quoted, plain[8:-4], bearer[12:-4], repr(secret.encode())[2:-1]):
            assert form not in said, echo


def test_words_that_are_no_secret_are_kept() -> None:
    """S39: only what holds the secret goes."""
    words = (
        "AUTHENTICATIONFAILED Invalid credentials c29tZXRoaW5nZWxzZQ== (request 8f14e45fceea167a)"
    )
    with pytest.raises(ImapError) as caught, translated("hunter2"):
        raise IMAPClientError(words)
    assert words in str(caught.value)


def test_command_lines_hold_no_secret(tmp_path: Path) -> None:
    """S38: every user of a machine can read the titles of its processes."""
    from mailpoll import processes
    from mailpoll.settings import from_environment, new_key

    config = from_environment(
        {
            "DATABASE_URL": "postgresql://u:canary-word@h/d",
            "REDIS_URL": "redis://:canary-word@h/0",
            "STORAGE_URL": "s3://k:canary-word@h/b",
            "MAILPOLL_API_TOKEN": "canary-word" * 3,
            "MAILPOLL_SECRET_KEY": new_key(),
            "MAILPOLL_DATA_DIR": str(tmp_path),
        }
    )
    commands = [
        processes.web_command(config),
        processes.poller_command(config),
        processes.worker_command(config),
        processes.valkey_command(config),
    ]
    text = repr(commands)
    assert "canary" not in text
    assert config.secret_keys[0] not in text


@pytest.mark.parametrize("command", ["LOGIN", "LIST", "STATUS", "EXAMINE", "UID FETCH"])
@pytest.mark.parametrize("form", [b"{tag} NO %b\r\n", b"{tag} BAD %b\r\n", b"* BYE %b\r\n"])
def test_an_echo_at_any_command_is_not_kept(scripted: System, command: str, form: bytes) -> None:
    """S39: a server may remember the login, and complain of it later."""
    echo = form % b'LOGIN someone "secret" was odd'
    with ScriptedImap({1: message("x")}, rules=[Rule(command, echo)]) as server:
        account = polled(add(server))
    shown = scripted.get(f"/admin/email-accounts/{account.uuid}/stats")
    said = f"{account.last_error} {shown}"
    assert "was odd" in said or command == "STATUS"  # which other commands make up for
    assert "secret" not in said
