"""The console in Chromium: without errors, usable by everybody, and with mail that is shut in."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Response, sync_playwright

from tests.integration.conftest import SETS, run_system
from tests.integration.console_sample import REMOTE
from tests.integration.system import TOKEN, System, message
from tests.integration.test_console import ATTACKS, HOSTILE
from tests.integration.test_console_connect import ME
from tests.screenshots.__main__ import CHROMIUM, logged_in
from tests.security.test_api_keys import web_process
from tests.servers.dovecot import Dovecot
from tests.servers.identity_provider import IdentityProvider
from tests.servers.personas import TokenImap
from tests.servers.process import free_ports

SIZES = [(1280, 800), (375, 812)]


@dataclass
class Site:
    """A web process with an account, and its mail that attacks."""

    address: str
    mailbox: str
    account: str
    message: int


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def site(embedded: System, address: str, tmp_path: Path) -> Iterator[Site]:
    html = {"MIME_Version": "1.0", "Content_Type": "text/html; charset=utf-8"}
    body = f"<p>Dear team</p><img src='{REMOTE}' alt='x'>{''.join(ATTACKS)}"
    embedded.dovecot.deliver(address, message(HOSTILE, body, **html))
    account = embedded.add_account(address)
    embedded.poll_and_process(account)
    (attack,) = [one["id"] for one in embedded.messages(account)]
    with web_process(environment(), tmp_path) as url:
        yield Site(url, address, account, attack)


def environment() -> dict[str, str]:
    """What the system of this test is configured with."""
    names = ("MAILPOLL_", "REDIS_URL")
    return {n: v for n, v in os.environ.items() if n.startswith(names) and "TEST" not in n}


def watched(page: Page, address: str) -> list[str]:
    """What goes wrong with the pages of a site, or to another host, as it happens."""
    host, wrong = urlsplit(address).netloc, []

    def asked(url: str) -> None:
        if urlsplit(url).scheme in ("http", "https") and urlsplit(url).netloc != host:
            wrong.append(f"asked {url}")

    def answered(answer: Response) -> None:
        if answer.status >= 400 and answer.request.resource_type != "document":
            wrong.append(f"{answer.status} for {answer.url}")

    # A page that is refused is said so in the console too; that is what it is for.
    expected = re.compile(r"status of 4\d\d")
    page.on("request", lambda request: asked(request.url))
    page.on("response", answered)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
    page.on(
        "console",
        lambda line: (
            wrong.append(line.text)
            if line.type in ("error", "warning") and not expected.search(line.text)
            else None
        ),
    )
    return wrong


def test_mail_runs_nothing_and_asks_nobody(site: Site, chromium: Browser) -> None:
    page = logged_in(chromium, site.address, TOKEN, *SIZES[0])
    wrong = watched(page, site.address)
    for path in (f"/messages/{site.message}", f"/messages/{site.message}/html"):
        page.goto(site.address + path)
        page.wait_for_load_state("networkidle")
    page.goto(f"{site.address}/messages/{site.message}")
    frame = page.frames[1]
    assert "Dear team" in frame.content()
    assert frame.evaluate("typeof document.forms.length") == "number"
    assert frame.evaluate("self.origin") == "null"
    assert wrong == []
    page.context.close()


def test_pictures_from_elsewhere_are_asked_for_only_when_wanted(
    site: Site, chromium: Browser
) -> None:
    page = logged_in(chromium, site.address, TOKEN, *SIZES[0])
    asked: list[str] = []
    page.route("**/seen.gif", lambda route: (asked.append(route.request.url), route.abort()))
    page.goto(f"{site.address}/messages/{site.message}")
    page.wait_for_load_state("networkidle")
    assert asked == []
    page.click("text=Load it")
    page.wait_for_load_state("networkidle")
    assert asked == [REMOTE]
    page.context.close()


#: What has the focus, and whether that is seen: its outline is drawn, on the screen, and cut by
#: nothing that it lies in.
FOCUS = """async () => {
    await new Promise(requestAnimationFrame);  // what gets the focus is scrolled to by then
    const one = document.activeElement, style = getComputedStyle(one);
    const width = parseFloat(style.outlineWidth), out = width + parseFloat(style.outlineOffset);
    const box = one.getBoundingClientRect();
    const inside = (edge) => box.left - out > edge.left - 1 && box.right + out < edge.right + 1
        && box.top - out > edge.top - 1 && box.bottom + out < edge.bottom + 1;
    const screen = { left: 0, top: 0, right: innerWidth, bottom: innerHeight };
    const frames = [];
    for (let at = one.parentElement; at && at !== document.body; at = at.parentElement)
        if (getComputedStyle(at).overflow !== "visible") frames.push(at.getBoundingClientRect());
    return {
        words: (one.textContent || one.value || one.tagName).trim(),
        drawn: style.outlineStyle !== "none" && width >= 2,
        whole: inside(screen) && frames.every(inside),
    };
}"""


def tab_to(page: Page, words: str) -> None:
    """Go on with Tab to what says this; on the way it is always seen where one is."""
    passed: list[str] = []
    while words not in passed:
        assert len(passed) < 100, f"{words!r} is not among {passed}"
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUS)
        assert found["drawn"] and found["whole"], found
        passed.append(found["words"])


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_mail_is_reached_and_read_with_keys_alone(
    site: Site, chromium: Browser, width: int, height: int
) -> None:
    context = chromium.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.goto(site.address)
    # The cursor is where the token goes
    page.keyboard.type(TOKEN)
    tab_to(page, "Log in")
    for words, where in (
        ("", "/"),
        ("Accounts", "/accounts"),
        (site.mailbox, f"/accounts/{site.account}"),
        ("1", f"/messages?account={site.account}"),
        (HOSTILE, f"/messages/{site.message}"),
        ("Text", f"/messages/{site.message}?view=text"),
    ):
        if words:
            tab_to(page, words)
        page.keyboard.press("Enter")
        page.wait_for_url(site.address + where)
    tab_to(page, page.inner_text("pre").strip())
    assert "Dear team" in page.inner_text("pre")
    context.close()


def test_keys_lead_past_the_menu_and_to_the_search(site: Site, chromium: Browser) -> None:
    page = logged_in(chromium, site.address, TOKEN, *SIZES[0])
    page.goto(f"{site.address}/accounts")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "address"
    page.keyboard.type("nobody")
    page.keyboard.press("Enter")
    page.wait_for_url("**/accounts?*address=nobody*")
    assert "No account is like that" in page.inner_text("main")
    page.context.close()


def test_it_works_without_script(site: Site, chromium: Browser) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site.address}/accounts/{site.account}")
    page.fill("#token", TOKEN)
    page.click("button")
    page.wait_for_url(f"**/accounts/{site.account}")
    page.click("text=Pause")
    page.wait_for_url("**done=paused*")
    assert "1 account is paused" in page.inner_text("main")
    page.click("text=Resume")
    page.click("text=Log out")
    page.wait_for_url("**/login")
    page.goto(f"{site.address}/accounts")
    assert page.url.startswith(f"{site.address}/login")
    context.close()


# --- connecting with a provider, which is another site


@dataclass
class Connecting:
    """A console and a provider, which are two sites (127.0.0.1 and localhost)."""

    address: str
    provider: IdentityProvider
    imap: TokenImap

    def page(self, chromium: Browser, width: int, height: int, *, script: bool) -> Page:
        """Where an account is added, with the address and the server filled in."""
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            ignore_https_errors=True,
            java_script_enabled=script,
        )
        page = context.new_page()
        page.goto(f"{self.address}/accounts/new")
        page.fill("#token", TOKEN)
        page.click("button")
        page.fill("#address", ME)
        page.fill("#host", "127.0.0.1")
        page.fill("#port", str(self.imap.port))
        page.select_option("#security", "plain")
        return page


@pytest.fixture
def connecting(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot
) -> Iterator[Connecting]:
    (port,) = free_ports(1)
    public = f"http://127.0.0.1:{port}"
    redirects = [f"{public}/accounts/connect/generic"]
    with IdentityProvider(dovecot.ca_file.parent, redirects=redirects) as provider:
        tokens = provider.tokens
        with TokenImap(accepts=lambda token: tokens.get(token) == ME) as imap:
            variables = SETS["embedded"](request, tmp_path) | provider.variables
            more = {
                "MAILPOLL_PUBLIC_URL": public,
                "MAILPOLL_IMAP_PORTS": str(imap.port),
                "MAILPOLL_IMAP_ALLOW_PLAIN": "yes",
            }
            for _ in run_system(variables, tmp_path, dovecot, **more):
                with web_process({**environment(), "PORT": str(port)}, tmp_path) as url:
                    yield Connecting(url, provider, imap)


def test_a_mailbox_is_connected_by_way_of_another_site(
    connecting: Connecting, chromium: Browser
) -> None:
    page = connecting.page(chromium, *SIZES[0], script=True)
    sent, wrong = [], []
    page.on("request", lambda request: sent.append((request.url, request.all_headers())))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    ours = connecting.address
    page.on(
        "console",
        lambda line: (
            wrong.append(line.text)
            if line.type == "error" and line.location["url"].startswith(ours)
            else None
        ),
    )
    page.click("text=Connect with localhost")
    # The way leads on by itself, and so does the way back
    page.click("text=Agree")
    page.wait_for_url("**/accounts/*?done=added")
    assert "The account is added" in page.inner_text("main")
    # Neither side was told where the browser came from, nor the code but once
    (code,) = [url.partition("code=")[2] for url, _ in sent if "code=" in url]
    assert code.startswith("canary-code")
    for _, headers in sent:
        assert "code=" not in headers.get("referer", "")
    for headers in connecting.provider.headers:
        assert ours not in headers.get("Referer", "")
        assert "mailpoll_" not in headers.get("Cookie", "")
    # And who goes back finds no code, nor does it twice
    page.go_back()
    assert code not in page.url
    grants = [form.get("grant_type") for form in connecting.provider.requests]
    assert grants.count("authorization_code") == 1
    assert wrong == []
    page.context.close()


def test_connecting_works_without_script(connecting: Connecting, chromium: Browser) -> None:
    page = connecting.page(chromium, *SIZES[1], script=False)
    page.click("text=Connect with localhost")
    page.click("text=Refuse")
    page.click("text=Go on")
    page.wait_for_url("**/finish")
    assert "did not agree" in page.inner_text("main")
    page.context.close()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_pages_of_connecting_are_usable(
    connecting: Connecting, chromium: Browser, width: int, height: int
) -> None:
    def looked_at() -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = Axe().run(page).response["violations"]
            assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []

    page = connecting.page(chromium, width, height, script=True)
    looked_at()
    page.route("**/authorize?*", lambda route: route.fulfill(status=204))
    page.click("text=Connect with localhost")
    page.wait_for_selector("text=Go on to localhost")
    looked_at()
    page.route("**/finish", lambda route: route.fulfill(status=204))
    back = f"{connecting.address}/accounts/connect/generic"
    page.goto(f"{back}?code=x&state=y", wait_until="commit")
    page.wait_for_selector("text=Almost done")
    page.wait_for_url(back, wait_until="commit")
    looked_at()
    page.unroute("**/finish")
    page.click("text=Go on")
    page.wait_for_selector("text=Not connected")
    looked_at()
    page.context.close()
