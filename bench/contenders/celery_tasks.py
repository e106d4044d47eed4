"""The tasks of the home-made design: a poll lists UIDs, and each message is a task of its own."""

import email
import email.policy
import hashlib
import json
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from celery import Celery
from imapclient import IMAPClient

TABLES = """
    CREATE TABLE accounts (name text PRIMARY KEY, last_uid bigint NOT NULL, polls bigint NOT NULL);
    CREATE TABLE messages (
        account text NOT NULL, uid bigint NOT NULL, sha256 text NOT NULL, subject text, sender text,
        sent_at text, text_body text, attachments int NOT NULL, file text NOT NULL,
        PRIMARY KEY (account, uid)
    );
"""

#: Where all is: set by the contender for its workers.
VARIABLE = "BENCH_CELERY"

app = Celery("celery_tasks")
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True


@cache
def place() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(os.environ[VARIABLE])
    return found


@cache
def database() -> "psycopg.Connection[Any]":
    """One connection for each process, as frameworks keep it."""
    return psycopg.connect(place()["database"], autocommit=True)


@contextmanager
def inbox(user: str) -> Iterator[IMAPClient]:
    job = place()
    context = ssl.create_default_context(cafile=job["ca_file"])
    with IMAPClient(job["host"], job["port"], ssl_context=context) as client:
        client.login(user, job["password"])
        client.select_folder("INBOX", readonly=True)
        yield client


@app.task
def poll(user: str) -> None:
    row = database().execute("SELECT last_uid FROM accounts WHERE name = %s", [user]).fetchone()
    assert row is not None
    last = row[0]
    with inbox(user) as client:
        uids = [uid for uid in client.search(["UID", f"{last + 1}:*"]) if uid > last]
    for uid in uids:
        fetch.delay(user, uid)
    database().execute(
        "UPDATE accounts SET last_uid = %s, polls = polls + 1 WHERE name = %s",
        [max([last, *uids]), user],
    )


@app.task
def fetch(user: str, uid: int) -> None:
    with inbox(user) as client:
        raw = client.fetch([uid], ["BODY.PEEK[]"])[uid][b"BODY[]"]
    digest = hashlib.sha256(raw).hexdigest()
    file = Path(place()["directory"]) / user / f"{uid}.eml"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(raw)
    message = email.message_from_bytes(raw, policy=email.policy.default)
    body = message.get_body(("plain", "html"))
    database().execute(
        "INSERT INTO messages VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        [
            user,
            uid,
            digest,
            message["Subject"],
            message["From"],
            message["Date"],
            body.get_content() if body else None,
            sum(1 for _ in message.iter_attachments()),
            str(file),
        ],
    )
