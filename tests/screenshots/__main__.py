"""Take the pictures in ``docs/images``: the demo with a history and a few troubles, in Chromium."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.screenshots.arrange import MAILBOX, SUBJECT, Demo, arrange, reluctant
from tests.screenshots.palette import reduced
from tests.servers.receiver import Receiver

IMAGES = Path(__file__).parents[2] / "docs" / "images"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
WIDE, PHONE = 1280, 375
#: A picture is as high as its page, within these.
LOWEST, HIGHEST = 600, 900
#: Of a list that goes on for long.
LIST = 680


@dataclass(frozen=True, slots=True)
class Picture:
    """A page as it is shown.

    Parameters:
      path: with the names of what ``ids`` has found.
      do: what is done on the page first.
      height: where the page's own depends on that of the window.
    """

    name: str
    path: str
    width: int = WIDE
    scheme: Any = "light"
    do: Callable[[Page], Any] = lambda page: None
    height: int | None = None


def find_a_server(page: Page) -> None:
    page.fill("#address", "me@gmail.com")
    page.get_by_role("button", name="Find server").click()
    page.wait_for_selector(".note")


def check_a_file(page: Page) -> None:
    rows = ["sales@example.org,secret,127.0.0.1", f"{MAILBOX},secret,127.0.0.1"]
    rows += ["press@example.org,secret,10.0.0.7", "office,secret,127.0.0.1"]
    page.fill("#text", "\n".join(["address,password,host,port", *(f"{one},993" for one in rows)]))
    page.get_by_role("button", name="Check the file").click()
    page.wait_for_selector("text=Nothing is added yet")


def tick_and_delete(page: Page) -> None:
    for name in ("quinn@example.org", "rosa@example.org"):
        page.get_by_label(name).check()
    page.get_by_role("button", name="Delete…").click()
    page.wait_for_selector("text=Delete with all mail")


def delete(page: Page) -> None:
    page.get_by_role("button", name="Delete with all mail").click()
    page.locator("tbody a").first.click()
    page.wait_for_selector("#state:has-text('Done')", timeout=60_000)


def without_strange_letters(page: Page) -> None:
    """Leave out what not every machine has letters for."""
    page.evaluate(
        """() => document.querySelectorAll("tbody tr").forEach((row) => {
            if (/[\\u2e80-\\uffef]/.test(row.textContent)) row.remove();
        })"""
    )


def without_this_machine(page: Page) -> None:
    """Leave out what is wrong with the Python that takes the pictures."""
    page.evaluate("document.querySelectorAll('.note.warn').forEach((one) => one.remove())")


def log_out(page: Page) -> None:
    page.get_by_role("button", name="Log out").click()


PICTURES = (
    Picture("overview", "/"),
    Picture("overview-dark", "/", scheme="dark"),
    Picture("phone-overview", "/", PHONE),
    Picture("accounts", "/accounts"),
    Picture("phone-accounts", "/accounts", PHONE, "dark"),
    Picture("account-new", "/accounts/new", do=find_a_server),
    Picture("accounts-import", "/accounts/import", do=check_a_file),
    Picture("account", "/accounts/{account}"),
    Picture("account-edit", "/accounts/{account}/edit"),
    Picture("account-refused", "/accounts/{refused}"),
    Picture("accounts-delete", "/accounts", do=tick_and_delete),
    Picture(
        "attachments", "/accounts/{mailbox}/attachments", do=without_strange_letters, height=LIST
    ),
    Picture("messages", "/messages", do=without_strange_letters, height=LIST),
    Picture("message", "/messages/{message}", height=HIGHEST),
    Picture("message-headers", "/messages/{message}?view=headers", scheme="dark"),
    Picture("phone-message", "/messages/{message}", PHONE, height=1_000),
    Picture("conversation", "/threads/{thread}"),
    Picture("search", "/search?q=garden+office"),
    Picture("failed", "/failed"),
    Picture("tasks", "/tasks"),
    Picture("webhooks", "/webhooks"),
    Picture("webhook", "/webhooks/{hook}"),
    Picture("keys", "/keys"),
    Picture("audit", "/audit", height=LIST),
    Picture("settings", "/settings", do=without_this_machine, height=LIST),
    Picture("holds", "/holds"),
    Picture("export", "/exports/{export}"),
    Picture("problem", "/messages/999999"),
    Picture("login", "/", do=log_out),
    Picture("deletion", "/accounts/{last}/delete", do=delete, height=LIST),
)


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="mailpoll-screenshots-") as name,
        Receiver(reluctant) as receiver,
        demo(Path(name)) as running,
    ):
        arrange(running, receiver.url)
        take(running)


@contextmanager
def demo(directory: Path) -> Iterator[Demo]:
    """The demo with all its mail."""
    command = [sys.executable, "-m", "mailpoll.demo"]
    root = str(Path(__file__).parents[2])
    environ = {**os.environ, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1"}
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=directory, env=environ, stdout=output)
    try:
        end = time.monotonic() + 600
        while "API docs" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        (line,) = (one for one in log.read_text().splitlines() if one.startswith("API docs"))
        data = directory / "demo-data"
        token = (data / "api.token").read_text().split()[0]
        yield Demo(line.split()[-1].removesuffix("/docs"), token, data)
    finally:
        process.terminate()
        process.wait(60)


def take(running: Demo) -> None:
    places = ids(running)
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        empty = browser.new_page()
        for one in PICTURES:
            size = (one.width, one.height or LOWEST)
            page = logged_in(browser, running.address, running.token, *size, one.scheme)
            page.goto(running.address + one.path.format(**places))
            one.do(page)
            whole = page.evaluate("document.documentElement.scrollHeight")
            height = one.height or min(whole, HIGHEST)
            page.set_viewport_size({"width": one.width, "height": height})
            (IMAGES / f"console-{one.name}.png").write_bytes(reduced(empty, page.screenshot()))
            page.context.close()
        browser.close()


def ids(running: Demo) -> dict[str, Any]:
    """What addresses of pages are made with."""
    accounts = running.ask("GET", "email-accounts?limit=200")["items"]
    hits = running.ask("GET", f"search?q=subject:%22{SUBJECT.replace(' ', '+')}%22&sort=date")
    message = running.ask("GET", f"messages/{hits['items'][0]['id']}")
    return {
        "mailbox": accounts[0]["id"],
        "account": accounts[1]["id"],
        "refused": accounts[6]["id"],
        "last": accounts[-1]["id"],
        "message": message["id"],
        "thread": message["thread_id"],
        "hook": running.ask("GET", "webhooks")["items"][0]["id"],
        "export": running.ask("GET", "exports")["items"][0]["id"],
    }


def logged_in(
    browser: Browser, address: str, token: str, width: int, height: int, scheme: Any = "light"
) -> Page:
    """A page of a browser that has logged in by the form."""
    size = {"width": width, "height": height}
    context = browser.new_context(viewport=size, color_scheme=scheme, locale="en-GB")
    page = context.new_page()
    page.goto(f"{address}/login")
    page.fill("#token", token)
    page.click("button")
    page.wait_for_url(f"{address}/")
    return page


if __name__ == "__main__":
    assert shutil.which(CHROMIUM), f"{CHROMIUM} is missing: apt install chromium"
    main()
