"""The console in Chromium: without errors, usable by everybody, and with mail that is shut in."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from mailpoll.models import MessageStatus
from tests.integration.rows import change_accounts, change_messages
from tests.integration.system import TOKEN, System, message
from tests.integration.test_console import ADMIN_PAGES, ATTACKS, HOSTILE, PAGES
from tests.screenshots.__main__ import CHROMIUM, logged_in
from tests.security.test_api_keys import web_process

SIZES = [(1280, 800), (375, 812)]
#: What would be asked of another host, if anything were.
REMOTE = "https://evil.example/seen.gif"


@dataclass
class Site:
    """A web process with an account, its mail and its troubles."""

    address: str
    pages: list[str]
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
    embedded.dovecot.deliver(address, message("plain words " * 30, HOSTILE * 20))
    embedded.dovecot.deliver(address, message(HOSTILE, body, **html))
    account = embedded.add_account(address)
    embedded.poll_and_process(account)
    (attack,) = [
        one["id"] for one in embedded.messages(account) if one["subject"].startswith("</title>")
    ]
    (plain,) = [one["id"] for one in embedded.messages(account) if one["id"] != attack]
    change_messages(status=MessageStatus.FAILED, error="it is broken, " + "and more " * 30)
    change_accounts(last_error="the server says: " + "no " * 60, last_error_kind="x")
    hook = embedded.post("/admin/webhooks", 201, url="https://example.org/hook/" + "x" * 80)
    embedded.post("/admin/api-keys", 201, name="a key with a long name " * 2, scope="read")
    pages = [
        *PAGES,
        *ADMIN_PAGES,
        *(f"/accounts/{account}{part}" for part in ("", "/edit", "/delete")),
        *(f"/messages/{plain}?view={view}" for view in ("text", "headers", "source")),
        f"/messages/{attack}",
        f"/messages?account={account}",
        f"/webhooks/{hook['id']}",
        "/accounts/nowhere",
    ]
    names = ("MAILPOLL_", "REDIS_URL")
    variables = {n: v for n, v in os.environ.items() if n.startswith(names) and "TEST" not in n}
    with web_process(variables, tmp_path) as url:
        yield Site(url, pages, account, attack)
    change_messages(status=MessageStatus.PROCESSED, error=None)


def watched(page: Page, site: Site) -> list[str]:
    """What goes wrong with a page, or to another host, as it happens."""
    host, wrong = urlsplit(site.address).netloc, []

    def asked(url: str) -> None:
        if urlsplit(url).scheme in ("http", "https") and urlsplit(url).netloc != host:
            wrong.append(f"asked {url}")

    page.on("request", lambda request: asked(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
    # A page that is not there is said so in the console too; that is what it is for.
    expected = re.compile(r"status of 404")
    page.on(
        "console",
        lambda line: (
            wrong.append(line.text)
            if line.type in ("error", "warning") and not expected.search(line.text)
            else None
        ),
    )
    return wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_page_is_sound_and_usable(
    site: Site, chromium: Browser, width: int, height: int, scheme: str
) -> None:
    page = logged_in(chromium, site.address, TOKEN, width, height, scheme)
    wrong = watched(page, site)
    for path in site.pages:
        page.goto(site.address + path)
        # Nothing sticks out to the side
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} wide"
        found = Axe().run(page).response["violations"]
        grave = [
            (one["id"], [node["html"][:200] for node in one["nodes"]][:3])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert grave == [], path
    assert wrong == []
    page.context.close()


def test_mail_runs_nothing_and_asks_nobody(site: Site, chromium: Browser) -> None:
    page = logged_in(chromium, site.address, TOKEN, *SIZES[0])
    wrong = watched(page, site)
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
    page.click("text=Load them")
    page.wait_for_load_state("networkidle")
    assert asked == [REMOTE]
    page.context.close()


def test_it_can_be_used_with_keys_alone(site: Site, chromium: Browser) -> None:
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
