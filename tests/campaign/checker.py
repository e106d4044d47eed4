"""Compares what is left with what the IMAP servers served.

It only reads, and shares no code with mailpoll. It opens the manifest, the database by plain SQL,
every blob of every store, and Redis by SCAN, and prints one JSON object: for each of the sets below
a list of what is in it. All must be empty.

* ``lost``: seen by a whole session of a client, and no row; or an attachment without a row
* ``unexpected``: a row for what was never served
* ``duplicated``: two rows for one thing, or one blob in two stores
* ``corrupt``: bytes or sizes that differ from those that were served
* ``missing``: a row without its blob
* ``orphan``: a blob older than ``--gc`` without a row, an unfinished upload or temporary file
* ``stuck``: work that nobody has ended
* ``leaked``: what is left of a deleted account
* ``moved``: commands that could change a mailbox
* ``held``: more descriptors, threads or connections of a process than before the fault
* ``errors``: lines in the logs that no fault explains
"""

import argparse
import hashlib
import json
import re
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
import zstandard

SETS = (
    *("lost", "unexpected", "duplicated", "corrupt", "missing", "orphan"),
    *("stuck", "leaked", "moved", "held", "errors"),
)
#: By how much a process may exceed what it had when its work began: threads connect to each server
#: once, when they first need it. What leaks with each try of a fault's minute is far more.
NOISE = {"descriptors": 64, "threads": 16, "connections": 64}
#: Every table with rows of an account, and how to find those of one.
OF_ACCOUNT = {
    "email_accounts": "uuid = {uuid}",
    "email_folders": "account_id = {id}",
    "email_raw_messages": "account_id = {id}",
    "email_attachments": "account_id = {id}",
    "email_search": "account_id = {id}",
    "email_thread_keys": "account_id = {id}",
    "email_account_days": "account_id = {id}",
    "email_flags": "account_id = {id}",
    "email_tombstones": "account_id = {id}",
    "email_doomed_blobs": "account_id = {id}",
    "email_holds": "account_id = {id}",
    "email_events": "account_id = {id}",
    "webhook_deliveries": "account_id = {id}",
    "email_damages": "account_id = {id}",
    "email_exports": "account_id = {id}",
    "email_export_parts": "account_id = {id}",
}
#: Tables whose rows hang on rows that must be there.
HANGING = {
    "email_locations": ("folder_id", "email_folders", "message_id", "email_raw_messages"),
    "email_fetch_failures": ("folder_id", "email_folders"),
    "email_left_out": ("folder_id", "email_folders"),
    "email_attachments": ("message_id", "email_raw_messages"),
    "email_flags": ("location_id", "email_locations"),
    "email_search": ("message_id", "email_raw_messages"),
}


def content_of(stored: bytes) -> bytes:
    """What was stored, from what lies there: a zstd frame. What is none is damaged as it stands."""
    try:
        return zstandard.ZstdDecompressor().decompress(stored)
    except zstandard.ZstdError:
        return stored


