"""Connect with a provider: the owner agrees there; whatever goes wrong leaves nothing behind."""

import html
import re
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import falcon.testing
import pytest

from mailpoll import runtime
from mailpoll.actors.poll import poll
from mailpoll.models import AccountState
from mailpoll.settings import SettingsError, from_environment
from mailpoll.web.app import create_app
from mailpoll.web.console import connect
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import account_row, change_accounts
from tests.integration.system import TOKEN, System, message
from tests.integration.test_auth import ORIGIN
from tests.integration.test_console import HTML, Browser
from tests.integration.test_secrets import everything_in_redis, everything_in_the_database
from tests.security.test_api_keys import new_key
from tests.servers.dovecot import Dovecot
from tests.servers.identity_provider import IdentityProvider
from tests.servers.personas import TokenImap
from tests.servers.token_server import CLIENT_ID, CLIENT_SECRET

URL = "/admin/email-accounts"
BACK = f"{ORIGIN}/accounts/connect/generic"
ME = "someone@example.org"
GOOGLE = {
    "MAILPOLL_OAUTH_GOOGLE_CLIENT_ID": "1234.apps.googleusercontent.com",
    "MAILPOLL_OAUTH_MICROSOFT_CLIENT_ID": "an-application",
}


@pytest.fixture
def provider(dovecot: Dovecot) -> Iterator[IdentityProvider]:
    with IdentityProvider(dovecot.ca_file.parent, redirects=[BACK]) as server:
        yield server


@pytest.fixture
def imap(provider: IdentityProvider) -> Iterator[TokenImap]:
    """The provider's IMAP server: a token opens the mailbox of whoever it is of, and no other."""
    with TokenImap(
        messages={1: message("one")}, accepts=lambda token: provider.tokens.get(token) == ME
    ) as server:
        yield server


def started(
    request: pytest.FixtureRequest, directory: Path, dovecot: Dovecot, **variables: str
) -> Iterator[System]:
    ports = ",".join(str(port) for port in range(1_024, 65_536))
    more = {"MAILPOLL_IMAP_PORTS": f"993,{ports}", "MAILPOLL_IMAP_ALLOW_PLAIN": "yes"}
    given = SETS["embedded"](request, directory) | more | variables
    yield from run_system(given, directory, dovecot)


@pytest.fixture
def system(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, provider: IdentityProvider
) -> Iterator[System]:
    public = {"MAILPOLL_PUBLIC_URL": ORIGIN.replace("http:", "https:")}
    provider.redirects[:] = [BACK.replace("http:", "https:")]
    public["MAILPOLL_TRUSTED_PROXIES"] = "127.0.0.0/8"
    variables = {**provider.variables, **public, **GOOGLE, "MAILPOLL_LOG_LEVEL": "debug"}
    yield from started(request, tmp_path, dovecot, **variables)


class Owner(Browser):
    """A browser behind TLS, that keeps cookies and goes to the provider and back."""

    def __init__(self, system: System, token: str = TOKEN) -> None:
        super().__init__(system, token)
        self.app = system.api.app
        self.session = self.client._default_headers["Cookie"]
        self.cookie = ""
        self.wear(self.session)

    def wear(self, cookies: str, origin: str = ORIGIN.replace("http:", "https:")) -> None:
        """Go on with these cookies."""
        headers = {**HTML, "Cookie": cookies, "Origin": origin, "X-Forwarded-Proto": "https"}
        self.client = falcon.testing.TestClient(self.app, headers=headers)

    def keep(self, answer: falcon.testing.Result) -> None:
        """Keep the sign-in's cookie, as a browser does."""
        self.cookie = answer.headers["set-cookie"].partition(";")[0]
        self.wear(f"{self.session}; {self.cookie}")

    def begins(self, imap: TokenImap, **fields: Any) -> str:
        """Where the page sends the browser that wants to connect a new account."""
        place = {"host": "127.0.0.1", "port": imap.port, "security": "plain"}
        given = {"address": ME, "connect": "generic", **place, **fields}
        answer = self.post("/accounts/new", 200, **given)
        self.keep(answer)
        return target_of(answer)

    def finishes(self, back: str, status: int = 303, **changed: str) -> falcon.testing.Result:
        """Come back from the provider without a cookie, and post what its answer was."""
        parts = urlsplit(back)
        stranger = falcon.testing.TestClient(self.client.app, headers=HTML)
        page = stranger.simulate_get(parts.path, query_string=parts.query)
        assert page.status_code == 200, page.text
        (action,) = re.findall(r'action="([^"]+)"', page.text)
        fields = re.findall(r'name="(\w+)" value="([^"]*)"', page.text)
        form = {name: html.unescape(value) for name, value in fields} | changed
        return self.post(action, status, **form)


