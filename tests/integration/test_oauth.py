"""OAuth 2: tokens are bought once, renewed in time, and their end is told from a wrong password."""

import sqlite3
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mailpoll import accounts, consent, database, oauth
from mailpoll.actors.poll import poll
from mailpoll.crypto import DecryptionError
from mailpoll.imap import Fault, ImapError
from mailpoll.models import EmailAccount
from mailpoll.settings import Settings, from_environment
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import account_row, change_accounts
from tests.integration.system import System, message
from tests.servers.certificates import write_certificates
from tests.servers.dovecot import Dovecot
from tests.servers.oauth_dovecot import OauthDovecot
from tests.servers.personas import TokenImap
from tests.servers.scripted_imap import CLOSE, Rule, ScriptedImap
from tests.servers.token_server import CLIENT_ID, CLIENT_SECRET, TokenServer

URL = "/admin/email-accounts"


@pytest.fixture
def tokens(dovecot: Dovecot) -> Iterator[TokenServer]:
    with TokenServer(dovecot.ca_file.parent) as server:
        yield server


@pytest.fixture(params=list(SETS))
def system(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, tokens: TokenServer
) -> Iterator[System]:
    """Each backing set, with a generic OAuth 2 provider and servers without TLS on any port."""
    yield from run_system(
        SETS[request.param](request, tmp_path),
        tmp_path,
        dovecot,
        MAILPOLL_IMAP_PORTS="1024-65535",
        MAILPOLL_IMAP_ALLOW_PLAIN="yes",
        **tokens.variables,
    )


@pytest.fixture
def server(tokens: TokenServer) -> Iterator[TokenImap]:
    """An IMAP server that takes the token server's tokens."""
    with TokenImap(
        messages={1: message("one")}, accepts=lambda token: token in tokens.tokens
    ) as imap:
        yield imap


def body(server: ScriptedImap, tokens: TokenServer, **fields: Any) -> dict[str, Any]:
    return {
        "address": "someone@example.org",
        "refresh_token": tokens.new_refresh_token("someone@example.org"),
        "oauth_provider": "generic",
        "host": "127.0.0.1",
        "port": server.port,
        "security": "plain",
        **fields,
    }


def add(system: System, server: ScriptedImap, tokens: TokenServer, **fields: Any) -> EmailAccount:
    answer = system.api.simulate_post(URL, json=body(server, tokens, **fields))
    assert answer.status_code == 201, answer.text
    return account_row(answer.json["id"])


def polled(system: System, account: EmailAccount) -> dict[str, Any]:
    poll(account.id, None)
    return system.get(f"{URL}/{account.uuid}")


def let_token_end() -> None:
    change_accounts(access_token_expires_at=database.now())


def in_ten_threads(account: EmailAccount) -> list[str]:
    """What ten workers that need the account's token at the same time get."""
    start = threading.Barrier(10)
    got: list[str] = []

    def ask() -> None:
        start.wait()
        try:
            got.append(oauth.access_token(account))
        except ImapError as error:
            got.append(error.fault)

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


# --- on a real server


@pytest.mark.parametrize("mechanism", ["xoauth2", "oauthbearer"])
def test_mail_comes_in_with_a_refresh_token(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    server_directory: Path,
    address: str,
    mechanism: str,
) -> None:
    # Given a Dovecot that takes access tokens by this mechanism only
    directory = server_directory / "dovecot"
    directory.mkdir(mode=0o755)
    write_certificates(directory)
    with TokenServer(directory) as tokens:
        dovecot = OauthDovecot(directory, tokens.introspection_url, mechanism)
        with dovecot:
            variables = SETS["embedded"](request, tmp_path) | tokens.variables
            for system in run_system(variables, tmp_path, dovecot):
                dovecot.deliver(address, message("by token"))
                # When its mailbox is added with a refresh token and polled
                account = {
                    "address": address,
                    "refresh_token": tokens.new_refresh_token(address),
                    "oauth_provider": "generic",
                    "host": "localhost",
                    "port": dovecot.imaps_port,
                }
                shown = system.post(URL, 201, **account)
                poll(account_row(shown["id"]).id, None)
                # Then its mail is there, and one access token was enough
                (mail,) = system.messages(shown["id"])
                assert mail["size"] == len(message("by token"))
                assert len(tokens.requests) == 1
                assert shown["auth"] == "oauth2"
                assert shown["oauth_provider"] == "generic"
                # And when that token is taken back, another is bought
                tokens.tokens.clear()
                assert polled(system, account_row(shown["id"]))["last_error"] is None
                assert len(tokens.requests) == 2


