"""How long searches take among 100,000 and more messages, and how large their index is.

``python -m bench.search [--set embedded|production] [--messages N,N] [--json]`` fills a database
with text in which words are as frequent as in a language, and asks for rare, common and combined
words through the API. ``--json`` writes ``docs/performance/search.json``, where figures of other
sets and numbers stay as they are.
"""

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import falcon.testing

from bench import machine
from bench.filled import sha256, uuid
from bench.growth import SETS, TOKEN, Servers, say
from mailpoll import database, search
from mailpoll.database import Statement

RESULT = Path(__file__).parent.parent / "docs" / "performance" / "search.json"
#: Accounts; the first has a tenth of all mail.
ACCOUNTS = 100
#: Days over which the mail is spread.
SPAN = 1_000
#: Words of the language, and messages that are written together.
VOCABULARY, CHUNK = 150_000, 2_000
#: Requests of each kind.
TIMES = 20
SYLLABLES = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er")]

ACCOUNT = Statement("""
    INSERT INTO email_accounts (id, uuid, address, host, port, security, username, auth, credential,
        data_key, poll_interval, state, next_poll_at, created_at, updated_at)
    VALUES (?, ?, ?, '-', 993, 'tls', '-', 'password', '-', '-', 60, 'paused', ?, ?, ?)
""")
MESSAGE = Statement("""
    INSERT INTO email_raw_messages (id, account_id, sha256, size, storage_type, storage_key,
        internal_date, stored_at, imported, status, attempts, processed_at, subject,
        from_addresses, to_addresses, date, attachment_count, thread_id, text_body)
    VALUES (?, ?, ?, ?, 'local', ?, ?, ?, ?, 'processed', 1, ?, ?, ?, ?, ?, ?, ?, ?)
""")


FOLDER = Statement("""
    INSERT INTO email_folders
        (id, account_id, wire_name, name, special_use, uidvalidity, generation)
    VALUES (?, ?, ?, ?, ?, 1, 0)
""")
LOCATION = Statement("""
    INSERT INTO email_locations (id, folder_id, uidvalidity, generation, uid, message_id,
        message_date, seen_at, expunged_at, flags)
    VALUES (?, ?, 1, 0, ?, ?, ?, ?, ?, ?)
""")
FLAG = Statement("""
    INSERT INTO email_flags (location_id, flag, account_id, folder_id, message_date, message_id)
    VALUES (?, ?, ?, ?, ?, ?)
""")
#: The folders of an account: name, special use, and one of how many messages lies there.
FOLDERS = (("Projects/Rare", None, 5_000), ("Archive", "\\Archive", 3), ("INBOX", None, 1))
#: Flags, and one of how many messages has each; "" stands for a message without ``\Seen``.
FLAGS = {"": 10, "\\flagged": 100, "rarity": 5_000}
#: One of so many messages is in Chinese, and one has left its folder.
CHINESE, EXPUNGED = 50, 200


class Language:
    """Words by how frequent they are: the n-th is used 1 / n times as often as the first (Zipf)."""

    def __init__(self) -> None:
        chance = random.Random(7)
        made = (
            "".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))) for _ in itertools.count()
        )
        self.words = list(
            itertools.islice(dict.fromkeys(itertools.islice(made, 400_000)), VOCABULARY)
        )
        weights = (1 / (rank + 2.7) for rank in range(len(self.words)))
        self.weights = list(itertools.accumulate(weights))

    def text(self, chance: random.Random, length: int) -> list[str]:
        return chance.choices(self.words, cum_weights=self.weights, k=length)

    @staticmethod
    def chinese(chance: random.Random, length: int) -> str:
        """Characters of which a few hundred are most of a text."""
        return "".join(chr(0x4E00 + int(2_500 * chance.random() ** 3)) for _ in range(length))


@dataclass
class Written:
    """A message, and what the benchmark remembers of it."""

    number: int
    account: int
    moment: datetime
    subject: str
    sender: str
    recipient: str
    text: str
    attached: bool


def messages(language: Language, count: int) -> Iterator[Written]:
    chance = random.Random(11)
    end = datetime.now(UTC)
    people = [" ".join(language.text(chance, 2)).title() for _ in range(5_000)]
    for number in range(1, count + 1):
        length = min(3_000, max(5, int(chance.lognormvariate(4.8, 0.9))))
        first = 1 if number % 10 == 0 else 2 + number * 2_654_435_761 % (ACCOUNTS - 1)
        words = language.text(chance, length)
        subject = " ".join(language.text(chance, chance.randint(2, 8))).capitalize()
        text = "\n".join(" ".join(line).capitalize() + "." for line in lines(words))
        if number % CHINESE == 0:
            subject, text = language.chinese(chance, 10), language.chinese(chance, length)
        yield Written(
            number,
            first,
            end - timedelta(days=SPAN) * (1 - number / count),
            subject,
            chance.choice(people),
            chance.choice(people),
            text,
            number % 9 == 0,
        )