class Database:
    """Plain SQL on SQLite or PostgreSQL; every row is a dict."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection: Any
        if parts.scheme == "sqlite":
            path = unquote(parts.path[1:])
            self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
            self._connection.row_factory = lambda cursor, row: dict(
                zip([column[0] for column in cursor.description], row, strict=True)
            )
        else:
            import psycopg
            from psycopg.rows import dict_row

            self._connection = psycopg.connect(url, row_factory=dict_row, connect_timeout=10)  # type: ignore[arg-type]

    def rows(self, sql: str) -> list[dict[str, Any]]:
        return list(self._connection.execute(sql).fetchall())

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Stored:
    """A blob as it lies in a store, its content hashed anew."""

    key: str
    sha256: str
    size: int
    modified: float


class Files:
    """Blobs as files under a directory."""

    kind = "local"

    def __init__(self, root: Path) -> None:
        self._root = root

    def blobs(self) -> Iterator[Stored]:
        for path in self._files():
            if not path.relative_to(self._root).parts[0].startswith("."):
                key = str(path.relative_to(self._root))
                content = content_of(path.read_bytes())
                digest = hashlib.sha256(content).hexdigest()
                yield Stored(key, digest, len(content), path.stat().st_mtime)

    def unfinished(self) -> Iterator[tuple[str, float]]:
        for path in self._files():
            if path.relative_to(self._root).parts[0].startswith("."):
                yield str(path), path.stat().st_mtime

    def _files(self) -> list[Path]:
        return [path for path in self._root.rglob("*") if path.is_file()]


class Bucket:
    """Blobs as objects of a bucket."""

    kind = "oss"

    def __init__(self, url: str) -> None:
        from minio import Minio

        parts = urlsplit(url)
        self._bucket = parts.path.strip("/")
        endpoint = parts.netloc.rpartition("@")[2]
        self._client = Minio(
            endpoint,
            unquote(parts.username or ""),
            unquote(parts.password or ""),
            secure="secure=0" not in parts.query,
        )

    def blobs(self) -> Iterator[Stored]:
        if not self._client.bucket_exists(self._bucket):
            return
        for found in self._client.list_objects(self._bucket, recursive=True):
            answer = self._client.get_object(self._bucket, found.object_name)
            try:
                content = content_of(answer.read())
            finally:
                answer.close()
                answer.release_conn()
            digest = hashlib.sha256(content).hexdigest()
            yield Stored(found.object_name, digest, len(content), found.last_modified.timestamp())

    def unfinished(self) -> Iterator[tuple[str, float]]:
        if self._client.bucket_exists(self._bucket):
            listed = self._client._list_multipart_uploads(self._bucket)
            for upload in listed.uploads:
                yield f"multipart {upload.object_name}", time.time()


def store_of(url: str) -> "Files | Bucket":
    parts = urlsplit(url)
    return Files(Path(unquote(parts.path))) if parts.scheme == "file" else Bucket(url)


Place = tuple[str, str, int, int]


@dataclass
class Served:
    """What the manifest says.

    ``messages``: place to the SHA-256 and time of each message that ever was there;
    ``attachments``: a message's SHA-256 to those of its parts;
    ``sessions``: account to when its latest whole session began.
    """

    messages: dict[Place, list[tuple[str, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    sizes: dict[str, int] = field(default_factory=dict)
    attachments: dict[str, list[str]] = field(default_factory=dict)
    expunged: dict[Place, float] = field(default_factory=dict)
    sessions: dict[str, float] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Served":
        served = cls()
        for line in path.read_text().splitlines():
            served._add(json.loads(line))
        return served

    def _add(self, entry: dict[str, Any]) -> None:
        what, account = entry["what"], entry["account"]
        if what == "session":
            self.sessions[account] = max(self.sessions.get(account, 0.0), entry["began"])
        elif what == "changed":
            self.changed.append(f"{account}: {entry['command']}")
        else:
            place = (account, entry["folder"], entry["uidvalidity"], entry["uid"])
            if what == "expunged":
                self.expunged[place] = entry["at"]
            else:
                self.expunged.pop(place, None)
                self.messages[place].append((entry["sha256"], entry["at"]))
                self.sizes[entry["sha256"]] = entry["size"]
                self.attachments[entry["sha256"]] = sorted(entry["attachments"])


class Checker:
    """One check. Each method fills the sets that its name tells."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.database = Database(options.database)
        self.served = Served.read(options.manifest)
        self.deleted = dict(one.split(":", 1) for one in options.deleted)
        self.found: dict[str, list[str]] = {name: [] for name in SETS}
        self.facts: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        accounts = self.database.rows("SELECT * FROM email_accounts")
        self.addresses = {row["id"]: row["address"] for row in accounts}
        self.messages = {
            row["id"]: row for row in self.database.rows("SELECT * FROM email_raw_messages")
        }
        self._places()
        self._attachments()
        self._duplicates()
        self._blobs()
        self._stuck(accounts)
        if self.options.redis:
            self._queues()
        self._leaked()
        self.found["moved"] += self.served.changed
        self._logs()
        self._processes()
        self._times()
        self.database.close()
        return {**self.found, "facts": self.facts}

    def _note(self, name: str, *words: object) -> None:
        self.found[name].append(" ".join(map(str, words)))

    def _places(self) -> None:
        rows = self.database.rows(
            "SELECT l.uid, l.uidvalidity, l.message_id, l.expunged_at, f.account_id, f.wire_name "
            "FROM email_locations l JOIN email_folders f ON f.id = l.folder_id"
        )
        stored: dict[Place, set[str]] = defaultdict(set)
        for row in rows:
            address = self.addresses.get(row["account_id"], "?")
            place = (address, row["wire_name"], row["uidvalidity"], row["uid"])
            message = self.messages.get(row["message_id"])
            digest = message["sha256"] if message else ""
            stored[place].add(digest)
            told = {sha256 for sha256, _ in self.served.messages.get(place, [])}
            if not told:
                self._note("unexpected", "place", *place)
            elif digest not in told:
                self._note("corrupt", "place", *place, "holds", digest)
        verdicts = self._verdicts()
        for place, contents in self.served.messages.items():
            sha256, arrived = contents[-1]
            if place[0] not in self.addresses.values() or place in self.served.expunged:
                continue
            seen = self.served.sessions.get(place[0], 0.0) > arrived
            if seen and sha256 not in stored.get(place, ()) and place not in verdicts:
                self._note("lost", *place)
        known = {sha256 for one in self.served.messages.values() for sha256, _ in one}
        placed = {row["message_id"] for row in rows}
        for row in self.messages.values():
            if row["sha256"] not in known or row["id"] not in placed:
                self._note("unexpected", "message", row["id"], row["sha256"])
            elif row["size"] != self.served.sizes[row["sha256"]]:
                self._note("corrupt", "message", row["id"], "has size", row["size"])
        self.facts |= {"messages": len(self.messages), "places": len(rows)}

    def _verdicts(self) -> set[Place]:
        """Places without a message for which a reason is written down that may stay."""
        rows = self.database.rows(
            "SELECT v.uid, v.uidvalidity, v.verdict, f.account_id, f.wire_name "
            "FROM email_fetch_failures v JOIN email_folders f ON f.id = v.folder_id"
        )
        found = set()
        for row in rows:
            address = self.addresses.get(row["account_id"], "?")
            place = (address, row["wire_name"], row["uidvalidity"], row["uid"])
            if row["verdict"] == "waiting":
                self._note("stuck", "not fetched yet", *place)
            if row["verdict"] == "too_large" or self.options.unreadable:
                found.add(place)
        return found

    def _attachments(self) -> None:
        rows = self.database.rows("SELECT * FROM email_attachments")
        parts: dict[int, list[str]] = defaultdict(list)
        for row in rows:
            parts[row["message_id"]].append(row["sha256"])
        for row in self.messages.values():
            if row["status"] != "processed":
                continue
            served = Counter(self.served.attachments.get(row["sha256"], []))
            stored = Counter(parts.get(row["id"], []))
            for digest in (served - stored).elements():
                self._note("lost", "attachment", digest, "of message", row["id"])
            for digest in (stored - served).elements():
                self._note("unexpected", "attachment", digest, "of message", row["id"])
        self.attachments = rows
        self.facts["attachments"] = len(rows)

    def _duplicates(self) -> None:
        for table, key in (
            ("email_raw_messages", "account_id, sha256"),
            ("email_locations", "folder_id, uidvalidity, generation, uid"),
            ("email_attachments", "message_id, position"),
            ("email_folders", "account_id, wire_name"),
            ("email_accounts", "address"),
        ):
            for row in self.database.rows(
                f"SELECT {key}, COUNT(*) AS n FROM {table} GROUP BY {key} HAVING COUNT(*) > 1"
            ):
                self._note("duplicated", table, *row.values())

    def _blobs(self) -> None:
        stores = {store.kind: store for store in map(store_of, self.options.store)}
        lying: dict[str, dict[str, Stored]] = {}
        oldest = time.time() - self.options.gc
        for kind, store in stores.items():
            lying[kind] = {blob.key: blob for blob in store.blobs()}
            for name, modified in store.unfinished():
                if modified < oldest:
                    self._note("orphan", "unfinished", name)
        pointed: set[tuple[str, str]] = set()
        for table, rows in (
            ("message", list(self.messages.values())),
            ("attachment", self.attachments),
        ):
            for row in rows:
                pointed.add((row["storage_type"], row["storage_key"]))
                blob = lying.get(row["storage_type"], {}).get(row["storage_key"])
                if blob is None:
                    self._note("missing", table, row["id"], row["storage_type"], row["storage_key"])
                elif blob.sha256 != row["sha256"] or blob.size != row["size"]:
                    self._note("corrupt", table, row["id"], row["storage_key"])
        for kind, blobs in lying.items():
            for key, blob in blobs.items():
                if key.rpartition("/")[2] != blob.sha256:
                    self._note("corrupt", "blob", kind, key)
                if (kind, key) not in pointed and blob.modified < oldest:
                    self._note("orphan", "blob", kind, key)
        seen = Counter(key for blobs in lying.values() for key in blobs)
        for key, number in seen.items():
            if number > 1:
                self._note("duplicated", "blob", key)
        self.lying = lying
        self.facts["blobs"] = {kind: len(blobs) for kind, blobs in lying.items()}

    def _stuck(self, accounts: list[dict[str, Any]]) -> None:
        for row in self.messages.values():
            if row["status"] == "stored":
                self._note("stuck", "message", row["id"])
            elif row["status"] != "processed" and not self.options.failed:
                self._note("stuck", "message", row["id"], row["status"], row["error"])
        now = datetime.now(UTC)
        for row in accounts:
            until = _moment(row["lease_until"])
            if until is not None and until < now:
                self._note("stuck", "lease of account", row["id"], "ended at", until)
            if row["state"] == "deleting":
                self._note("stuck", "deletion of account", row["id"])
        for row in self.database.rows("SELECT * FROM email_jobs WHERE state <> 'done'"):
            self._note("stuck", "job", row["uuid"], "at", row["step"])

    def _queues(self) -> None:
        client = redis.Redis.from_url(self.options.redis, socket_timeout=10)
        left: Counter[str] = Counter()
        for key in client.scan_iter("mailpoll:*", count=1_000):
            name = key.decode()
            size = _size(client, key)
            if name.endswith(".XQ"):
                left["dead"] += size
                if self.options.dead:
                    continue
                for member in client.hvals(f"{name}.msgs"):
                    text = member.decode(errors="replace")
                    reason = re.search(r'"traceback": ?"(.*?)"[,}]', text)
                    self._note(
                        "stuck", "dead message", text[:160], reason[1][-200:] if reason else ""
                    )
            elif "__acks__" in name:
                left["unacknowledged"] += size
                if self.options.settled:
                    self._in_hand(client, name)
            elif name.endswith(".msgs"):
                left[name] += size
        self.facts["queues"] = dict(left)

    def _in_hand(self, client: "redis.Redis[bytes]", acks: str) -> None:
        """Name what a worker has taken and not ended."""
        *_, queue = acks.split(".", 2)
        for name in client.smembers(acks):
            text = client.hget(f"mailpoll:{queue}.msgs", name) or b"a message that is gone"
            self._note("stuck", "a worker never ended", queue, text.decode(errors="replace")[:300])

    def _leaked(self) -> None:
        for uuid, address in self.deleted.items():
            jobs = self.database.rows("SELECT account_id, account_uuid FROM email_jobs")
            numbers = [row["account_id"] for row in jobs if row["account_uuid"] == uuid]
            for table, where in OF_ACCOUNT.items():
                condition = where.format(uuid=f"'{uuid}'", id=numbers[0] if numbers else -1)
                for row in self.database.rows(f"SELECT * FROM {table} WHERE {condition}"):
                    self._note("leaked", table, row.get("id", row.get("day")))
            for kind, blobs in self.lying.items():
                for key in blobs:
                    if key.startswith(uuid):
                        self._note("leaked", "blob", kind, key)
            for url in self.options.store:
                store = store_of(url)
                for name, _ in store.unfinished():
                    if uuid in name:
                        self._note("leaked", name)
            if self.options.redis:
                for name in _keys_naming(self.options.redis, (uuid.encode(), address.encode())):
                    self._note("leaked", "redis", name)
        for table, (*pairs,) in HANGING.items():
            for column, parent in zip(pairs[::2], pairs[1::2], strict=True):
                for row in self.database.rows(
                    f"SELECT COUNT(*) AS n FROM {table} WHERE {column} NOT IN "
                    f"(SELECT id FROM {parent})"
                ):
                    if row["n"]:
                        self._note("leaked", row["n"], "rows of", table, "without", parent)
        for text in self.options.canary:
            for directory in self.options.search:
                for path in directory.rglob("*"):
                    if path.is_file() and text.encode() in content_of(path.read_bytes()):
                        self._note("leaked", "canary in", path)

    def _logs(self) -> None:
        announced = [re.compile(one) for one in self.options.announced]
        for path in self.options.log:
            for line in path.read_text(errors="replace").splitlines():
                if not re.search(r'"level": ?"(error|critical)"|^Traceback', line):
                    continue
                if not any(one.search(line) for one in announced):
                    self._note("errors", path.name, line[:400])

    def _processes(self) -> None:
        before: dict[int, dict[str, int]] = {}
        for words in self.options.before:
            pid, *amounts = map(int, words.split(":"))
            before[pid] = dict(zip(NOISE, amounts, strict=True))
        now = {pid: used for pid in self.options.pid if (used := usage(pid))}
        for pid, used in now.items():
            for what, noise in NOISE.items():
                had = before.get(pid, used)[what]
                if used[what] > had + noise:
                    self._note("held", "process", pid, "has", used[what], what, "and had", had)
        self.facts["processes"] = now

    def _times(self) -> None:
        """Seconds from a message's arrival, or the end of the faults, until it was processed."""
        first = {}
        for contents in self.served.messages.values():
            for sha256, at in contents:
                first[sha256] = min(at, first.get(sha256, at))
        waits = []
        for row in self.messages.values():
            done = _moment(row["processed_at"])
            if done is not None and row["sha256"] in first:
                start = max(first[row["sha256"]], self.options.fault_end)
                waits.append(max(0.0, done.timestamp() - start))
        self.facts["slowest"] = round(max(waits, default=0.0), 3)


