"""Take the pictures in ``docs/images``: the demo with a history and a few troubles, in Chromium."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import urllib3
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parents[2] / "docs" / "images"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
#: Name, path, width, height, colour scheme.
PICTURES = (
    ("overview", "/", 1280, 860, "light"),
    ("overview-dark", "/", 1280, 860, "dark"),
    ("accounts", "/accounts", 1280, 800, "light"),
    ("account", "/accounts/{account}", 1280, 900, "light"),
    ("message", "/messages/{message}", 1280, 820, "light"),
    ("failed", "/failed", 1280, 500, "light"),
    ("phone-overview", "/", 375, 812, "light"),
    ("phone-accounts", "/accounts", 375, 812, "dark"),
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mailpoll-screenshots-") as name:
        directory = Path(name)
        with demo(directory) as (address, token):
            arrange(directory / "demo-data" / "mailpoll.db", address, token)
            take(address, token)


@contextmanager
def demo(directory: Path) -> Iterator[tuple[str, str]]:
    """The demo with all its mail, where it answers, and its token."""
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
        token = (directory / "demo-data" / "api.token").read_text().split()[0]
        yield line.split()[-1].removesuffix("/docs"), token
    finally:
        process.terminate()
        process.wait(60)


def arrange(path: Path, address: str, token: str) -> None:
    """Give the demo a history of 30 days, and troubles as they happen."""
    chance, now = random.Random(8), datetime.now(UTC)
    with closing(sqlite3.connect(path, timeout=30)) as database, database:
        accounts = [row for (row,) in database.execute("SELECT id FROM email_accounts ORDER BY id")]
        for number, account in enumerate(accounts):
            if number == 1:  # the one that is shown, whose folders have no such history
                continue
            usual = chance.choice((2, 5, 9, 20))
            for ago in range(1, 30):
                day = (now - timedelta(days=ago)).date()
                amount = chance.randrange(usual * (1 if day.weekday() > 4 else 3) + 1)
                values = (account, day.isoformat(), amount, amount * 41_000)
                sql = "INSERT INTO email_account_days (account_id, day, messages, bytes) VALUES"
                database.execute(f"{sql} (?, ?, ?, ?) ON CONFLICT DO NOTHING", values)
            if number in (3, 11):
                sql = "UPDATE email_accounts SET state = 'paused' WHERE id = ?"
                database.execute(sql, (account,))
        database.execute("DELETE FROM email_hours")
        for ago in range(24):
            hour = (now - timedelta(hours=ago)).replace(minute=0, second=0, microsecond=0)
            busy = 90 if 7 <= hour.hour <= 17 else 18
            amount = chance.randrange(busy // 3, busy)
            imported = 140 if ago == 5 else 60 if ago == 4 else 0
            stored = hour.isoformat(sep=" ", timespec="microseconds")
            sql = "INSERT INTO email_hours (hour, shard, messages, imported) VALUES (?, 0, ?, ?)"
            database.execute(sql, (stored, amount + imported, imported))
        reasons = ("the raw message is missing from the store",) * 2
        reasons += ("given up on after 3 attempts",) * 5
        sql = "SELECT id FROM email_raw_messages ORDER BY id DESC LIMIT 7 OFFSET 30"
        for (message,), reason in zip(database.execute(sql).fetchall(), reasons, strict=True):
            sql = "UPDATE email_raw_messages SET status = 'failed', error = ? WHERE id = ?"
            database.execute(sql, (reason, message))
        sql = """UPDATE email_accounts SET state = 'auth_failed', last_error = ?,
            last_error_kind = 'auth_failed', last_error_at = ?, failures = 3 WHERE id = ?"""
        at = (now - timedelta(hours=2)).isoformat(sep=" ", timespec="microseconds")
        words = "the server refused the login: Invalid credentials"
        database.execute(sql, (words, at, accounts[6]))
    api = {"Authorization": f"Bearer {token}"}
    for name, scope in (("crm", "read"), ("on-call", "operate")):
        body = {"name": name, "scope": scope}
        urllib3.request("POST", f"{address}/admin/api-keys", json=body, headers=api)


def take(address: str, token: str) -> None:
    api = {"Authorization": f"Bearer {token}"}

    def found(path: str) -> Any:
        return urllib3.request("GET", f"{address}/admin/{path}", headers=api).json()["items"]

    account = found("email-accounts?limit=2")[1]["id"]
    messages = found("messages?status=processed&limit=200")
    whole = (
        urllib3.request("GET", f"{address}/admin/messages/{one['id']}", headers=api).json()
        for one in messages
    )
    # A subject for which every machine has letters
    message = next(
        one["id"]
        for one in whole
        if one["html"] and one["attachments"] and one["subject"].isascii()
    )
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, path, width, height, scheme in PICTURES:
            page = logged_in(browser, address, token, width, height, scheme)
            page.goto(address + path.format(account=account, message=message))
            page.screenshot(path=IMAGES / f"console-{name}.png")
            page.context.close()
        browser.close()


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