# --- buying and keeping


def test_the_request_is_that_of_the_standard(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    add(system, server, tokens)
    (request,) = tokens.requests
    assert request == {
        "grant_type": "refresh_token",
        "refresh_token": next(iter(tokens.users)),
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "scope": "imap",
    }


def test_a_token_is_kept_until_shortly_before_its_end(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    account = add(system, server, tokens)
    for _ in range(3):
        polled(system, account)
    assert len(tokens.requests) == 1
    let_token_end()
    assert polled(system, account)["last_error"] is None
    assert len(tokens.requests) == 2
    assert len(set(server.tokens)) == 2


def test_ten_workers_cause_one_refresh(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    account = add(system, server, tokens)
    let_token_end()
    tokens.delay = 0.5
    got = in_ten_threads(account)
    assert len(got) == 10
    assert len(set(got)) == 1
    assert got[0] in tokens.tokens
    assert len(tokens.requests) == 2


def test_a_new_refresh_token_replaces_the_old_one(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    tokens.rotates = True
    account = add(system, server, tokens)
    for _ in range(3):
        let_token_end()
        assert polled(system, account)["last_error"] is None
    sent = [request["refresh_token"] for request in tokens.requests]
    assert len(set(sent)) == 4


def test_a_claim_whose_process_died_lapses(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    account = add(system, server, tokens)
    moment = database.now()
    change_accounts(access_token_expires_at=moment, token_claimed_until=moment)
    assert oauth.access_token(account) in tokens.tokens


# --- tokens that are over


def test_a_token_that_was_taken_back_is_renewed_once_within_the_poll(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    account = add(system, server, tokens)
    tokens.tokens.clear()
    shown = polled(system, account)
    assert shown["last_error"] is None
    assert shown["failures"] == 0
    assert len(tokens.requests) == 2


@pytest.mark.parametrize(
    ("bye", "ended"),
    [(b"* BYE Session expired, please login again.\r\n" + CLOSE, False), (CLOSE, True)],
)
def test_a_session_that_ends_with_its_token_goes_on_with_another(
    system: System, server: TokenImap, tokens: TokenServer, bye: bytes, ended: bool
) -> None:
    account = add(system, server, tokens)

    # Given a server that ends the session in mid-poll
    def end() -> bytes:
        if ended:
            let_token_end()
        return bye

    server.rules = [Rule("UID FETCH", end, times=1)]
    # When it is polled once
    shown = polled(system, account)
    # Then the mail is there all the same, with a second token
    assert shown["last_error"] is None
    assert len(system.messages(account.uuid)) == 1
    assert len(tokens.requests) == 2
    assert server.tokens[-1] != server.tokens[-2]


def test_a_connection_that_is_lost_while_the_token_is_good_is_just_that(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    account = add(system, server, tokens)
    server.rules = [Rule("LIST", CLOSE)]
    assert polled(system, account)["last_error_kind"] == "connection_lost"
    assert len(tokens.requests) == 1


def test_a_server_that_takes_no_token_is_asked_a_few_times_and_then_not_again(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    account = add(system, server, tokens)
    server.accepts = lambda _: False
    before = len(server.tokens)
    for _ in range(6):
        shown = polled(system, account)
    assert shown["state"] == "auth_failed"
    assert shown["last_error_kind"] == "auth_failed"
    # Three polls, each with the token it had and one more.
    assert len(server.tokens) - before == 6
    assert len(tokens.requests) == 4


# --- when no token can be had


def test_a_permission_that_ended_ends_the_polling_and_says_what_to_do(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    account = add(system, server, tokens)
    tokens.users.clear()
    let_token_end()
    for _ in range(3):
        shown = polled(system, account)
    assert shown["state"] == "auth_failed"
    assert shown["last_error_kind"] == "authorisation_ended"
    assert "authorise mailpoll again and set the new refresh_token" in shown["last_error"]
    assert "invalid_grant" in shown["last_error"]
    assert "canary" not in shown["last_error"]
    assert len(tokens.requests) == 2
    # And a new refresh token starts it again
    new = tokens.new_refresh_token("someone@example.org")
    answer = system.api.simulate_patch(f"{URL}/{account.uuid}", json={"refresh_token": new})
    assert answer.status_code == 200, answer.text
    assert answer.json["state"] == "active"
    assert polled(system, account)["last_error"] is None


def test_ten_workers_ask_once_for_what_is_refused(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    account = add(system, server, tokens)
    tokens.users.clear()
    tokens.delay = 0.5
    let_token_end()
    assert in_ten_threads(account) == [Fault.AUTHORISATION_ENDED] * 10
    assert len(tokens.requests) == 2


@pytest.mark.parametrize(
    "failure",
    [
        (503, b"<html>maintenance</html>"),
        (429, b'{"error": "temporarily_unavailable"}'),
        (200, b"not json"),
        (200, b"[]"),
        (200, b'{"access_token": ""}'),
        (200, b'{"access_token": "a\\r\\nb"}'),
        (302, b""),
        (200, b"x" * 300_000),
    ],
)
def test_a_token_server_in_trouble_is_a_passing_failure(
    system: System, server: TokenImap, tokens: TokenServer, failure: tuple[int, bytes]
) -> None:
    account = add(system, server, tokens)
    let_token_end()
    tokens.failure = failure
    for _ in range(4):
        shown = polled(system, account)
    assert shown["state"] == "active"
    assert shown["last_error_kind"] == "token_unavailable"
    # A failure is remembered for a while.
    assert len(tokens.requests) == 2
    tokens.failure = None
    change_accounts(token_claimed_until=database.now())
    assert polled(system, account)["last_error"] is None


def test_a_client_that_the_provider_refuses_is_the_operators_business(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    account = add(system, server, tokens)
    let_token_end()
    tokens.failure = (401, b'{"error": "invalid_client", "error_description": "wrong secret"}')
    shown = polled(system, account)
    assert shown["state"] == "active"
    assert shown["last_error_kind"] == "oauth_client_refused"
    assert "MAILPOLL_OAUTH_" in shown["last_error"]


# --- adding and changing


def refused(system: System, body: dict[str, Any]) -> dict[str, str]:
    answer = system.api.simulate_post(URL, json=body)
    assert answer.status_code == 422, answer.text
    assert "canary" not in answer.text
    assert system.get(URL)["items"] == []
    return {error["field"]: error["reason"] for error in answer.json["errors"]}


def test_what_does_not_work_is_named(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    good = body(server, tokens)
    unknown = refused(system, good | {"refresh_token": "canary-unknown"})
    assert "authorise mailpoll again" in unknown["refresh_token"]
    without = {name: value for name, value in good.items() if name != "oauth_provider"}
    assert "google, microsoft or generic" in refused(system, without)["oauth_provider"]
    google = refused(system, good | {"oauth_provider": "google"})
    assert "MAILPOLL_OAUTH_GOOGLE_CLIENT_ID is not set" in google["oauth_provider"]
    both = refused(system, good | {"password": "canary-password"})
    assert "together with refresh_token" in both["password"]
    server.accepts = lambda _: False
    assert "refused the user name or password" in refused(system, good)["refresh_token"]
    tokens.failure = (503, b"")
    assert "token server" in refused(system, good)["oauth_provider"]


def test_without_a_test_nothing_is_asked_of_anybody(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    account = add(system, server, tokens, test=False)
    assert tokens.requests == []
    assert server.commands == []
    assert polled(system, account)["last_error"] is None


def test_a_password_takes_the_place_of_the_tokens_and_back(
    system: System, server: TokenImap, tokens: TokenServer
) -> None:
    account = add(system, server, tokens)
    where = f"{URL}/{account.uuid}"
    only_auth = system.api.simulate_patch(where, json={"auth": "password"})
    assert only_auth.json["errors"][0]["field"] == "password"
    system.api.simulate_patch(where, json={"auth": "password", "password": "secret"})
    row = account_row(account.uuid)
    assert (row.auth, row.refresh_token, row.access_token) == ("password", None, None)
    new = {
        "refresh_token": tokens.new_refresh_token("someone@example.org"),
        "oauth_provider": "generic",
    }
    assert system.api.simulate_patch(where, json=new).json["auth"] == "oauth2"
    row = account_row(account.uuid)
    assert row.credential == ""
    assert polled(system, account)["last_error"] is None


def test_a_token_server_in_a_private_network_is_not_connected_to(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, tokens: TokenServer
) -> None:
    variables = SETS["embedded"](request, tmp_path) | tokens.variables
    variables["MAILPOLL_OAUTH_GENERIC_TOKEN_URL"] = "https://169.254.169.254/token"
    for system in run_system(variables, tmp_path, dovecot):
        given = system.new_account("someone@example.org", refresh_token="canary-token")
        del given["password"]
        reasons = refused(system, given | {"oauth_provider": "generic"})
        assert "private or loopback" in reasons["host"]


@pytest.mark.parametrize(
    ("provider", "scope"),
    [("google", ""), ("microsoft", "https://outlook.office.com/IMAP.AccessAsUser.All")],
)
def test_the_big_providers_have_their_place_and_scope(provider: str, scope: str) -> None:
    config = from_environment(
        {
            f"MAILPOLL_OAUTH_{provider.upper()}_CLIENT_ID": "id",
            f"MAILPOLL_OAUTH_{provider.upper()}_CLIENT_SECRET": "canary-secret",
            "MAILPOLL_OAUTH_MICROSOFT_TENANT": "example.org",
        }
    )
    client = oauth.client_of(provider, config)
    assert client.token_url.startswith("https://")
    assert ("/example.org/" in client.token_url) == (provider == "microsoft")
    assert client.scope.startswith(scope)
    assert (client.client_id, client.client_secret) == ("id", "canary-secret")
    assert "canary" not in repr(client) + repr(config)


def test_the_tenant_stands_in_both_addresses_of_any_other_provider() -> None:
    config = from_environment(
        {
            "MAILPOLL_OAUTH_MICROSOFT_TENANT": "ours",
            "MAILPOLL_OAUTH_GENERIC_CLIENT_ID": "id",
            "MAILPOLL_OAUTH_GENERIC_TOKEN_URL": "https://{tenant}.example.org/token",
            "MAILPOLL_OAUTH_GENERIC_AUTHORIZATION_URL": "https://example.org/{tenant}/agree",
        }
    )
    assert oauth.client_of("generic", config).token_url == "https://ours.example.org/token"
    provider = consent.provider_of("generic", config)
    assert (provider.title, provider.url) == ("example.org", "https://example.org/ours/agree")


def test_a_host_of_a_big_provider_tells_whose_token_server_it_is(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    dovecot: Dovecot,
    tokens: TokenServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a Google whose token server is ours
    monkeypatch.setitem(oauth.TOKEN_URLS, "google", tokens.token_url)
    variables = SETS["embedded"](request, tmp_path) | {
        "MAILPOLL_OAUTH_GOOGLE_CLIENT_ID": CLIENT_ID,
        "MAILPOLL_OAUTH_GOOGLE_CLIENT_SECRET": CLIENT_SECRET,
    }
    for _ in run_system(variables, tmp_path, dovecot, MAILPOLL_IMAP_PORTS="993"):
        token = tokens.new_refresh_token("someone@gmail.com")
        account = accounts.create(address="someone@gmail.com", refresh_token=token, test=False)
        assert account.oauth_provider == "google"
        assert account.host == "imap.gmail.com"
        assert oauth.access_token(account) in tokens.tokens


# --- secrets


def test_no_token_is_found_outside_its_encrypted_column(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    dovecot: Dovecot,
    tokens: TokenServer,
    server: TokenImap,
    capfd: pytest.CaptureFixture[str],
) -> None:
    variables = SETS["embedded"](request, tmp_path) | tokens.variables
    more = {
        "MAILPOLL_IMAP_PORTS": str(server.port),
        "MAILPOLL_IMAP_ALLOW_PLAIN": "yes",
        "MAILPOLL_LOG_LEVEL": "debug",
    }
    for system in run_system(variables, tmp_path, dovecot, **more):
        account = add(system, server, tokens)
        polled(system, account)
        let_token_end()
        tokens.users.clear()
        polled(system, account)
        answers = [
            system.api.simulate_get(path).text
            for path in (URL, f"{URL}/{account.uuid}", f"{URL}/{account.uuid}/stats")
        ]
        with sqlite3.connect(system.settings.data_dir / "mailpoll.db") as copy:
            dump = "\n".join(copy.iterdump())
        row = account_row(account.uuid)
        assert row.refresh_token.startswith("v1.")
        # A ciphertext that was moved to another field does not open.
        later = database.now() + timedelta(hours=1)
        change_accounts(access_token=row.refresh_token, access_token_expires_at=later)
        with pytest.raises(DecryptionError):
            oauth.access_token(account)
        accounts.delete(account.uuid)
        row = account_row(account.uuid)
        assert (row.refresh_token, row.access_token, row.token_error) == (None, None, None)
    output = "".join(capfd.readouterr())
    assert "poll failed" in output
    for text in (*answers, dump, output, repr(Settings(**{}))):
        assert "canary" not in text