def lines(words: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(words), 12):
        yield words[start : start + 12]


def fill(language: Language, count: int) -> dict[str, float]:
    """Write the messages and index them as workers do; milliseconds a message of each step."""
    spent = dict.fromkeys(("make words", "write index"), 0.0)
    now = database.timestamp(datetime.now(UTC))
    with database.transaction():
        for number in range(1, ACCOUNTS + 1):
            ACCOUNT.run(number, uuid(number), f"user{number}@example.org", now, now, now)
            for place, (name, use, _) in enumerate(FOLDERS):
                FOLDER.run(number * len(FOLDERS) + place, number, name, name, use)
    for some in chunks(messages(language, count), CHUNK):
        started = time.perf_counter()
        prepared = [prepare(one) for one in some]
        spent["make words"] += time.perf_counter() - started
        with database.transaction(durable=False):
            MESSAGE.run_many([row(one) for one in some])
            LOCATION.run_many([location(one) for one in some])
            FLAG.run_many([flag for one in some for flag in flags(one)])
            started = time.perf_counter()
            search.add(prepared)
            spent["write index"] += time.perf_counter() - started
        if some[-1].number % 100_000 == 0:
            say(f"  {some[-1].number:,} messages")
    return {name: seconds * 1_000 / count for name, seconds in spent.items()}


def chunks(items: Iterator[Written], size: int) -> Iterator[list[Written]]:
    while some := list(itertools.islice(items, size)):
        yield some


def address(name: str) -> str:
    return f"{name.lower().replace(' ', '.')}@example.org"


def prepare(one: Written) -> search.Prepared:
    content = search.Content(
        subject=one.subject,
        senders=[f"{one.sender} {address(one.sender)}"],
        recipients=[f"{one.recipient} {address(one.recipient)}"],
        others=[],
        files=[f"{one.subject.split()[0]}.pdf"] if one.attached else [],
        text=one.text,
        attached=one.attached,
        reply=False,
    )
    return search.prepare(one.account, one.number, len(one.text), one.moment, content)


def row(one: Written) -> tuple[Any, ...]:
    moment, digest = database.timestamp(one.moment), sha256(one.number)
    sender, recipient = (
        database.json([{"name": name, "address": address(name)}])
        for name in (one.sender, one.recipient)
    )
    return (
        *(one.number, one.account, digest, len(one.text), f"{uuid(one.account)}/{digest}"),
        *(moment, moment, bool(one.number % 2), moment, one.subject, sender, recipient, moment),
        *(int(one.attached), one.number - one.number % 3, one.text),
    )


def folder_of(one: Written) -> int:
    place = next(at for at, (_, _, each) in enumerate(FOLDERS) if one.number % each == 0)
    return one.account * len(FOLDERS) + place


def location(one: Written) -> tuple[Any, ...]:
    moment = database.timestamp(one.moment)
    left = moment if one.number % EXPUNGED == 0 else None
    told = database.json([flag for flag, each in FLAGS.items() if flag and one.number % each == 0])
    place = (one.number, folder_of(one), one.number, one.number)
    return (*place, moment, moment, left, told)


def flags(one: Written) -> Iterator[tuple[Any, ...]]:
    if one.number % EXPUNGED:
        moment = database.timestamp(one.moment)
        for flag, each in FLAGS.items():
            if one.number % each == 0:
                yield one.number, flag, one.account, folder_of(one), moment, one.number


def settle() -> None:
    """Bring the database to the state of one that has been running for a while."""
    if database.is_sqlite():
        with database.connected():
            database.proxy.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return
    with database.connected():
        database.proxy.connection().autocommit = True
        database.proxy.execute_sql("VACUUM ANALYZE")


def sizes() -> dict[str, int]:
    """Bytes of the index, of the messages' rows and their text."""
    with database.connected():
        run = database.proxy.execute_sql
        (text,) = run("SELECT SUM(LENGTH(text_body)) FROM email_raw_messages").fetchone()
        if database.is_sqlite():
            tables = "name LIKE 'email_search%' OR name LIKE 'sqlite_autoindex_email_search%'"
            sql = f"SELECT SUM(pgsize) FROM dbstat WHERE {tables}"
            words = "SELECT SUM(pgsize) FROM dbstat WHERE name = 'email_search_index_data'"
        else:
            sql = "SELECT pg_total_relation_size('email_search')"
            words = "SELECT pg_relation_size('email_search_words')"
        found = {"text": int(text), "index": int(run(sql).fetchone()[0])}
        found["of it the inverted index"] = int(run(words).fetchone()[0])
    return found