def target_of(answer: falcon.testing.Result) -> str:
    (target,) = re.findall(r'http-equiv="refresh" content="0;url=([^"]+)"', answer.text)
    return html.unescape(target)


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def agrees(provider: IdentityProvider, target: str, user: str = ME, answer: str = "yes") -> str:
    """Where the provider sends a browser whose owner has signed in and answered, over TLS."""
    context = ssl.create_default_context(cafile=str(provider.directory / "ca.pem"))
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), Stay())
    page = opener.open(target).read().decode()
    (number,) = re.findall(r'name="asked" value="(\d+)"', page)
    form = urlencode({"user": user, "asked": number, "agree": answer}).encode()
    with pytest.raises(HTTPError) as found:
        opener.open(target.partition("authorize")[0] + "agree", form)
    assert found.value.code == 302
    return str(found.value.headers["Location"])


def nothing_came_of_it(system: System) -> None:
    assert system.get(URL)["items"] == []


def words_of(answer: falcon.testing.Result) -> str:
    (note,) = re.findall(r'<p class="note bad" role="alert">(.*?)</p>', answer.text, re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", note))


# --- it works


def test_a_mailbox_is_connected_without_a_password(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    owner = Owner(system)
    target = owner.begins(imap, folders="INBOX")
    # What the provider is asked for
    asked = dict(parse_qsl(urlsplit(target).query))
    assert asked["response_type"] == "code"
    assert asked["client_id"] == CLIENT_ID
    assert asked["redirect_uri"] == provider.redirects[0]
    assert asked["login_hint"] == ME
    assert asked["scope"] == "imap"
    assert asked["code_challenge_method"] == "S256"
    assert len(asked["code_challenge"]) == 43
    assert len(asked["state"]) == 43
    # When its owner agrees
    answer = owner.finishes(agrees(provider, target))
    # Then the account is there, and its mail comes
    path, _, said = answer.headers["location"].partition("?")
    assert said == "done=added"
    shown = system.get(f"{URL}/{path.rpartition('/')[2]}")
    assert (shown["address"], shown["auth"], shown["oauth_provider"]) == (ME, "oauth2", "generic")
    assert shown["folders"] == ["INBOX"]
    poll(account_row(shown["id"]).id, None)
    assert len(system.messages(shown["id"])) == 1
    # And the code was exchanged with what only mailpoll knows
    redeemed = provider.requests[0]
    assert redeemed["client_secret"] == CLIENT_SECRET
    assert redeemed["redirect_uri"] == provider.redirects[0]
    assert set(asked.values()).isdisjoint({redeemed["code_verifier"]})
    # And the sign-in's cookie is gone
    assert "mailpoll_connect=;" in answer.headers["set-cookie"].replace('""', "")


def test_any_web_process_ends_what_another_began(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    owner = Owner(system)
    back = agrees(provider, owner.begins(imap))
    owner.app = create_app()
    owner.wear(f"{owner.session}; {owner.cookie}")
    assert owner.finishes(back).headers["location"].endswith("?done=added")


def test_an_account_whose_login_failed_is_connected_again(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    owner = Owner(system)
    answer = owner.finishes(agrees(provider, owner.begins(imap)))
    path = answer.headers["location"].partition("?")[0]
    account = path.rpartition("/")[2]
    assert "Connect with localhost again" not in owner.get(path)
    change_accounts(state=AccountState.AUTH_FAILED, auth_failures=3)
    before = account_row(account).refresh_token
    assert "Connect with localhost again" in owner.get(path)
    begun = owner.post(f"{path}/connect", 200)
    owner.keep(begun)
    assert dict(parse_qsl(urlsplit(target_of(begun)).query))["login_hint"] == ME
    answer = owner.finishes(agrees(provider, target_of(begun)))
    assert answer.headers["location"] == f"{path}?done=connected"
    assert "connected again" in owner.get(f"{path}?done=connected")
    row = account_row(account)
    assert row.state == AccountState.ACTIVE
    assert row.refresh_token != before
    assert len(system.get(URL)["items"]) == 1


@pytest.mark.parametrize(
    ("name", "begin", "scope", "more"),
    [
        (
            "google",
            "https://accounts.google.com/o/oauth2/v2/auth?",
            "https://mail.google.com/ openid email",
            {"access_type": "offline", "prompt": "consent"},
        ),
        (
            "microsoft",
            "https://login.microsoftonline.com/common/oauth2/v2.0/authorize?",
            "https://outlook.office.com/IMAP.AccessAsUser.All offline_access openid email",
            {},
        ),
    ],
)
def test_google_and_microsoft_are_asked_as_they_want_it(
    system: System, name: str, begin: str, scope: str, more: dict[str, str]
) -> None:
    answer = Owner(system).post("/accounts/new", 200, address=ME, connect=name)
    target = target_of(answer)
    assert target.startswith(begin)
    asked = dict(parse_qsl(urlsplit(target).query))
    assert asked["scope"] == scope
    assert asked["redirect_uri"].endswith(f"/accounts/connect/{name}")
    assert asked.items() >= more.items()
    # A token is for the provider's own server, whatever the form says
    (cookie,) = re.findall(r"mailpoll_connect=([^;]+)", answer.headers["set-cookie"])
    sealed = runtime.keyring().decrypt(cookie.strip('"'), connect.CONTEXT)
    assert '"host":"imap.gmail.com"' in sealed or '"host":"outlook.office365.com"' in sealed


def test_only_what_is_configured_is_offered(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot
) -> None:
    for system in started(request, tmp_path, dovecot, **GOOGLE):
        page = Browser(system).get("/accounts/new").replace("<wbr>", "")
        assert 'name="connect"' not in page
        assert page.count("<code>MAILPOLL_PUBLIC_URL</code>") == 2
        assert "MAILPOLL_OAUTH_GOOGLE_CLIENT_ID" not in page
        # A button that was there before is answered all the same
        answer = Browser(system).post("/accounts/new", 422, address=ME, connect="google")
        assert "MAILPOLL_PUBLIC_URL" in words_of(answer)
        Browser(system).post("/accounts/new", 400, address=ME, connect="nobody")


# --- what is refused


def test_the_owner_who_refuses_is_left_alone(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    owner = Owner(system)
    answer = owner.finishes(agrees(provider, owner.begins(imap), answer="no"), 422)
    assert "did not agree" in words_of(answer)
    assert provider.requests == []
    nothing_came_of_it(system)


def test_an_answer_with_another_state_is_refused(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    """S65: somebody makes a browser end a sign-in that it did not begin (CWE-352)."""
    owner, stranger = Owner(system), Owner(system)
    owner.begins(imap)
    theirs = agrees(provider, stranger.begins(imap))
    assert "belongs to no sign-in" in words_of(owner.finishes(theirs, 422))
    for state in ("", "\u00e9", "x" * 5_000):
        assert "belongs to no sign-in" in words_of(owner.finishes(theirs, 422, state=state))
    assert provider.requests == []
    nothing_came_of_it(system)


def test_an_answer_without_a_sign_in_is_refused(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    back = agrees(provider, Owner(system).begins(imap))
    assert "This sign-in is over" in words_of(Owner(system).finishes(back, 422))
    assert provider.requests == []
    nothing_came_of_it(system)


def test_an_answer_counts_once(system: System, provider: IdentityProvider, imap: TokenImap) -> None:
    owner = Owner(system)
    back = agrees(provider, owner.begins(imap))
    kept = owner.cookie
    owner.keep(owner.finishes(back))
    assert "This sign-in is over" in words_of(owner.finishes(back, 422))
    # Also for a browser that kept what it was told to forget
    owner.wear(f"{owner.session}; {kept}")
    assert "token server said no: invalid_grant" in words_of(owner.finishes(back, 422))
    assert len(system.get(URL)["items"]) == 1


def test_a_sign_in_is_for_who_began_it(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    """S65: with the cookie of another session."""
    owner, other = Owner(system), Owner(system, new_key(system, "admin")["token"])
    back = agrees(provider, owner.begins(imap))
    other.wear(f"{other.session}; {owner.cookie}")
    assert "begun by somebody else" in words_of(other.finishes(back, 422))
    assert provider.requests == []
    nothing_came_of_it(system)


def test_without_a_login_or_with_a_key_for_less_nothing_ends(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    owner = Owner(system)
    back = agrees(provider, owner.begins(imap))
    for scope in ("read", "operate"):
        weak = Owner(system, new_key(system, scope)["token"])
        weak.finishes(back, 403)
        weak.post("/accounts/new", 403, address=ME, connect="generic")
    owner.wear(owner.cookie)
    login = owner.finishes(back, 303).headers["location"]
    assert login == "/login"
    # Nor does another site's form end one
    owner.wear(f"{owner.session}; {owner.cookie}", "https://evil.example")
    owner.finishes(back, 403)
    assert provider.requests == []
    nothing_came_of_it(system)


def test_a_sign_in_ends_after_a_while(
    system: System,
    provider: IdentityProvider,
    imap: TokenImap,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connect, "LIFETIME", -1)
    owner = Owner(system)
    back = agrees(provider, owner.begins(imap))
    monkeypatch.undo()
    assert "longer than 10 minutes" in words_of(owner.finishes(back, 410))
    assert provider.requests == []
    nothing_came_of_it(system)


def test_one_providers_answer_is_not_taken_for_anothers(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    """S65: a provider that sends its answer to the address of another (RFC 9700, 4.4)."""
    owner = Owner(system)
    back = agrees(provider, owner.begins(imap)).replace("/generic?", "/google?")
    assert "belongs to no sign-in" in words_of(owner.finishes(back, 422))
    assert provider.requests == []


@pytest.mark.parametrize(
    ("status", "document", "words"),
    [
        (400, b'{"error": "invalid_grant"}', "Begin again"),
        (401, b'{"error": "invalid_client", "error_description": "<b>"}', "invalid_client: <b>"),
        (500, b"<h1>broken</h1>", "status 500"),
        (200, b"[]", "no refresh token"),
        (200, b'{"refresh_token": 5}', "no refresh token"),
    ],
)
def test_a_code_that_buys_nothing_ends_in_words(
    system: System,
    provider: IdentityProvider,
    imap: TokenImap,
    status: int,
    document: bytes,
    words: str,
) -> None:
    owner = Owner(system)
    provider.answers_code = (status, document)
    answer = owner.finishes(agrees(provider, owner.begins(imap)), 422)
    assert words in re.sub(r"\s+", " ", html.unescape(answer.text))
    assert "<b>." not in answer.text
    nothing_came_of_it(system)


def test_a_token_server_that_is_away_ends_in_words(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    owner = Owner(system)
    back = agrees(provider, owner.begins(imap))
    provider.__exit__()
    assert "Begin again in a moment" in words_of(owner.finishes(back, 422))
    nothing_came_of_it(system)


def test_without_a_refresh_token_nothing_is_saved(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    provider.gives_refresh_token = False
    owner = Owner(system)
    answer = owner.finishes(agrees(provider, owner.begins(imap)), 422)
    assert "no refresh token" in words_of(answer)
    nothing_came_of_it(system)


def test_somebody_else_who_signs_in_is_refused_before_a_login(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    owner = Owner(system)
    other = "elsewhere@example.org"
    answer = owner.finishes(agrees(provider, owner.begins(imap), user=other), 422)
    assert f"{other} signed in, but {ME} was asked for" in words_of(answer)
    assert imap.tokens == []
    nothing_came_of_it(system)


def test_where_the_provider_does_not_say_who_signed_in_the_mailbox_decides(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    provider.tells_address = False
    owner = Owner(system)
    back = agrees(provider, owner.begins(imap), user="elsewhere@example.org")
    answer = owner.finishes(back, 422)
    assert "The account was not saved" in words_of(answer)
    assert len(imap.tokens) == 1
    nothing_came_of_it(system)
    # The one that is meant gets in
    assert owner.finishes(agrees(provider, owner.begins(imap))).status_code == 303


def test_an_account_that_is_there_is_not_added_again(
    system: System, provider: IdentityProvider, imap: TokenImap
) -> None:
    owner, slow = Owner(system), Owner(system)
    late = agrees(provider, slow.begins(imap))
    owner.finishes(agrees(provider, owner.begins(imap)))
    # One who went to the provider before it was there
    answer = slow.finishes(late, 422)
    assert "there is an account with this address" in words_of(answer)
    # And one who would go now is not sent
    place = {"host": "127.0.0.1", "port": imap.port, "security": "plain"}
    answer = owner.post("/accounts/new", 422, address=ME, connect="generic", **place)
    assert "there is an account with this address" in words_of(answer)
    assert len(system.get(URL)["items"]) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"address": "nobody"}, "address"),
        ({"port": "22"}, "port"),
        ({"host": "10.0.0.1"}, "private"),
        ({"poll_interval": "1"}, "poll_interval"),
        ({"folders": ";".join(f"folder {number}" for number in range(400))}, "too many folders"),
    ],
)
def test_what_is_wrong_is_said_before_the_owner_is_sent_away(
    system: System, imap: TokenImap, fields: dict[str, str], words: str
) -> None:
    place = {"host": "127.0.0.1", "port": imap.port, "security": "plain"}
    given = {"address": ME, "connect": "generic", **place, **fields}
    answer = Owner(system).post("/accounts/new", 422, **given)
    assert words in words_of(answer)
    assert "set-cookie" not in answer.headers


def test_a_console_at_another_address_sends_nobody_away(system: System, imap: TokenImap) -> None:
    """The cookie would be of another host than the one that the provider sends back to."""
    answer = Browser(system).post("/accounts/new", 422, address=ME, connect="google")
    assert f"Open the console at https://{urlsplit(ORIGIN).netloc}" in words_of(answer)


# --- what is seen of it


def test_no_code_token_or_secret_is_seen_anywhere(
    system: System,
    provider: IdentityProvider,
    imap: TokenImap,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """S65, S38: in pages, log, audit events, database, queue."""
    owner = Owner(system)
    begun = owner.post(
        "/accounts/new",
        200,
        address=ME,
        connect="generic",
        host="127.0.0.1",
        port=imap.port,
        security="plain",
    )
    owner.keep(begun)
    back = agrees(provider, target_of(begun))
    code = parse_qs(urlsplit(back).query)["code"][0]
    document = f'{{"error": "invalid_grant", "error_description": "{code} {CLIENT_SECRET}"}}'
    provider.answers_code = (400, document.encode())
    refused = owner.finishes(back, 422)
    provider.answers_code = None
    done = owner.finishes(agrees(provider, owner.begins(imap)))
    pages = [begun.text, refused.text, done.text, str(done.headers)]
    pages += [owner.get(path) for path in ("/audit", "/settings", "/accounts/new")]
    pages += [owner.get(done.headers["location"].partition("?")[0])]
    everywhere = "\n".join(
        (*pages, *capfd.readouterr(), everything_in_redis(system), everything_in_the_database())
    )
    assert len(provider.secrets) >= 6
    for secret in (*provider.secrets, *provider.users, CLIENT_SECRET):
        assert secret not in everywhere
    assert "account.create" in everywhere


def test_the_page_that_takes_the_answer_does_nothing_and_leads_nowhere_else(
    system: System,
) -> None:
    """S65: it is open, and what is in its address is anybody's."""
    stranger = falcon.testing.TestClient(system.api.app, headers=HTML)
    hostile = '"><script>alert(1)</script>'
    given = {"code": hostile, "state": hostile, "error": hostile, "next": "https://evil.example"}
    answer = stranger.simulate_get("/accounts/connect/google", params=given)
    assert answer.status_code == 200
    assert "<script>alert" not in answer.text
    assert "evil.example" not in answer.text
    assert 'action="/accounts/connect/google/finish"' in answer.text
    assert "set-cookie" not in answer.headers
    policy = answer.headers["content-security-policy"]
    assert "form-action 'self'" in policy
    assert "script-src 'self'" in policy
    assert answer.headers["referrer-policy"] == "strict-origin"
    assert answer.headers["cache-control"] == "no-store"
    assert stranger.simulate_post("/accounts/connect/google").status_code in (403, 405)
    assert stranger.simulate_get("/accounts/connect/nobody").status_code == 303


def test_the_cookie_of_a_sign_in_is_shut_in(system: System, imap: TokenImap) -> None:
    place = {"host": "127.0.0.1", "port": imap.port, "security": "plain"}
    answer = Owner(system).post("/accounts/new", 200, address=ME, connect="generic", **place)
    cookie = answer.headers["set-cookie"]
    for word in ("HttpOnly", "Secure", "SameSite=Strict", "Path=/accounts/connect/", "Max-Age=600"):
        assert word in cookie
    assert ME not in cookie
    assert "form-action 'self';" in answer.headers["content-security-policy"]
    assert answer.headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize(
    "value",
    [
        "http://mail.example.org",
        "https://mail.example.org/console",
        "https://user@mail.example.org",
        "https://mail.example.org?x",
        "https://",
        "https://mail.example.org:99999",
        "mail.example.org",
        "https://[::1",
    ],
)
def test_a_public_address_that_codes_cannot_come_to_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="MAILPOLL_PUBLIC_URL"):
        from_environment({"MAILPOLL_PUBLIC_URL": value})


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("https://Mail.example.org/", "https://mail.example.org"),
        ("http://127.0.0.1:8025", "http://127.0.0.1:8025"),
        ("http://[::1]:8025", "http://[::1]:8025"),
    ],
)
def test_a_public_address_is_an_origin(value: str, kept: str) -> None:
    assert from_environment({"MAILPOLL_PUBLIC_URL": value}).public_url == kept
