"""Give the demo what a service has that has run for a month: a history, mail, and troubles."""

import json
import random
import smtplib
import sqlite3
import time
from base64 import b64decode
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

import urllib3

from tests.servers.receiver import Received

MAILBOX = "anna@example.org"
#: The subject of the conversation that is shown.
SUBJECT = "Offer for the garden office"
#: Where a picture of the mail would be loaded from.
REMOTE = "https://pictures.example.com/garden-office.jpg"
LOGO = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkMNv7HwAD1AIkXqM7vQAAAABJRU5ErkJggg=="
)
ITEMS = (
    ("Frame and walls, larch, 12 m²", "1", "6,480.00 €"),
    ("Window, double glazed", "3", "1,290.00 €"),
    ("Delivery and assembly", "2 days", "1,760.00 €"),
    ("<b>Together</b>", "", "<b>9,530.00 €</b>"),
)
ROWS = "".join(
    f"<tr><td>{item}</td><td align=right>{amount}</td><td align=right>{price}</td></tr>"
    for item, amount, price in ITEMS
)
OFFER = f"""<div style="max-width: 620px">
<p><img src="cid:logo@example.com" width="36" height="36" alt=""></p>
<p>Dear Anna,</p>
<p>thank you for your visit. Here is what we talked about; the drawing is attached.</p>
<table cellpadding="8" width="100%" style="border-collapse: collapse">
<tr style="background: #eef1ee"><th align="left">Item</th><th align="right">Amount</th>
<th align="right">Price</th></tr>{ROWS}</table>
<p><img src="{REMOTE}" alt=""></p>
<p>The offer is valid until the end of January.</p>
<p>Kind regards<br>Lena Beispiel</p></div>"""
#: Why messages failed, in the words that processing has for it, and how many.
REASONS = {
    "given up after 3 attempts that did not end": 5,
    "the stored bytes differ from those that were fetched": 3,
    "the raw message is missing from the store": 2,
}


@dataclass(slots=True)
class Demo:
    """A demo that runs.

    Parameters:
      address: of its console and API.
      directory: its data.
    """

    address: str
    token: str
    directory: Path

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """The JSON of an answer that is none of a refusal."""
        answer = urllib3.request(
            method,
            f"{self.address}/admin/{path}",
            json=body or None,
            headers={"Authorization": f"Bearer {self.token}"},
        )
        assert answer.status < 400, answer.data
        return answer.json() if answer.data else None

    def until(self, path: str, done: Any) -> Any:
        """What the API answers, when it is as it should be."""
        end = time.monotonic() + 120
        while not done(found := self.ask("GET", path)):
            assert time.monotonic() < end, found
            time.sleep(0.5)
        return found

    def send(self, mail: bytes) -> None:
        port = int((self.directory / "smtp.port").read_text())
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as smtp:
            options = ["BODY=8BITMIME"]
            smtp.sendmail("lena@example.com", [MAILBOX], mail, mail_options=options)


def reluctant(received: Received) -> tuple[int, dict[str, str]]:
    """A receiver that is away for one event out of three, but for the first time only."""
    again = received.id in KNOWN
    KNOWN.add(received.id)
    away = not again and len(KNOWN) % 3 == 0
    return (503 if away else 204), {}


KNOWN = set[str]()


def arrange(demo: Demo, receiver: str) -> None:
    """What is shown; ``receiver`` is the address of a webhook's."""
    hook = {"url": receiver, "description": "Helpdesk", "types": ["message.new", "account.state"]}
    hook_id = demo.ask("POST", "webhooks", **hook)["id"]
    for mail in conversation():
        demo.send(mail)
        time.sleep(1.1)  # in this order: they are sorted by the second of their arrival
    found = f"search?q=subject:%22{SUBJECT.replace(' ', '+')}%22"
    demo.until(found, lambda answer: len(answer["items"]) == 3)
    demo.until(f"webhooks/{hook_id}", lambda answer: not answer["behind"])
    for name, scope in (("crm", "read"), ("on-call", "operate"), ("former helpdesk", "read")):
        key = demo.ask("POST", "api-keys", name=name, scope=scope)
    demo.ask("DELETE", f"api-keys/{key['id']}")
    accounts = demo.ask("GET", "email-accounts?limit=200")["items"]
    for number in (3, 11):
        demo.ask("POST", f"email-accounts/{accounts[number]['id']}/pause")
    reason = "Case 2026-117: nothing of this mailbox may be deleted before it is closed"
    demo.ask("PUT", f"email-accounts/{accounts[7]['id']}/hold", reason=reason)
    export = demo.ask("POST", "exports", account_id=accounts[0]["id"], format="zip")["id"]
    demo.until(f"exports/{export}", lambda answer: answer["state"] == "done")
    with closing(sqlite3.connect(demo.directory / "mailpoll.db", timeout=30)) as database, database:
        rows = [row for (row,) in database.execute("SELECT id FROM email_accounts ORDER BY id")]
        history(database, rows)
        failures(database)
        refusal(database, rows[6])
        not_fetched(database, rows[1])