Asked = Callable[[random.Random], str]


def questions(language: Language) -> dict[str, tuple[Asked, dict[str, Any]]]:
    """What is asked, by its name: the query, made anew each time, and the other parameters."""

    def word(low: int, high: int) -> Asked:
        return lambda chance: language.words[chance.randrange(low, high)]

    def several(*parts: Asked) -> Asked:
        return lambda chance: " ".join(part(chance) for part in parts)

    def wrapped(form: str, *parts: Asked) -> Asked:
        return lambda chance: form.format(*(part(chance) for part in parts))

    rare, middling, common = word(20_000, 60_000), word(1_000, 3_000), word(30, 200)
    every = word(0, 5)
    return {
        "a rare word": (rare, {}),
        "a middling word": (middling, {}),
        "a common word": (common, {}),
        "a word of nearly all messages": (every, {}),
        "the same by date": (every, {"sort": "date"}),
        "two common words": (several(common, common), {}),
        "a common and a middling word": (several(common, middling), {}),
        "a phrase of common words": (wrapped('"{} {}"', word(0, 30), word(0, 30)), {}),
        "a prefix": (lambda chance: rare(chance)[:4] + "*", {}),
        "a sender": (wrapped("from:{}", word(100, 3_000)), {}),
        "subject and attachment": (wrapped("subject:{} has:attachment", common), {}),
        "either of two": (wrapped("{} OR {}", middling, middling), {}),
        "one without another": (wrapped("{} -{}", middling, common), {}),
        "a common word of a month": (
            wrapped("{} newer_than:90d older_than:60d", common),
            {},
        ),
        "a common word in large mail": (wrapped("{} larger:10k", common), {}),
        "a common word in a large mailbox": (common, {"account": uuid(1)}),
        "a common word in an ordinary mailbox": (common, {"account": uuid(50)}),
        "nothing but an attachment": (lambda _: "has:attachment", {"sort": "date"}),
        "nothing but unread": (lambda _: "is:unread", {}),
        "a common word in unread mail": (wrapped("{} is:unread", common), {}),
        "nothing but a rare label": (lambda _: "label:rarity", {}),
        "a common word with a rare label": (wrapped("{} label:rarity", common), {}),
        "nothing but a folder": (lambda _: "in:archive", {}),
        "a common word in a folder": (wrapped("{} in:archive", common), {}),
        "nothing but a rare folder": (lambda _: "in:projects/rare", {}),
        "nothing but very large mail": (lambda _: "larger:18k", {}),
        "nothing but what has left": (lambda _: "is:expunged", {}),
        "nothing but a thread": (lambda chance: f"thread:{3 * chance.randrange(1, 3_000)}", {}),
        "two Chinese characters": (lambda chance: language.chinese(chance, 2), {}),
        "four Chinese characters": (lambda chance: language.chinese(chance, 4), {}),
        "a word that nobody used": (lambda _: "xylophonist", {}),
    }


@dataclass
class Times:
    """Milliseconds of requests: the fastest of three tries, and the processors' part of it."""

    elapsed: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def ask(language: Language) -> dict[str, Times]:
    """How long each request takes, by what is asked."""
    from mailpoll.web.app import create_app

    api = falcon.testing.TestClient(create_app(), headers={"Authorization": f"Bearer {TOKEN}"})
    chance = random.Random(3)
    found: dict[str, Times] = {}
    for name, (asked, more) in questions(language).items():
        for _ in range(TIMES):
            params = {"q": asked(chance), **more}
            get = partial(api.simulate_get, "/admin/search", params=params)
            tries = [seconds(get) for _ in range(3)]
            times = found.setdefault(name, Times())
            times.elapsed.append(min(elapsed for elapsed, _ in tries) * 1_000)
            times.cpu.append(min(cpu for _, cpu in tries) * 1_000)
        say(f"  {name}: {', '.join(f'{f(found[name]):.1f}' for f in FIGURES.values())}")
    return found


def seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """How long a request takes, and how much of a processor it takes here and in the database."""
    database_cpu = backend()
    used, started = time.process_time() + database_cpu(), time.perf_counter()
    answer = call()
    elapsed = time.perf_counter() - started
    assert answer.status_code == 200, answer.text
    return elapsed, time.process_time() + database_cpu() - used


def backend() -> Callable[[], float]:
    """Tells the seconds that PostgreSQL's process for this one's connection has run."""
    if database.is_sqlite():
        return lambda: 0.0
    with database.connected():  # the pool has one connection, as there is one thread
        (pid,) = database.proxy.execute_sql("SELECT pg_backend_pid()").fetchone()
    statistics_of_it = Path(f"/proc/{pid}/schedstat")
    return lambda: int(statistics_of_it.read_text().split()[0]) / 1e9


