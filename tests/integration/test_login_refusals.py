"""Each way in which providers refuse a login has its kind, its pause, its state and its words."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mailpoll import accounts
from mailpoll.actors.poll import poll
from mailpoll.imap import providers
from mailpoll.models import EmailAccount
from mailpoll.settings import new_key
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import account_row, change_accounts
from tests.integration.system import System
from tests.servers import personas
from tests.servers.dovecot import Dovecot
from tests.servers.personas import REFUSALS, Refusal
from tests.servers.scripted_imap import Rule, ScriptedImap

URL = "/admin/email-accounts"


@pytest.fixture
def system(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    """The embedded set, where servers without TLS on any port are allowed."""
    yield from run_system(
        SETS["embedded"](request, tmp_path),
        tmp_path,
        dovecot,
        MAILPOLL_IMAP_PORTS="1024-65535",
        MAILPOLL_IMAP_ALLOW_PLAIN="yes",
        MAILPOLL_IMAP_READ_TIMEOUT="5",
    )


@pytest.fixture
def persona(monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> Iterator[ScriptedImap]:
    if refusal.preset:
        # Presets are data: here the loopback address is one of that provider's hosts.
        preset = providers.preset_of(refusal.preset)
        monkeypatch.setitem(providers.BY_HOST, "127.0.0.1", preset)
    with refusal.make() as server:
        yield server


def add(server: ScriptedImap, **fields: Any) -> EmailAccount:
    return accounts.create(
        address="someone@example.org",
        password="canary-password",
        host="127.0.0.1",
        port=server.port,
        security="plain",
        poll_interval=60,
        test=False,
        **fields,
    )


def polled(system: System, account: EmailAccount) -> dict[str, Any]:
    """The account as the API shows it after one poll."""
    poll(account.id, None)
    return system.get(f"{URL}/{account.uuid}")


def logins(server: ScriptedImap) -> int:
    return sum(command.upper().startswith(("LOGIN", "AUTH")) for command in server.commands)


refusals = pytest.mark.parametrize("refusal", REFUSALS.values(), ids=list(REFUSALS))


@refusals
def test_a_refusal_has_its_kind_its_words_and_its_pause(
    system: System, persona: ScriptedImap, refusal: Refusal
) -> None:
    shown = polled(system, add(persona))
    assert shown["last_error_kind"] == refusal.kind
    assert refusal.words in shown["last_error"]
    assert "canary-password" not in shown["last_error"]
    assert shown["state"] == "active"
    assert shown["failures"] == int(refusal.counts)
    row = account_row(shown["id"])
    assert row.auth_failures == int(refusal.blames_login)
    pause = row.next_poll_at - row.last_error_at
    if refusal.pause is None:
        midnight = (row.last_error_at + timedelta(days=1)).replace(hour=0, minute=0, second=0)
        assert timedelta() < row.next_poll_at - midnight.replace(microsecond=0) < timedelta(hours=1)
    else:
        least, most = refusal.pause
        # The two moments are read one after the other.
        assert least - 0.5 <= pause.total_seconds() <= most


@refusals
def test_only_refusals_that_blame_the_login_end_the_polling_after_three(
    system: System, persona: ScriptedImap, refusal: Refusal
) -> None:
    account = add(persona)
    for _ in range(5):
        shown = polled(system, account)
    if refusal.blames_login:
        assert shown["state"] == "auth_failed"
        assert shown["next_poll_at"] is None
        assert logins(persona) == 3
    else:
        assert shown["state"] == "active"


def test_pauses_double_up_to_an_hour(system: System) -> None:
    refusal = REFUSALS["a limit"]
    with refusal.make() as server:
        account = add(server)
        pauses = []
        for _ in range(6):
            polled(system, account)
            row = account_row(account.uuid)
            pauses.append((row.next_poll_at - row.last_error_at).total_seconds())
    for pause, middle in zip(pauses, (300, 600, 1_200, 2_400, 3_600, 3_600), strict=True):
        assert 0.8 * middle - 0.5 <= pause <= 1.2 * middle


@pytest.mark.parametrize("password", ["canary", 'ca"nary', "ca\\nary", "ca'n\"a\\ry"])
def test_the_servers_echo_of_the_password_is_not_kept(system: System, password: str) -> None:
    with ScriptedImap() as server:

        def echo() -> bytes:
            return b"{tag} NO " + server.commands[-1].encode() + b" rejected\r\n"

        server.rules = [Rule("LOGIN", echo)]
        account = accounts.change(add(server), {"password": password}, test=False)
        shown = polled(system, account)
    assert "rejected" in shown["last_error"]
    assert not any(piece in shown["last_error"] for piece in ("ca", "nary", "ry"))


def test_after_refused_logins_a_new_password_or_an_operator_starts_the_polling_again(
    system: System,
) -> None:
    line = b"{tag} NO [AUTHENTICATIONFAILED] Invalid credentials\r\n"
    with ScriptedImap(rules=[Rule("LOGIN", line, times=6)]) as server:
        account = add(server)
        for _ in range(4):
            polled(system, account)
        system.post(f"{URL}/{account.uuid}/resume")
        for _ in range(4):
            shown = polled(system, account)
        assert shown["state"] == "auth_failed"
        assert logins(server) == 6
        answer = system.api.simulate_patch(
            f"{URL}/{account.uuid}", json={"password": "the right one"}
        )
        assert answer.json["state"] == "active"
        shown = polled(system, account)
    assert shown["last_error"] is None
    assert shown["failures"] == 0


def test_a_transient_failure_between_them_does_not_forget_refused_logins(system: System) -> None:
    wrong = b"{tag} NO [AUTHENTICATIONFAILED] Invalid credentials\r\n"
    busy = b"{tag} NO [UNAVAILABLE] busy\r\n"
    rules = [Rule("LOGIN", wrong, times=2), Rule("LOGIN", busy, times=1), Rule("LOGIN", wrong)]
    with ScriptedImap(rules=rules) as server:
        account = add(server)
        states = [polled(system, account)["state"] for _ in range(4)]
    assert states == ["active", "active", "active", "auth_failed"]


# --- identity and capabilities


@pytest.mark.parametrize("offers_id", [True, False])
def test_163_opens_its_folders_to_who_says_its_name(
    system: System, monkeypatch: pytest.MonkeyPatch, offers_id: bool
) -> None:
    monkeypatch.setitem(providers.BY_HOST, "127.0.0.1", providers.preset_of("imap.163.com"))
    with personas.netease(offers_id) as server:
        shown = polled(system, add(server))
    assert shown["last_error"] is None
    verbs = [command.split()[0].upper() for command in server.commands]
    assert verbs.index("LOGIN") < verbs.index("ID") < verbs.index("EXAMINE")


def test_without_an_identity_163_is_an_unsafe_login(system: System) -> None:
    # Given a server like 163 that is no provider of the table and does not offer ID
    with personas.netease(offers_id=False) as server:
        shown = polled(system, add(server))
    assert shown["last_error_kind"] == "unsafe_login"


@pytest.mark.parametrize("answer", [b"{tag} BAD unknown command\r\n", b"{tag} NO not you\r\n"])
def test_a_server_that_dislikes_the_identity_is_polled_all_the_same(
    system: System, answer: bytes
) -> None:
    rules = [Rule("ID ", answer)]
    with ScriptedImap(capabilities=b"IMAP4rev1 ID", rules=rules) as server:
        shown = polled(system, add(server))
    assert any(command.startswith("ID (") for command in server.commands)
    assert shown["last_error"] is None


def test_what_a_server_can_do_is_asked_again_after_the_login(system: System) -> None:
    # Given a server that offers ID and LIST-STATUS only to those who have logged in
    def capability() -> bytes:
        known = any(command.startswith("LOGIN") for command in server.commands)
        more = b" ID LIST-STATUS" if known else b""
        return b"* CAPABILITY IMAP4rev1" + more + b"\r\n{tag} OK done\r\n"

    with ScriptedImap(rules=[Rule("CAPABILITY", capability)]) as server:
        shown = polled(system, add(server))
    assert shown["last_error"] is None
    assert any(command.startswith("ID (") for command in server.commands)
    assert any("RETURN (STATUS" in command for command in server.commands)


# --- failures of our own


def test_a_credential_that_no_key_opens_is_said_in_words(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mailpoll import runtime
    from mailpoll.crypto import KeyRing

    with ScriptedImap() as server:
        account = add(server)
        # When the key that encrypted the credential is gone
        ring = KeyRing([new_key()])
        monkeypatch.setattr(runtime, "keyring", lambda: ring)
        shown = polled(system, account)
    assert server.commands == []
    assert shown["last_error_kind"] == "credential_unreadable"
    assert "MAILPOLL_SECRET_KEY" in shown["last_error"]
    assert shown["state"] == "active"
    assert shown["failures"] == 1


def test_an_unexpected_failure_ends_in_words_too(system: System) -> None:
    with ScriptedImap() as server:
        account = add(server)
        # Given a row that no version of mailpoll writes
        change_accounts(folders=5)
        with pytest.raises(TypeError):
            poll(account.id, None)
    row = account_row(account.uuid)
    assert row.last_error_kind == "internal_error"
    assert "unexpected TypeError" in row.last_error
    assert row.failures == 1
    assert row.lease_until is None