def conversation() -> list[bytes]:
    """A question, an answer, and an offer with HTML, attachments and a picture from elsewhere."""
    lena, anna = "Lena Beispiel <lena@example.com>", f"Anna Muster <{MAILBOX}>"
    texts = (
        (anna, lena, "Could you send us an offer for the office in the garden?"),
        (lena, anna, "Of course. May we come on Thursday and measure?"),
        (lena, anna, "Dear Anna, here is our offer: 9,530.00 € in all."),
    )
    mails = []
    for number, (sender, receiver, text) in enumerate(texts):
        mail = EmailMessage()
        mail["From"], mail["To"] = sender, receiver
        mail["Subject"] = SUBJECT if number == 0 else f"Re: {SUBJECT}"
        mail["Date"] = datetime.now(UTC)
        mail["Message-ID"] = f"<offer-{number}@example.com>"
        if number:
            mail["In-Reply-To"] = mail["References"] = f"<offer-{number - 1}@example.com>"
        mail.set_content(text)
        mails.append(mail)
    offer = mails[-1]
    offer.add_alternative(OFFER, "html")
    html = offer.get_payload(1)
    assert isinstance(html, EmailMessage)
    html.add_related(LOGO, "image", "png", cid="<logo@example.com>", filename="logo.png")
    drawing = b"%PDF-1.7\n" + bytes(range(256)) * 700
    offer.add_attachment(drawing, "application", "pdf", filename="Drawing of the garden office.pdf")
    offer.add_attachment("item;price\nlarch;6480\n", "csv", filename="prices.csv")
    return [mail.as_bytes(policy=SMTP) for mail in mails]


def history(database: sqlite3.Connection, accounts: list[int]) -> None:
    """Mail of 30 days and 24 hours."""
    chance, now = random.Random(8), datetime.now(UTC)
    for number, account in enumerate(accounts):
        if number in (1, 6):  # those that are shown, whose folders have no such history
            continue
        usual = chance.choice((2, 5, 9, 20))
        for ago in range(1, 30):
            day = (now - timedelta(days=ago)).date()
            amount = chance.randrange(usual * (1 if day.weekday() > 4 else 3) + 1)
            values = (account, day.isoformat(), amount, amount * 41_000)
            sql = "INSERT INTO email_account_days (account_id, day, messages, bytes) VALUES"
            database.execute(f"{sql} (?, ?, ?, ?) ON CONFLICT DO NOTHING", values)
    database.execute("DELETE FROM email_hours")
    for ago in range(24):
        hour = (now - timedelta(hours=ago)).replace(minute=0, second=0, microsecond=0)
        busy = 90 if 7 <= hour.hour <= 17 else 18
        amount = chance.randrange(busy // 3, busy)
        imported = 140 if ago == 5 else 60 if ago == 4 else 0
        sql = "INSERT INTO email_hours (hour, shard, messages, imported) VALUES (?, 0, ?, ?)"
        database.execute(sql, (stored(hour), amount + imported, imported))


def stored(moment: datetime) -> str:
    """A time as SQLite holds it."""
    return moment.isoformat(sep=" ", timespec="microseconds")


def failures(database: sqlite3.Connection) -> None:
    """Messages of several mailboxes that could not be processed."""
    sql = "SELECT id FROM email_raw_messages ORDER BY id DESC LIMIT 400 OFFSET 30"
    messages = iter(database.execute(sql).fetchall()[::9])
    for reason, amount in REASONS.items():
        for _, (message,) in zip(range(amount), messages, strict=False):
            sql = "UPDATE email_raw_messages SET status = 'failed', error = ? WHERE id = ?"
            database.execute(sql, (reason, message))


def refusal(database: sqlite3.Connection, account: int) -> None:
    """A password that somebody has changed."""
    sql = """UPDATE email_accounts SET state = 'auth_failed', last_error = ?,
        last_error_kind = 'auth_failed', last_error_at = ?, failures = 3 WHERE id = ?"""
    words = "the server refused the login: Invalid credentials"
    database.execute(sql, (words, stored(datetime.now(UTC) - timedelta(hours=2)), account))


def not_fetched(database: sqlite3.Connection, account: int) -> None:
    """Messages that a mailbox's server has and does not deliver, as its next polls would find."""
    now = datetime.now(UTC)
    (folder, numbers, generation, proof) = database.execute(
        """SELECT id, uidvalidity, generation, proof FROM email_folders
        WHERE account_id = ? AND name = 'INBOX'""",
        (account,),
    ).fetchone()
    for uid, verdict, reason, size, subject, later in (
        (901, "waiting", "the server answers NO: Backend unavailable", 48_213, None, 4),
        (902, "too_large", "58720256 bytes; the limit is 52428800", 58_720_256, "Photos", 60),
    ):
        database.execute(
            """INSERT INTO email_fetch_failures (folder_id, uidvalidity, generation, uid, verdict,
            reason, size, headers, attempts, next_attempt_at, seen_at)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, 2, ?, ?)""",
            (
                *(folder, numbers, generation, uid, verdict, reason, size),
                subject and f"Subject: {subject} of the summer party\r\n",
                stored(now + timedelta(minutes=later)),
                stored(now),
            ),
        )
    said = {**json.loads(proof), "waiting": 1, "too_large": 1}
    database.execute(
        "UPDATE email_folders SET proof = ?, server_messages = server_messages + 2 WHERE id = ?",
        (json.dumps(said), folder),
    )
    # Polled seldom enough that nothing is found otherwise before the picture is taken
    database.execute(
        "UPDATE email_accounts SET poll_interval = 300, next_poll_at = ? WHERE id = ?",
        (stored(now + timedelta(minutes=4)), account),
    )