def p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


FIGURES: dict[str, Callable[[Times], float]] = {
    "median": lambda times: statistics.median(times.elapsed),
    "p95": lambda times: p95(times.elapsed),
    "p95 of CPU": lambda times: p95(times.cpu),
}


@dataclass
class Measured:
    """What one set told."""

    cost: dict[str, float]
    size: dict[str, int]
    times: dict[str, Times]


def measure(name: str, count: int) -> Measured:
    with tempfile.TemporaryDirectory(prefix="mailpoll-search-") as path, ExitStack() as stack:
        Path(path).chmod(0o755)
        servers = Servers(name, Path(path), stack)
        servers.start()
        with servers.installation():
            language = Language()
            say(f"{name}: {count:,} messages")
            cost = fill(language, count)
            settle()
            size = sizes()
            say(f"filled: {cost} {size}")
            return Measured(cost, size, ask(language))


def report(found: dict[int, dict[str, Measured]]) -> dict[str, Any]:
    """The document that ``docs/performance.md`` is made from, of each number of messages."""
    return {
        "title": "Search",
        "machine": machine.describe(),
        "date": date.today().isoformat(),
        "text": [TEXT_OF_REPORT],
        "tables": [table for count, measured in found.items() for table in tables(measured, count)],
        "plots": [],
    }


def tables(found: dict[str, Measured], count: int) -> list[dict[str, Any]]:
    asked = list(next(iter(found.values())).times)
    columns = [f"{name}, {what}" for name in found for what in FIGURES]
    rows: list[list[Any]] = [
        [one, *(figure(m.times[one]) for m in found.values() for figure in FIGURES.values())]
        for one in asked
    ]
    together = [
        Times(
            [ms for times in m.times.values() for ms in times.elapsed],
            [ms for times in m.times.values() for ms in times.cpu],
        )
        for m in found.values()
    ]
    rows.append(["all together", *(figure(one) for one in together for figure in FIGURES.values())])
    return [
        {
            "title": f"Milliseconds of a search among {count:,} messages, excerpts included",
            "columns": ["what is asked for", *columns],
            "rows": [[one, *(round(ms, 1) for ms in rest)] for one, *rest in rows],
        },
        {
            "title": f"Bytes a message, of {count:,}",
            "columns": ["what", *found],
            "rows": [
                [what, *(round(m.size[what] / count) for m in found.values())]
                for what in next(iter(found.values())).size
            ],
        },
        {
            "title": f"Milliseconds a message, when one of {count:,} is indexed",
            "columns": ["step", *found],
            "rows": [
                [what, *(round(m.cost[what], 3) for m in found.values())]
                for what in next(iter(found.values())).cost
            ],
        },
    ]


def joined(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tables with what other runs measured beside what this one did, of whose figures none stay."""
    fresh = {table["title"]: table for table in now}
    titles = [table["title"] for table in before]
    return [
        *(beside(table, fresh.get(table["title"], table)) for table in before),
        *(table for title, table in fresh.items() if title not in titles),
    ]


def beside(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The columns of both tables; a row that only one has keeps its other cells empty."""
    columns = list(dict.fromkeys([*before["columns"], *now["columns"]]))
    rows: dict[str, dict[str, Any]] = {}
    for table in (before, now):
        for row in table["rows"]:
            rows.setdefault(row[0], {}).update(zip(table["columns"], row, strict=True))
    filled = [[row.get(column) for column in columns] for row in rows.values()]
    return {"title": now["title"], "columns": columns, "rows": filled}


TEXT_OF_REPORT = (
    f"{TIMES} queries of each kind for the first 20 hits, ranked unless it says otherwise, by one "
    "process: each the fastest of three times. CPU is that of the process and of its "
    "database. Messages have 170 words in the mean, of 150,000 that are as frequent as those of a "
    "language."
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.search", description=__doc__)
    parser.add_argument("--set", choices=SETS, help="default: both")
    parser.add_argument("--messages", default="100000", help="how many, such as 100000,1000000")
    parser.add_argument("--json", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    found: dict[int, dict[str, Measured]] = {}
    for count in map(int, options.messages.split(",")):
        for name in [options.set] if options.set else SETS:
            # A process of its own: mailpoll sets itself up for one queue when it is imported.
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                measured = pool.submit(measure, name, count).result()
            found.setdefault(count, {})[name] = measured
            document = report(found)
            if options.json:
                before = json.loads(RESULT.read_text())["tables"] if RESULT.exists() else []
                document["tables"] = joined(before, document["tables"])
                RESULT.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["tables"], indent=1))


if __name__ == "__main__":
    main()
