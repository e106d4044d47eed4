"""``mailpoll doctor``: which step fails, in what words, and what to do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailpoll import accounts
from mailpoll.doctor import Examination, Finding, login_is_to_blame
from mailpoll.imap import Login, providers
from mailpoll.settings import settings
from tests.integration.conftest import SETS, run_system
from tests.integration.system import PASSWORD, System, message
from tests.servers import personas
from tests.servers.dovecot import Dovecot
from tests.servers.personas import REFUSALS, TokenImap
from tests.servers.process import free_ports
from tests.servers.scripted_imap import CLOSE, Rule, ScriptedImap
from tests.servers.token_server import TokenServer

STEPS = ["resolve", "connect", "tls", "greeting", "capabilities", "login", "id", "list", "examine"]


@pytest.fixture
def system(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    yield from run_system(
        SETS["embedded"](request, tmp_path),
        tmp_path,
        dovecot,
        MAILPOLL_IMAP_PORTS="1024-65535",
        MAILPOLL_IMAP_ALLOW_PLAIN="yes",
        MAILPOLL_IMAP_READ_TIMEOUT="3",
    )


def run(*arguments: str, ports: str, given: bytes | None = PASSWORD.encode(), **more: str) -> Any:
    """The command in a process of its own, configured like this one."""
    return subprocess.run(
        [sys.executable, "-m", "mailpoll", "doctor", *arguments],
        env=os.environ | {"MAILPOLL_IMAP_PORTS": ports, **more},
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        timeout=60,
        check=False,
    )


def examined(server: ScriptedImap, **fields: Any) -> tuple[list[Finding], Examination]:
    """The findings at a scripted server."""
    values = {"username": "someone", "auth": "password", "secret": "canary-secret", **fields}
    examination = Examination(
        Login("127.0.0.1", server.port, values.pop("security", "plain"), **values), settings()
    )
    return list(examination.run()), examination


def failed(findings: list[Finding]) -> Finding:
    """The failure that a walk ended with; all steps before it went well."""
    assert [finding.ok for finding in findings] == [True] * (len(findings) - 1) + [False]
    assert "canary" not in str(findings)
    return findings[-1]


# --- a server that works


def test_every_step_is_shown_at_a_real_server(system: System, address: str) -> None:
    dovecot = system.dovecot
    dovecot.deliver(address, message("one"))
    place = ["--host", "localhost", "--port", str(dovecot.imaps_port)]
    result = run(address, *place, "--password-stdin", ports=str(dovecot.imaps_port))
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.decode().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("ok ")] == ["where", *STEPS]
    assert "INBOX has 1 messages" in lines[9]
    assert "TLSv1.3" in result.stdout.decode()
    assert PASSWORD not in result.stdout.decode() + result.stderr.decode()


@pytest.mark.parametrize(("security", "steps"), [("starttls", STEPS), ("plain", STEPS)])
def test_the_order_is_that_of_the_security(
    system: System, address: str, security: str, steps: list[str]
) -> None:
    port = system.dovecot.imap_port
    examination = Examination(
        Login("localhost", port, security, address, "password", PASSWORD), settings()
    )
    findings = list(examination.run())
    assert all(finding.ok for finding in findings), findings
    names = [finding.step for finding in findings]
    expected = [step for step in steps if step != "tls"]
    if security == "starttls":
        expected.insert(expected.index("greeting") + 1, "tls")
    assert names == expected
    assert "LIST-STATUS" in examination.extensions


def test_json_has_the_whole_and_the_stored_account_needs_no_password(
    system: System, address: str
) -> None:
    system.add_account(address)
    ports = str(system.dovecot.imaps_port)
    result = run(address, "--json", ports=ports, given=None)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["address"] == address
    assert document["ok"] is True
    assert [step["step"] for step in document["steps"]] == ["where", *STEPS]
    assert all(step["kind"] is None for step in document["steps"])
    assert "the stored account" in document["steps"][0]["detail"]
    assert "SPECIAL-USE" in document["extensions"]
    assert document["advice"] is None
    assert PASSWORD not in result.stdout.decode()


def test_nothing_is_changed_and_no_database_is_needed(tmp_path: Path, system: System) -> None:
    dovecot = system.dovecot
    result = run(
        *("ann@example.org", "--host", "localhost", "--port", str(dovecot.imaps_port)),
        "--password-stdin",
        ports=str(dovecot.imaps_port),
        MAILPOLL_DATA_DIR=str(tmp_path / "other"),
        MAILPOLL_SECRET_KEY="",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    with ScriptedImap(messages={1: message("one")}) as server:
        examined(server)
    verbs = {command.split()[0].upper() for command in server.commands}
    assert verbs - {"LOGOUT"} == {"CAPABILITY", "LOGIN", "LIST", "EXAMINE"}


# --- what fails, and where


def test_a_wrong_password_fails_at_the_login_with_exit_code_1(system: System, address: str) -> None:
    place = ["--host", "localhost", "--port", str(system.dovecot.imaps_port)]
    ports = str(system.dovecot.imaps_port)
    wrong = run(address, *place, "--password-stdin", ports=ports, given=b"canary-wrong")
    assert wrong.returncode == 1
    shown = wrong.stdout.decode()
    assert "FAIL  login" in shown
    assert "refused the user name or password" in shown
    assert "canary" not in shown + wrong.stderr.decode()
    as_json = run(address, *place, "--password-stdin", "--json", ports=ports, given=b"canary-wrong")
    assert as_json.returncode == 1
    document = json.loads(as_json.stdout)
    assert document["ok"] is False
    assert document["steps"][-1]["kind"] == "auth_failed"


def test_an_address_whose_server_is_not_found(system: System) -> None:
    result = run(
        *("ann@corp.invalid", "--password-stdin", "--json"),
        ports="993",
        MAILPOLL_DNS_SERVER="127.0.0.1:1",
        MAILPOLL_AUTOCONFIG_URLS="https://localhost:1/{domain}",
    )
    assert result.returncode == 1, result.stderr
    (step,) = json.loads(result.stdout)["steps"]
    assert step["step"] == "where"
    assert "SRV _imaps._tcp.corp.invalid" in step["detail"]


def test_a_host_that_does_not_resolve_or_is_not_allowed(system: System) -> None:
    for host, kind in (("imap.invalid", "unreachable"), ("10.0.0.1", "blocked_host")):
        login = Login(host, 993, "tls", "someone", "password", "secret")
        finding = failed(list(Examination(login, settings()).run()))
        assert (finding.step, finding.kind) == ("resolve", kind)


def test_a_port_that_is_closed(system: System) -> None:
    (closed,) = free_ports(1)
    login = Login("127.0.0.1", closed, "tls", "someone", "password", "secret")
    finding = failed(list(Examination(login, settings()).run()))
    assert (finding.step, finding.kind) == ("connect", "unreachable")


def test_tls_that_is_not_to_be_trusted_or_not_there(system: System) -> None:
    # The certificate is for localhost and 127.0.0.1
    login = Login("127.1", system.dovecot.imaps_port, "tls", "someone", "password", "secret")
    finding = failed(list(Examination(login, settings()).run()))
    assert (finding.step, finding.kind) == ("tls", "tls_error")
    with ScriptedImap() as plain:
        finding = failed(examined(plain, security="tls")[0])
        assert (finding.step, finding.kind) == ("tls", "tls_error")
        finding = failed(examined(plain, security="starttls")[0])
        assert (finding.step, finding.kind) == ("tls", "tls_error")
        assert "does not offer STARTTLS" in finding.detail


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("another protocol", "greeting"),
        ("a limit in place of a greeting", "greeting"),
        ("Gmail has too many connections", "login"),
        ("Gmail wants a web login", "login"),
        ("QQ's one text for four causes", "login"),
        ("a BYE during the login", "login"),
        ("Microsoft is not connected", "id"),
        ("Microsoft names a pause", "list"),
        ("a BYE in the middle", "list"),
        ("163 takes the login for unsafe", "examine"),
    ],
)
def test_each_persona_fails_at_its_step_with_its_kind(system: System, name: str, step: str) -> None:
    refusal = REFUSALS[name]
    with refusal.make() as server:
        finding = failed(examined(server)[0])
    assert (finding.step, finding.kind) == (step, refusal.kind)


def test_a_silent_server_ends_with_the_time_out(system: System) -> None:
    with ScriptedImap(rules=[Rule("EXAMINE", b"")]) as server:
        finding = failed(examined(server)[0])
    assert (finding.step, finding.kind) == ("examine", "timed_out")


def test_a_provider_that_is_known_says_what_to_do(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a Gmail on the loopback address
    monkeypatch.setitem(providers.BY_HOST, "127.0.0.1", providers.preset_of("imap.gmail.com"))
    with REFUSALS["authenticationfailed"].make() as server:
        findings, examination = examined(server)
    assert login_is_to_blame(findings[-1])
    assert examination.advice is not None
    assert "make an app password" in examination.advice
    assert "2,000,000,000 bytes a day" in " ".join(examination.notes)


def test_quirks_are_noted(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(providers.BY_HOST, "127.0.0.1", providers.preset_of("imap.163.com"))
    with personas.netease() as server:
        server.capabilities += b" MESSAGELIMIT=1000 X-GM-EXT-1"
        findings, examination = examined(server)
    assert findings[-1].ok
    notes = " ".join(examination.notes)
    for note in ("send ID", "1000 messages (RFC 9738)", "labels are folders", "no LIST-STATUS"):
        assert note in notes


def test_a_mailbox_without_uidvalidity_or_inbox_is_noted(system: System) -> None:
    rules = [
        Rule("EXAMINE", b"* 0 EXISTS\r\n{tag} OK done\r\n"),
        Rule("LIST", b'* LIST () "/" Work\r\n{tag} OK done\r\n'),
    ]
    with ScriptedImap(rules=rules) as server:
        _, examination = examined(server)
    notes = " ".join(examination.notes)
    for note in ("no UIDVALIDITY", "no UIDNEXT", "no INBOX"):
        assert note in notes


def test_a_server_that_closes_at_once(system: System) -> None:
    with ScriptedImap(greeting=b"", rules=[Rule(".*", CLOSE)]) as server:
        finding = failed(examined(server)[0])
    assert finding.step == "greeting"


# --- OAuth 2


def test_a_stored_account_with_tokens_is_examined_with_them(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot
) -> None:
    with TokenServer(dovecot.ca_file.parent) as tokens, TokenImap() as server:
        variables = SETS["embedded"](request, tmp_path) | tokens.variables
        more = {"MAILPOLL_IMAP_PORTS": str(server.port), "MAILPOLL_IMAP_ALLOW_PLAIN": "yes"}
        for _ in run_system(variables, tmp_path, dovecot, **more):
            account = accounts.create(
                address="ann@example.org",
                refresh_token=tokens.new_refresh_token("ann@example.org"),
                oauth_provider="generic",
                host="127.0.0.1",
                port=server.port,
                security="plain",
                test=False,
            )
            good = run(account.address, "--json", ports=str(server.port), given=None)
            assert good.returncode == 0, good.stdout + good.stderr
            # And with a permission that ended
            tokens.users.clear()
            accounts.change(account, {"username": "ann"}, test=False)
            _let_token_end()
            ended = run(account.address, ports=str(server.port), given=None)
            assert ended.returncode == 1
            assert "FAIL  where" in ended.stdout.decode()
            assert "authorise mailpoll again" in ended.stdout.decode()
            assert "canary" not in (ended.stdout + ended.stderr + good.stdout).decode()


def _let_token_end() -> None:
    from mailpoll import database
    from tests.integration.rows import change_accounts

    change_accounts(access_token_expires_at=database.now())