def _moment(value: Any) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return value
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def usage(pid: int) -> dict[str, int]:
    """What a process has of each of ``NOISE``; nothing when it has ended."""
    root, links = Path(f"/proc/{pid}"), []
    try:
        threads = len(list((root / "task").iterdir()))
        for path in (root / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                links.append(str(path.readlink()))
    except (FileNotFoundError, ProcessLookupError):
        return {}
    connections = sum(link.startswith("socket:") for link in links)
    return {"descriptors": len(links), "threads": threads, "connections": connections}


def _size(client: "redis.Redis[bytes]", key: bytes) -> int:
    sizes: dict[bytes, Callable[[bytes], Any]] = {
        b"list": client.llen,
        b"set": client.scard,
        b"zset": client.zcard,
        b"hash": client.hlen,
    }
    size = sizes.get(client.type(key))
    return int(size(key)) if size else 1


def _keys_naming(url: str, names: Sequence[bytes]) -> Iterator[str]:
    """Keys in whose name or value one of these occurs."""
    client = redis.Redis.from_url(url, socket_timeout=10)
    readers: dict[bytes, Callable[[bytes], Any]] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
    }
    for key in client.scan_iter(count=1_000):
        reader = readers.get(client.type(key))
        text = key + (repr(reader(key)).encode() if reader else b"")
        if any(name and name in text for name in names):
            yield key.decode(errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.checker", description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--store", action="append", default=[], help="file:// or s3://, each one")
    parser.add_argument("--redis", default="")
    parser.add_argument("--deleted", action="append", default=[], metavar="UUID:ADDRESS")
    parser.add_argument("--canary", action="append", default=[])
    parser.add_argument("--search", action="append", type=Path, default=[])
    parser.add_argument("--log", action="append", type=Path, default=[])
    parser.add_argument("--announced", action="append", default=[], help="expected in a log")
    parser.add_argument("--pid", action="append", type=int, default=[])
    parser.add_argument("--before", action="append", default=[], metavar="PID:FDS:THREADS:SOCKETS")
    parser.add_argument("--gc", type=float, default=86_400, help="age of an orphan in seconds")
    parser.add_argument("--fault-end", type=float, default=0.0)
    parser.add_argument("--settled", action="store_true", help="nobody has work in hand")
    parser.add_argument("--dead", action="store_true", help="queues may have dead messages")
    parser.add_argument("--failed", action="store_true", help="messages may have failed")
    parser.add_argument("--unreadable", action="store_true", help="any verdict is good enough")
    found = Checker(parser.parse_args()).run()
    json.dump(found, sys.stdout, indent=1, default=str)
    print()
    return 1 if any(found[name] for name in SETS) else 0


if __name__ == "__main__":
    sys.exit(main())
