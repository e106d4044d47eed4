"""What people do with the console in Chromium, and pages that refresh themselves."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest
from playwright.sync_api import Browser, Page, expect

from mailpoll import database
from mailpoll.models import MessageStatus, WebhookEndpoint
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import change_messages
from tests.integration.system import PASSWORD, TOKEN, System, message
from tests.integration.test_console_browser import SIZES, chromium, environment, watched
from tests.screenshots.__main__ import logged_in
from tests.security.test_api_keys import web_process
from tests.servers.dns_server import DnsServer
from tests.servers.dovecot import Dovecot
from tests.servers.receiver import Receiver

__all__ = ["chromium"]


@dataclass
class Console:
    """A mailpoll that works in the background, and where its console answers."""

    system: System
    url: str

    def page(self, chromium: Browser, size: tuple[int, int] = SIZES[0]) -> tuple[Page, list[str]]:
        """Somebody who has logged in, and what goes wrong meanwhile."""
        page = logged_in(chromium, self.url, TOKEN, *size)
        return page, watched(page, self.url)


@pytest.fixture
def console(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[Console]:
    """The embedded set; example.org has an SRV record, and receivers may be on this machine."""
    records = {
        ("localhost.", "A"): ["127.0.0.1"],
        ("_imaps._tcp.example.org.", "SRV"): [f"0 1 {dovecot.imaps_port} localhost."],
    }
    with DnsServer(records) as dns:
        variables = SETS["embedded"](request, tmp_path)
        more = {
            "MAILPOLL_DNS_SERVER": f"127.0.0.1:{dns.port}",
            "MAILPOLL_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        for system in run_system(variables, tmp_path, dovecot, **more):
            with web_process(environment(), tmp_path) as url:
                yield Console(system, url)
            with database.transaction():
                WebhookEndpoint.delete().execute()


# --- flows


def test_people_get_done_what_they_came_for(
    console: Console, chromium: Browser, address: str
) -> None:
    console.system.dovecot.deliver(address, message("Quarterly figures", "All went well.\r\n"))
    page, wrong = console.page(chromium)
    with console.system.workers():
        add_an_account(page, console, address)
        find_a_message(page, console)
        export_the_mail(page, console, address)
        try_a_message_again(page, console)
        add_accounts_from_a_file(page, console)
        change_many_accounts(page, console)
        hold_an_account(page, console, address)
        tell_a_webhook(page, console)
        make_a_key(page, console)
        delete_an_account(page, console, address)
    assert wrong == []
    page.context.close()


def add_an_account(page: Page, console: Console, address: str) -> None:
    page.goto(f"{console.url}/accounts")
    page.click("text=Add account")
    page.fill("#address", address)
    page.get_by_role("button", name="Find server").click()
    expect(page.locator(".note")).to_contain_text("by SRV _imaps._tcp.example.org")
    assert page.input_value("#host") == "localhost"
    page.fill("#password", "wrong")
    page.click("text=Test login")
    expect(page.get_by_role("alert")).to_be_visible()
    page.fill("#password", PASSWORD)
    page.click("text=Test login")
    expect(page.locator(".note")).to_contain_text("The login works.")
    page.fill("#password", PASSWORD)
    page.get_by_role("button", name="Add account").click()
    page.wait_for_url("**/accounts/*?done=added")
    # It shows by itself how the mail arrives
    expect(page.locator("#told")).to_have_text("The import is done.", timeout=30_000)
    expect(page.locator("#proofs")).to_contain_text("INBOX")


def find_a_message(page: Page, console: Console) -> None:
    page.goto(f"{console.url}/search")
    page.fill("#q", "quarterly")
    page.keyboard.press("Enter")
    page.click("td a:has-text('Quarterly')")
    expect(page.locator("pre")).to_contain_text("All went well.")
    page.click("text=Conversation")
    expect(page.locator("h1")).to_have_text("Conversation")
    page.click("text=Quarterly figures")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert b"All went well." in Path(download.value.path()).read_bytes()


def export_the_mail(page: Page, console: Console, address: str) -> None:
    page.goto(f"{console.url}/accounts")
    page.get_by_role("link", name=address).click()
    page.get_by_role("link", name="Export").click()
    page.select_option("#format", "zip")
    page.fill("#since", "2000-01-01")
    page.click("text=Begin export")
    expect(page.locator("#state")).to_contain_text("Done.", timeout=30_000)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    with ZipFile(download.value.path()) as archive:
        assert any(b"All went well." in archive.read(name) for name in archive.namelist())
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("status")).to_have_text("The export is removed.")
    expect(page.locator("main")).to_contain_text("None yet.")


def try_a_message_again(page: Page, console: Console) -> None:
    change_messages(status=MessageStatus.FAILED, error="it is broken")
    page.goto(console.url)
    page.click("text=Reasons")
    page.click("text=The latest")
    expect(page.locator(".note.bad")).to_contain_text("it is broken")
    page.click("text=Process again")
    expect(page.locator(".note").first).to_contain_text("1 message is being processed again.")
    page.goto(f"{console.url}/failed")
    expect(page.locator("main")).to_contain_text("None. Every stored message")


def add_accounts_from_a_file(page: Page, console: Console) -> None:
    port = console.system.dovecot.imaps_port
    lines = ["address,password,host,port,sync_flags,retention_days"]
    lines += [f"row{n}@example.org,{PASSWORD},localhost,{port},yes,30" for n in range(3)]
    lines += [
        "nobody,secret,localhost,993,yes,30",
        "row9@example.org,secret,localhost,993,maybe,30",
    ]
    page.goto(f"{console.url}/accounts")
    page.click("text=Import CSV")
    data = "\n".join(lines).encode()
    page.set_input_files("#file", files=[{"name": "a.csv", "mimeType": "text/csv", "buffer": data}])
    page.click("text=Check the file")
    expect(page.locator(".note")).to_contain_text("3 of 5 lines are fine")
    expect(page.locator("tbody tr").nth(0)).to_contain_text("address")
    expect(page.locator("tbody tr").nth(1)).to_contain_text("sync_flags")
    page.click("text=Add the 3 that are fine")
    expect(page.locator(".note")).to_contain_text("3 accounts were added, 2 refused")
    page.click("text=row0@example.org")
    expect(page.locator("main")).to_contain_text("30 days after its arrival")


def change_many_accounts(page: Page, console: Console) -> None:
    def tick(*names: str) -> None:
        page.goto(f"{console.url}/accounts?address=row")
        for name in names:
            page.get_by_label(name).check()

    tick("row0@example.org", "row1@example.org")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_have_text("2 accounts are paused.")
    tick("row0@example.org")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("status")).to_have_text("1 account is polled again.")
    tick("row0@example.org", "row2@example.org")
    page.get_by_role("button", name="Poll now").click()
    expect(page.get_by_role("status")).to_have_text("2 polls are on their way.")
    # The box above them ticks all
    tick()
    page.get_by_label("All", exact=True).check()
    page.get_by_role("button", name="Delete…").click()
    expect(page.locator("h1")).to_have_text("Delete 3 accounts?")
    page.click("text=Delete with all mail")
    expect(page.get_by_role("status")).to_have_text("3 accounts are being deleted.")


def hold_an_account(page: Page, console: Console, address: str) -> None:
    page.goto(f"{console.url}/accounts")
    page.get_by_role("link", name=address).click()
    page.click("text=Hold…")
    page.fill("#reason", "the case of May")
    page.get_by_role("button", name="Hold", exact=True).click()
    expect(page.locator(".note")).to_contain_text("It is held")
    page.click("text=All holds")
    expect(page.locator("tbody")).to_contain_text("the case of May")
    page.click("text=The whole account")
    page.get_by_role("button", name="Lift").click()
    expect(page.locator(".note")).to_have_text("The hold is lifted.")


def tell_a_webhook(page: Page, console: Console) -> None:
    with Receiver() as receiver:
        page.goto(f"{console.url}/webhooks")
        page.click("text=Add webhook")
        page.fill("#url", receiver.url)
        page.get_by_role("button", name="Add webhook").click()
        assert page.input_value("#secret").startswith("whsec_")
        page.click("text=Done")
        page.click("text=Send a test")
        expect(page.locator(".note.good")).to_contain_text("Delivered")
        assert len(receiver.received) == 1
        page.fill("#since", "2026-01-01")
        page.click("text=Replay")
        expect(page.get_by_role("status")).to_have_text("It is sent again from there on.")
        told = page.locator("tbody tr", has_text="account.")
        for _ in range(100):
            if told.count():
                break
            page.wait_for_timeout(200)
            page.reload()
        told.first.get_by_role("button", name="Send again").click()
        expect(page.locator(".note.good")).to_contain_text("Delivered")
        page.click("text=Remove…")
        page.click("text=Remove it with its log")
        expect(page.get_by_role("status")).to_have_text("The webhook is removed.")


def make_a_key(page: Page, console: Console) -> None:
    page.goto(f"{console.url}/keys")
    page.fill("#name", "crm")
    page.click("text=Make key")
    token = page.input_value("#secret")
    headers = {"Authorization": f"Bearer {token}"}
    asked = f"{console.url}/admin/stats"
    assert page.request.get(asked, headers=headers).status == 200
    page.click("text=Done")
    assert token not in page.content()
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("status")).to_contain_text("The key is revoked.")
    expect(page.locator("tbody")).to_contain_text("revoked")


def delete_an_account(page: Page, console: Console, address: str) -> None:
    page.goto(f"{console.url}/accounts")
    page.get_by_role("link", name=address).click()
    page.click("text=Delete account…")
    page.click("text=Delete with all mail")
    page.wait_for_url("**/deletions?*")
    page.locator("tbody a").first.click()
    # Until it is done the page looks again by itself
    expect(page.locator("#state")).to_contain_text("Done", timeout=60_000)
    expect(page.locator("#state")).to_contain_text("found nothing of it")


# --- pages that refresh themselves


def test_an_account_shows_new_mail_by_itself_while_somebody_looks(
    console: Console, chromium: Browser, address: str
) -> None:
    system = console.system
    account = system.add_account(address)
    page, wrong = console.page(chromium)
    page.clock.install()
    page.goto(f"{console.url}/accounts/{account}")
    page.evaluate("window.same = true")
    edit = page.get_by_role("link", name="Edit")
    edit.focus()
    expect(page.locator("#progress")).to_contain_text("how many there are is not known yet")
    system.dovecot.deliver(address, message("hello"))
    system.poll_and_process(account)
    page.clock.run_for(4_000)
    expect(page.locator("#told")).to_have_text("The import is done.")
    expect(page.locator("#progress")).to_have_text("")
    expect(page.locator("#log")).to_contain_text("message.new")
    # Nothing was loaded anew, and who was somewhere is there still
    assert page.evaluate("window.same")
    expect(edit).to_be_focused()

    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    look(page, hidden=True)
    page.clock.run_for(120_000)
    assert asked == []
    with page.expect_response("**/accounts/*"):
        look(page, hidden=False)
    assert wrong == []

    # Who is logged out, or has lost the server, is told, and that it is over
    page.route("**/accounts/*", lambda route: route.abort())
    page.clock.run_for(11_000)
    expect(page.locator("[data-stale]")).to_contain_text("not refreshed")
    page.unroute("**/accounts/*")
    page.clock.run_for(11_000)
    expect(page.locator("[data-stale]")).to_have_text("")
    page.context.close()


def look(page: Page, *, hidden: bool) -> None:
    """What a browser tells a page whose tab is left, or come back to."""
    page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_the_overview_tells_of_troubles_by_itself(
    console: Console, chromium: Browser, address: str
) -> None:
    system = console.system
    system.dovecot.deliver(address, message("hello"))
    system.poll_and_process(system.add_account(address))
    page, wrong = console.page(chromium, SIZES[1])
    page.clock.install()
    page.goto(console.url)
    expect(page.locator("#matters")).to_contain_text("Nothing.")
    change_messages(status=MessageStatus.FAILED, error="it is broken")
    page.clock.run_for(16_000)
    expect(page.locator("#matters")).to_contain_text("One message could not be processed.")
    change_messages(status=MessageStatus.PROCESSED, error=None)
    page.clock.run_for(16_000)
    expect(page.locator("#matters")).to_contain_text("Nothing.")
    assert wrong == []
    page.context.close()
