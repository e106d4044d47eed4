"""The first minutes of somebody who has just heard of mailpoll, until they read their own mail.

``python -m bench.newcomer [--tests]`` clones this repository's HEAD into an empty directory, with
an empty home and no environment, and does what README says: ``make demo``. In the console that is
there then, Chromium adds a mailbox of a Dovecot of its own and opens the message in it. ``--tests``
goes on with the other command, ``make test``, which takes many minutes.

What people take to read and to type is not in the times, which are printed as a table and as JSON.
Packages come from where pip is configured to look for them, and none of them from a cache.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from bench.results import Table
from tests.screenshots.__main__ import CHROMIUM
from tests.servers.dovecot import Dovecot

ROOT = Path(__file__).parents[1]
ADDRESS, SUBJECT = "me@example.org", "The first mail of mine"
MAIL = (
    f"From: A friend <friend@example.com>\r\nTo: {ADDRESS}\r\nSubject: {SUBJECT}\r\n"
    "Message-ID: <first@example.com>\r\n\r\nAll of it is here.\r\n"
).encode()
#: Seconds that a step may take before it is given up on.
PATIENCE = 900


@dataclass(slots=True)
class Watch:
    """The time of each step, in seconds, in their order."""

    steps: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.steps[name] = time.monotonic() - begin
        print(f"{self.steps[name]:7.1f} s  {name}", flush=True)


class Terminal:
    """A program that goes on in the background, and what it has printed."""

    def __init__(self, command: list[str], directory: Path, variables: dict[str, str]) -> None:
        self._log = directory.with_suffix(".log")
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def until(self, pattern: str) -> str:
        """What the pattern's group has found, when it is printed.

        Raises:
          SystemExit: it never is; with what was printed last.
        """
        end = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self._log.read_text(errors="replace"), re.M)) is None:
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"no {pattern!r} in:\n{self._log.read_text()[-4_000:]}")
            time.sleep(0.1)
        return found[1]

    def interrupt(self) -> None:
        """Ctrl-C, which goes to all that runs in a terminal."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait(90)


def newcomer(directory: Path, *, tests: bool) -> dict[str, float]:
    """Do it all; the seconds of each step."""
    watch, checkout = Watch(), directory / "mailpoll"
    with ExitStack() as stack:
        dovecot = Dovecot(directory / "dovecot")
        stack.enter_context(dovecot)
        dovecot.deliver(ADDRESS, MAIL)
        variables = environment(directory, dovecot)
        with watch.step("git clone"):
            clone = ["git", "clone", "--quiet", str(ROOT), str(checkout)]
            subprocess.run(clone, check=True, env=variables)
        terminal = Terminal(["make", "demo"], checkout, variables)
        stack.callback(terminal.interrupt)
        with watch.step("make demo: packages"):
            terminal.until(r"^(starting the sample)")
        with watch.step("make demo: until the console's address is told"):
            url = terminal.until(r"^console +(\S+?)/$")
            token = terminal.until(r"^token +(\S+)$")
        playwright = stack.enter_context(sync_playwright())
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page()
        with watch.step("log in to the console"):
            log_in(page, url, token)
        with watch.step("try the login of the own mailbox, and add it"):
            add_mailbox(page, url, dovecot.imaps_port)
        with watch.step("its mail is here and read"):
            read_mail(page)
        chromium.close()
        if tests:
            terminal.interrupt()
            with watch.step("make test"):
                subprocess.run(["make", "test"], cwd=checkout, env=variables, check=True)
    return watch.steps


def environment(directory: Path, dovecot: Dovecot) -> dict[str, str]:
    """What a shell of somebody has who has no environment, and a mail server of their own.

    That server is none that the world knows: its port and its authority have to be told.
    """
    home = directory / "home"
    home.mkdir()
    ours = ("MAILPOLL_", "PYTHON", "VIRTUAL_ENV", "DATABASE_URL", "REDIS_URL", "STORAGE_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {
        **kept,
        "HOME": str(home),
        "PYTHONUNBUFFERED": "1",
        "MAILPOLL_IMAP_PORTS": f"143,993,{dovecot.imaps_port}",
        "MAILPOLL_IMAP_CA_FILE": str(dovecot.ca_file),
    }


def log_in(page: Page, url: str, token: str) -> None:
    page.goto(url)
    page.fill("#token", token)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("h1")).to_have_text("Overview")


def add_mailbox(page: Page, url: str, port: int) -> None:
    page.goto(f"{url}/accounts")
    page.get_by_role("link", name="Add account").click()
    page.fill("#address", ADDRESS)
    page.fill("#host", "localhost")
    page.fill("#port", str(port))
    page.fill("#password", Dovecot.password)
    page.get_by_role("button", name="Test login").click()
    expect(page.locator(".note.good")).to_contain_text("The login works", timeout=60_000)
    page.fill("#password", Dovecot.password)
    page.get_by_role("button", name="Add account").click()
    page.wait_for_url("**/accounts/*?done=added")


def read_mail(page: Page) -> None:
    """The account's page tells by itself when the mail is here."""
    expect(page.locator("#told")).to_have_text("The import is done.", timeout=60_000)
    page.locator("#facts a[href^='/messages']").click()
    page.get_by_role("link", name=SUBJECT).click()
    expect(page.locator("pre")).to_contain_text("All of it is here.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.newcomer")
    parser.add_argument("--tests", action="store_true", help="go on with `make test`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mailpoll-newcomer-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # Dovecot drops root's rights and must get in
        steps = newcomer(directory, tests=options.tests)
    steps["together"] = sum(steps.values())
    rows = [[name, seconds] for name, seconds in steps.items()]
    print(Table("The first minutes", ["step", "s"], rows).markdown())
    print(json.dumps({name: round(seconds, 1) for name, seconds in steps.items()}))


if __name__ == "__main__":
    main()
