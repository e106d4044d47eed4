"""What each step costs in small and large installations, and what a second worker process brings.

``python -m bench.growth [--set embedded|production] [--largest N] [--json]`` writes
``docs/performance/growth.json`` when told to; without ``--set``, both sets are measured.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import falcon.testing

from bench import machine
from bench.corpus import mailbox
from bench.filled import FOLDERS, HEAVY, Filling, sha256, uuid
from mailpoll import accounts, database, migrate, runtime
from mailpoll.blobs import LocalFiles, Storage, StorageType
from mailpoll.imap import Folder
from mailpoll.models import EmailAccount, EmailFolder, EmailJob, EmailRawMessage
from mailpoll.settings import new_key, new_token, settings
from mailpoll.sync import LEASE
from mailpoll.sync.download import Batch, Body
from mailpoll.sync.ledger import Ledger
from tests.servers.postgres import Postgres
from tests.servers.seaweed import Seaweed
from tests.servers.valkey import Flavour, Valkey

SETS = ("embedded", "production")
Sizes = Sequence[tuple[int, int]]
#: Accounts and messages.
SIZES: Sizes = ((100, 10_000), (1_000, 100_000), (5_000, 1_000_000))
RESULT = Path(__file__).parent.parent / "docs" / "performance" / "growth.json"
TOKEN = new_token()
#: Messages of a commit, and of the run that counts worker processes.
BATCH = 100
WAITING = 5_000


@dataclass(frozen=True)
class Step:
    """Something that is measured: ``run`` answers how many units it did."""

    name: str
    run: Callable[[], int]
    prepare: Callable[[], object] = lambda: None
    times: int = 25


@dataclass
class Servers:
    """The backing of one set."""

    name: str
    directory: Path
    stack: ExitStack
    postgres: Postgres | None = None
    seaweed: Seaweed | None = None
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def start(self) -> None:
        production = self.name == "production"
        flavour = Flavour.REDIS if production else Flavour.VALKEY
        self.redis = Valkey(self.directory / "redis", flavour)
        self.stack.enter_context(self.redis)
        if production:
            self.postgres = Postgres(self.directory / "postgres", durable=True)
            self.stack.enter_context(self.postgres)
            self.seaweed = Seaweed(self.directory / "seaweed")
            self.stack.enter_context(self.seaweed)

    @contextmanager
    def installation(self) -> Iterator[None]:
        """An empty, migrated mailpoll that this process is set up for."""
        name = f"growth{next(self.numbers)}"
        data = self.directory / name
        os.environ |= {
            "MAILPOLL_DATA_DIR": str(data),
            "MAILPOLL_SECRET_KEY": new_key(),
            "MAILPOLL_API_TOKEN": TOKEN,
            "MAILPOLL_LOG_LEVEL": "error",
            "REDIS_URL": self.redis.url,
        }
        if self.postgres and self.seaweed:
            os.environ["DATABASE_URL"] = self.postgres.create_database(name)
            os.environ["STORAGE_URL"] = self.seaweed.url_of(name)
        self.redis.flush()
        for cached in (settings, runtime.storage, runtime.keyring):
            cached.cache_clear()
        database.close_database()
        runtime.start()
        migrate.migrate()
        try:
            yield
        finally:
            database.close_database()
            if self.postgres:
                self.postgres.drop_database(name)


class Steps:
    """The steps of one filled installation."""

    def __init__(self, filling: Filling) -> None:
        from mailpoll.web.app import create_app

        self.filling = filling
        self.random = random.Random(1)
        self.api = falcon.testing.TestClient(
            create_app(), headers={"Authorization": f"Bearer {TOKEN}"}
        )
        # Local files on both sets: their flush differs less than an object store's answer does.
        files = LocalFiles(settings().data_dir / "blobs")
        self.storage = Storage(files, StorageType.LOCAL, None)
        self.uids = itertools.count(filling.messages + 1)
        self.committed: list[int] = []

    def all(self) -> list[Step]:
        found = [
            Step("claim a due account", self.claim, self.make_due, 9),
            Step("lease and release a poll", self.lease, times=200),
            Step("rows of a poll's folders", self.folders, times=200),
            Step("commit a message, in batches of 100", lambda: self.commit(self.ordinary())),
            Step("the same, into a large mailbox", lambda: self.commit(2)),
            Step("process a message", self.process, times=1_000),
            Step("sweeper's look at both lanes", self.sweep),
            *self.requests(),
        ]
        if self.filling.object_store:
            found.append(Step("page of blobs that fell back", self.drain))
        return [
            *found,
            Step(
                "delete a message, ordinary mailbox", lambda: self.delete(self.ordinary()), times=5
            ),
            Step("delete a message, large mailbox", lambda: self.delete(3), times=1),
        ]

    def ordinary(self) -> int:
        return self.random.randrange(HEAVY + 1, self.filling.accounts + 1)

    # The engine's steps

    def make_due(self) -> None:
        with database.transaction():
            EmailAccount.update(queued_until=None, next_poll_at=database.now()).execute()

    def claim(self) -> int:
        claimed = 0
        while found := EmailAccount.claim_due(timedelta(seconds=65), 1_000):
            claimed += len(found)
        return claimed

    def lease(self) -> int:
        account = EmailAccount.lease(self.ordinary(), None, LEASE)
        assert account is not None
        account.release(last_poll_ms=80, last_success_at=database.now(), failures=0)
        return 1

    def folders(self) -> int:
        listed = [Folder(name.encode(), name, None, None) for name in FOLDERS]
        assert len(self.ledger(self.ordinary()).folders(listed)) == len(FOLDERS)
        return 1

    def ledger(self, account_id: int) -> Ledger:
        with database.connected():
            account = EmailAccount.get_by_id(account_id)
        return Ledger(account, self.storage, settings(), self.announce)

    def announce(self, ids: Sequence[int], imported: bool) -> None:  # noqa: ARG002
        self.committed += ids

    def commit(self, account_id: int) -> int:
        with database.connected():
            folder = EmailFolder.get(EmailFolder.account == account_id, EmailFolder.name == "INBOX")
        batch = Batch(list(self.bodies(mailbox(next(self.uids), BATCH))))
        high = batch.bodies[-1].uid
        return self.ledger(account_id).commit(folder, batch, {"high": high}, imported=False)

    def bodies(self, raws: Iterator[bytes]) -> Iterator[Body]:
        moment = datetime.now(UTC)
        for raw in (whole[:12_000] for whole in raws):
            digest = hashlib.sha256(raw).hexdigest()
            yield Body(next(self.uids), moment, digest, len(raw), raw, len(raw), moment, None)

    def process(self) -> int:
        from mailpoll.actors.process import process

        process([self.committed.pop()])
        return 1

    def sweep(self) -> int:
        for imported in (False, True):
            EmailRawMessage.lost(1_000, imported=imported)
        return 1

    def drain(self) -> int:
        from mailpoll.actors.maintain import local_blobs

        assert next(local_blobs(EmailRawMessage))
        return 1

    def delete(self, account_id: int) -> int:
        from mailpoll.actors import delete_account

        job = accounts.delete(uuid(account_id))
        assert job is not None
        delete_account.fn(job.id)
        with database.connected():
            return int(EmailJob.get_by_id(job.id).counts["email_raw_messages"])

    # Requests

    def requests(self) -> list[Step]:
        half = self.filling.messages // 2
        known = next(n for n in range(half, self.filling.messages) if self.filling.owner(n) == 1)
        largest = f"/admin/email-accounts/{uuid(1)}"
        messages = f"{largest}/messages"
        deep = self.deep_cursor()
        recent = (datetime.now(UTC) - timedelta(days=300)).date()
        paths = {
            "statistics of all": "/admin/stats",
            "metrics": "/metrics",
            "statistics of the largest mailbox": f"{largest}/stats",
            "statistics of an ordinary mailbox": f"/admin/email-accounts/{uuid(50)}/stats",
            "accounts, first page": "/admin/email-accounts",
            "accounts by state": "/admin/email-accounts?state=paused",
            "accounts by part of the address": "/admin/email-accounts?address=user00077",
            "a message": f"/admin/messages/{known}",
            "messages, newest": messages,
            "messages, page far back": f"{messages}?cursor={deep}",
            "messages since and before": f"{messages}?since={recent}&before={recent}T12:00",
            "messages before": f"{messages}?before={recent}",
            "messages processed": f"{messages}?status=processed",
            "messages failed": f"{messages}?status=failed",
            "messages stored": f"{messages}?status=stored",
            "messages failed, far back": f"{messages}?status=failed&cursor={deep}",
            "messages of the inbox": f"{messages}?folder=INBOX",
            "messages of the archive": f"{messages}?folder=Archive",
            "messages of the archive, far back": f"{messages}?folder=Archive&cursor={deep}",
            "messages of the archive, failed": f"{messages}?folder=Archive&status=failed",
            "messages of a small folder": f"{messages}?folder=Junk",
            "messages of an empty folder": f"{messages}?folder=Drafts",
            "messages of no folder": f"{messages}?folder=None",
            "message by hash": f"{messages}?sha256={sha256(known)}",
            "message by Message-ID": f"{messages}?message_id={known}@example.org",
            "message by unknown Message-ID": f"{messages}?message_id=unknown@example.org",
            "message by Message-ID and folder": (
                f"{messages}?message_id={known}@example.org&folder=INBOX"
            ),
        }
        return [Step(f"GET {name}", partial(self.get, path)) for name, path in paths.items()]

    def get(self, path: str) -> int:
        answer = self.api.simulate_get(path)
        assert answer.status_code == 200, answer.text
        return 1

    def deep_cursor(self) -> str:
        """A cursor nine tenths down the largest mailbox."""
        from mailpoll.web import paging

        number = self.filling.messages // 10
        return paging.encode(self.filling.arrived(number), number)


def cost(step: Step) -> float:
    """Milliseconds of one unit: the median of many runs, after one that warms up."""
    if step.times > 1 and not step.name.startswith("delete"):
        step.prepare()
        step.run()
    found = []
    for _ in range(step.times):
        step.prepare()
        start = time.perf_counter()
        units = step.run()
        found.append((time.perf_counter() - start) / units * 1_000)
    return statistics.median(found)


def measure_set(name: str, sizes: Sizes) -> tuple[dict[str, list[float]], dict[int, float]]:
    """The cost of each step at each size, and messages a second by worker processes."""
    with tempfile.TemporaryDirectory(prefix="mailpoll-growth-") as path, ExitStack() as stack:
        Path(path).chmod(0o755)
        servers = Servers(name, Path(path), stack)
        servers.start()
        speeds = {number: throughput(servers, number) for number in (1, 2)}
        say(f"{name}: {speeds}")
        return measure(servers, sizes), speeds


def measure(servers: Servers, sizes: Sizes) -> dict[str, list[float]]:
    """Milliseconds of each step at each size."""
    found: dict[str, list[float]] = {}
    for count, messages in sizes:
        with servers.installation():
            filling = Filling(count, messages, servers.name == "production")
            say(f"{servers.name}: {count:,} accounts, {messages:,} messages")
            filling.fill(settings().database)
            say("filled")
            for step in Steps(filling).all():
                found.setdefault(step.name, []).append(cost(step))
                say(f"  {step.name}: {found[step.name][-1]:.3f} ms")
    return found


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def throughput(servers: Servers, processes: int) -> float:
    """Messages a second of ``mailpoll worker`` with so many processes."""
    with servers.installation():
        from mailpoll.actors import poll

        account = accounts.create(
            address="user@example.org", password="-", host="imap.example.org", port=993, test=False
        )
        with database.connected():
            folder = EmailFolder.create(
                account=account, wire_name="INBOX", name="INBOX", uidvalidity=1, low=1, high=0
            )
        leased = EmailAccount.lease(account.id, None, 3_600)
        assert leased is not None
        ledger = Ledger(leased, runtime.storage(), settings(), poll.announce)
        mail = mailbox(0, WAITING)
        for uid in range(1, WAITING, BATCH):
            moment = datetime.now(UTC)
            bodies = [
                Body(
                    uid + place,
                    moment,
                    hashlib.sha256(raw).hexdigest(),
                    len(raw),
                    raw,
                    len(raw),
                    moment,
                    None,
                )
                for place, raw in enumerate(itertools.islice(mail, BATCH))
            ]
            ledger.commit(folder, Batch(bodies), {"high": uid + BATCH - 1}, imported=False)
        with worker(processes):
            return speed()


@contextmanager
def worker(processes: int) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "mailpoll", "worker"],
        env={**os.environ, "MAILPOLL_WORKER_PROCESSES": str(processes)},
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def speed() -> float:
    """Messages a second, from the first that are seen processed until the last."""
    table = EmailRawMessage
    begun: tuple[float, int] | None = None
    while True:
        with database.connected():
            left = table.select().where(table.status == "stored").count()
        moment = time.monotonic()
        if left < WAITING and begun is None:
            begun = moment, left
        if not left and begun:
            return begun[1] / (moment - begun[0])
        time.sleep(0.1)


def report(
    costs: dict[str, dict[str, list[float]]], speeds: dict[str, dict[int, float]], sizes: Sizes
) -> dict[str, Any]:
    """The document that ``docs/performance.md`` is made from."""
    labels = [f"{count:,} / {messages:,}" for count, messages in sizes]
    tables = [
        {
            "title": f"Milliseconds per unit, {name} set (accounts / messages)",
            "columns": ["step", *labels, "last / first"],
            "rows": [
                [step, *(round(ms, 3) for ms in row), round(row[-1] / row[0], 2)]
                for step, row in found.items()
            ],
        }
        for name, found in costs.items()
    ]
    if speeds:
        tables.append(
            {
                "title": "Messages a second by worker processes",
                "columns": ["set", *map(str, next(iter(speeds.values())))],
                "rows": [[name, *map(round, found.values())] for name, found in speeds.items()],
            }
        )
    return {
        "title": "Growth",
        "machine": machine.describe(),
        "date": date.today().isoformat(),
        "text": [TEXT_OF_REPORT],
        "tables": tables,
        "plots": [
            {
                "name": f"growth-{name}",
                "title": f"Cost by stored messages, {name} set",
                "kind": "lines",
                "x": [messages for _, messages in sizes],
                "x_label": "stored messages",
                "y_label": "ms",
                "log": True,
                "series": {step: found[step] for step in PLOTTED if step in found},
            }
            for name, found in costs.items()
        ],
    }


TEXT_OF_REPORT = (
    "The same steps on databases of three sizes, each filled with the rows of a long-running "
    "installation: three mailboxes have a twentieth of all mail each, and the requests are about "
    "the largest. Median of many runs, with warm caches, one process."
)
PLOTTED = (
    "lease and release a poll",
    "commit a message, in batches of 100",
    "process a message",
    "GET statistics of all",
    "GET messages, page far back",
    "GET messages of the archive",
    "GET messages failed",
    "delete a message, large mailbox",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--set", choices=SETS, help="default: both")
    parser.add_argument("--largest", type=int, help="leave out sizes with more messages")
    parser.add_argument("--json", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    sizes = [size for size in SIZES if size[1] <= (options.largest or size[1])]
    costs: dict[str, dict[str, list[float]]] = {}
    speeds: dict[str, dict[int, float]] = {}
    for name in [options.set] if options.set else SETS:
        # A process of its own: mailpoll sets itself up for one queue when it is imported.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            costs[name], speeds[name] = pool.submit(measure_set, name, sizes).result()
    document = report(costs, speeds, sizes)
    print(json.dumps(document["tables"], indent=1))
    if options.json:
        RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
