"""A database with any number of accounts and messages, written row by row in bulk.

The rows are those of a long-running installation: three accounts have a twentieth of all mail
each, the older half of a mailbox lies in an archive folder, a few messages have failed.
"""

import hashlib
import itertools
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

import psycopg
from psycopg import sql

from mailpoll import database

#: Accounts with a twentieth of all messages each.
HEAVY = 3
#: Days over which the mail of every size is spread.
SPAN = 1_000
#: Messages that wait for a worker, and that lie in local files though there is an object store.
STORED, FALLEN_BACK = 200, 150
#: One message in so many has failed, and one in so many has an attachment.
FAILED, ATTACHED = 500, 11
FOLDERS = ("INBOX", "Archive", "Sent", "Junk", "Trash", "Drafts")

WORDS = ["invoice", "meeting", "order", "delivery", "question", "answer", "report", "project"]
TEXT = " ".join(itertools.islice(itertools.cycle(WORDS + WORDS[::-1] + WORDS[::3]), 4_000))


@dataclass(frozen=True)
class Filling:
    """What a filled database contains.

    Parameters:
      object_store: blobs lie in an object store, a few of them still in local files.
    """

    accounts: int
    messages: int
    object_store: bool

    @cached_property
    def _moments(self) -> tuple[datetime, timedelta]:
        end = datetime.now(UTC)
        span = timedelta(days=SPAN)
        return end - span, span / self.messages

    def owner(self, number: int) -> int:
        """The account that a message belongs to; both count from 1."""
        place = number % 20
        if place < HEAVY:
            return place + 1
        return HEAVY + 1 + (number * 2_654_435_761 >> 8) % (self.accounts - HEAVY)

    def folder_of(self, number: int) -> int:
        """The position in ``FOLDERS`` of a message's folder."""
        if number % 100 == 50:
            return 3
        if number % 7 == 0:
            return 2
        return 1 if number * 2 < self.messages else 0

    def arrived(self, number: int) -> datetime:
        start, step = self._moments
        return start + number * step

    def fill(self, url: str) -> None:
        """Write all rows into an empty, migrated database."""
        load = _load_sqlite if url.startswith("sqlite:") else _load_postgresql
        load(url, self.tables())

    def tables(self) -> Iterator[tuple[str, tuple[str, ...], Iterable[tuple[Any, ...]]]]:
        """Name, columns and rows of each table, parents first."""
        yield "email_accounts", ACCOUNT, map(self._account, range(1, self.accounts + 1))
        yield "email_folders", FOLDER, self._folders()
        numbers = range(1, self.messages + 1)
        yield "email_raw_messages", MESSAGE, map(self._message, numbers)
        yield "email_locations", LOCATION, itertools.chain.from_iterable(map(self._places, numbers))
        attached = (number for number in numbers if number % ATTACHED == 0)
        yield "email_attachments", ATTACHMENT, map(self._attachment, attached)
        yield "email_account_days", DAY, self._days()

    def _account(self, number: int) -> tuple[Any, ...]:
        now = database.timestamp(self.arrived(self.messages))
        lateness = database.json([number % 900] * 50)
        return (
            *(number, uuid(number), f"user{number:05}@example.org", "imap.example.org", 993),
            *("tls", f"user{number:05}@example.org", "password", "-", "-", 60, "active", 1, now),
            *(now, now, 80, number % 900, lateness, now, now, now),
        )

    def _folders(self) -> Iterator[tuple[Any, ...]]:
        counts = Counter(
            (self.owner(number), self.folder_of(number)) for number in range(1, self.messages + 1)
        )
        now = database.timestamp(self.arrived(self.messages))
        for account in range(1, self.accounts + 1):
            for position, name in enumerate(FOLDERS):
                count = counts[account, position]
                proof = database.json(dict.fromkeys(PROOF, 0) | {"server": count, "stored": count})
                yield (
                    *(_folder_id(account, position), account, name, name, 1, 1, self.messages),
                    *(self.messages + 1, count, count, count * 9_000, proof, True, now),
                )

    def _message(self, number: int) -> tuple[Any, ...]:
        arrived = database.timestamp(self.arrived(number))
        account, digest = self.owner(number), sha256(number)
        status = "processed"
        if number % (self.messages // STORED) == 7:
            status = "stored"
        elif number % FAILED == 11:
            status = "failed"
        local = not self.object_store or number % (self.messages // FALLEN_BACK) == 3
        head: tuple[Any, ...] = (
            *(number, account, digest, 3_000 + number % 9_000, "local" if local else "oss"),
            *(f"{uuid(account)}/{digest}", arrived, arrived, False, status, 1),
            arrived if status == "stored" else None,
        )
        if status == "stored":
            return (*head, *(None,) * 9, 0, None, None)
        start = number * 37 % 20_000
        text = TEXT[start : start + 1_500 + number % 2_000]
        people = database.json([{"name": f"Ann {number % 997}", "address": "ann@example.org"}])
        return (
            *(*head, arrived, "because" if status == "failed" else None, "fast"),
            *(f"Subject {number}", people, people, arrived, f"{number}@example.org", HEADERS),
            *(int(number % ATTACHED == 0), text, TEXT[:6_000] if number % 4 == 0 else None),
        )

    def _places(self, number: int) -> Iterator[tuple[Any, ...]]:
        """One place, and for one message in twenty a second."""
        position = self.folder_of(number)
        arrived = database.timestamp(self.arrived(number))
        for folder in (position, 4)[: 1 + (number % 19 == 0)]:
            folder_id = _folder_id(self.owner(number), folder)
            yield folder_id, 1, 0, number, number, arrived, 9_000, arrived, arrived

    def _attachment(self, number: int) -> tuple[Any, ...]:
        account, digest = self.owner(number), sha256(-number)
        return (
            *(account, number, 0, "report.pdf", "report.pdf", "application/pdf", "", False),
            *(100_000, digest, "oss" if self.object_store else "local"),
            f"{uuid(account)}/{digest}",
        )

    def _days(self) -> Iterator[tuple[Any, ...]]:
        counts: Counter[tuple[int, str]] = Counter()
        attached: Counter[tuple[int, str]] = Counter()
        for number in range(1, self.messages + 1):
            key = self.owner(number), self.arrived(number).date().isoformat()
            counts[key] += 1
            attached[key] += number % ATTACHED == 0
        for (account, day), count in counts.items():
            files = attached[account, day]
            yield account, day, count, count * 9_000, files, files * 100_000


def uuid(account: int) -> str:
    return str(UUID(int=account))


def sha256(number: int) -> str:
    """What stands for the digest of a message or, negative, of its attachment."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def _folder_id(account: int, position: int) -> int:
    return (account - 1) * len(FOLDERS) + position + 1


ACCOUNT = (
    *("id", "uuid", "address", "host", "port", "security", "username", "auth", "credential"),
    *("data_key", "poll_interval", "state", "lease_token", "next_poll_at", "last_poll_at"),
    *("last_success_at", "last_poll_ms", "last_lateness_ms", "recent_lateness_ms", "imported_at"),
    *("created_at", "updated_at"),
)
FOLDER = (
    *("id", "account_id", "wire_name", "name", "uidvalidity", "low", "high", "uidnext"),
    *("server_messages", "messages", "bytes", "proof", "complete", "proved_at"),
)
PROOF = (
    *("server", "stored", "waiting", "unreadable", "too_large", "left_out", "withheld"),
    *("to_import", "missing", "gone", "expunged"),
)
MESSAGE = (
    *("id", "account_id", "sha256", "size", "storage_type", "storage_key", "internal_date"),
    *("stored_at", "imported", "status", "attempts", "next_attempt_at", "processed_at", "error"),
    *("parser", "subject", "from_addresses", "to_addresses", "date", "message_id", "headers"),
    *("attachment_count", "text_body", "html_body"),
)
LOCATION = (
    *("folder_id", "uidvalidity", "generation", "uid", "message_id", "message_date"),
    *("server_size", "internal_date", "seen_at"),
)
ATTACHMENT = (
    *("account_id", "message_id", "position", "name", "safe_name", "content_type", "content_id"),
    *("inline", "size", "sha256", "storage_type", "storage_key"),
)
DAY = ("account_id", "day", "messages", "bytes", "attachments", "attachment_bytes")
HEADERS = database.json([[f"X-Header-{n}", TEXT[n * 50 : n * 50 + 60]] for n in range(12)])


def _load_sqlite(url: str, tables: Any) -> None:
    path = Path(unquote(urlsplit(url).path[1:]))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -1000000")
    for name, columns, rows in tables:
        marks = ", ".join("?" * len(columns))
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})", rows)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _load_postgresql(url: str, tables: Any) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for name, columns, rows in tables:
            table = sql.Identifier(name)
            fields = sql.SQL(", ").join(map(sql.Identifier, columns))
            command = sql.SQL("COPY {} ({}) FROM STDIN").format(table, fields)
            with connection.cursor().copy(command) as copy:
                for row in rows:
                    copy.write_row(row)
            if "id" in columns:
                advance = (
                    "SELECT setval(pg_get_serial_sequence(%s, 'id'), (SELECT MAX(id) FROM {}))"
                )
                connection.execute(sql.SQL(advance).format(table), (name,))
        # Each row of it was changed by the hundred in one transaction, which no installation does.
        connection.execute("VACUUM FULL email_days")
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
