"""A look at the installation itself: is everything set up as it should be, and what to do if not.

Each check uses what it looks at as mailpoll does, leaves nothing behind, and outlives what is
broken: one that fails stops none of the others.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from uuid import uuid4

import peewee
import redis
from peewee import fn

from . import alarms, database, keys, migrate, queues, spool
from .blobs import (
    BlobCorrupt,
    BlobMissing,
    Form,
    NewBlob,
    StoreUnavailable,
    blob_key,
    storage_from_url,
)
from .broker import Broker, make_broker
from .imap import ImapError, Login
from .imap import connection as steps
from .models import EmailAccount
from .settings import Settings, SettingsError

#: Seconds that clocks may be apart; periodiq drops ticks at 30.
CLOCKS = 5
#: Mail servers that are looked at: those with the most accounts.
SERVERS = 10


class State(StrEnum):
    OK = "ok"
    CONCERN = "concern"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw.

    Parameters:
      check: its name.
      detail: what is, or what is wrong, in words and without secrets.
      advice: what to do; empty when all is well.
      milliseconds: that it took.
    """

    check: str
    state: State
    detail: str
    advice: str = ""
    milliseconds: int = 0


#: State, detail, advice.
Seen = tuple[State, str, str]


def run(config: Settings) -> Iterator[Finding]:
    """Every check in turn, when it has ended."""
    broker = make_broker(config)
    checks: list[tuple[str, Callable[[], list[Seen]]]] = [
        ("settings", lambda: _settings(config)),
        ("database", lambda: _database(config)),
        ("keys", lambda: _keys(config)),
        ("redis", lambda: _redis(broker)),
        ("store", lambda: _store(config)),
        ("clocks", lambda: _clocks(broker)),
        ("scheduler", lambda: [_alarm("scheduler_silent", broker, "ticks are carried out")]),
        ("disk", lambda: [_alarm("disk_full", broker, "the data directory has room")]),
        ("alarms", _standing),
        ("mail servers", lambda: _servers(config)),
    ]
    for name, check in checks:
        start = time.monotonic()
        seen = _outlived(check)
        took = round((time.monotonic() - start) * 1_000)
        for state, detail, advice in seen:
            yield Finding(name, state, detail, advice, took)


def _outlived(check: Callable[[], list[Seen]]) -> list[Seen]:
    """What a check saw; a part that is away is named by the check that is about it."""
    try:
        return check()
    except (*database.AWAY, peewee.ProgrammingError):
        return [(State.CONCERN, "not looked at: the database is not ready", "")]
    except redis.RedisError:
        return [(State.CONCERN, "not looked at: Redis does not answer", "")]
    except OSError as error:
        return [(State.CONCERN, f"not looked at: {error.filename}: {error.strerror}", "")]


def _settings(config: Settings) -> list[Seen]:
    given = sum(shown.is_set for shown in config.public())
    found = [(State.CONCERN, words, "see docs/configuration.md") for words in config.concerns()]
    return [(State.OK, f"{given} variables are set, and all are valid", ""), *found]


def _database(config: Settings) -> list[Seen]:
    start = time.monotonic()
    try:
        with database.connected():
            database.proxy.execute_sql("SELECT 1")
    except database.AWAY as error:
        reason = type(error).__name__
        return [(State.WRONG, f"does not answer ({reason})", "check DATABASE_URL and the server")]
    took = (time.monotonic() - start) * 1_000
    name = "SQLite" if database.is_sqlite() else "PostgreSQL"
    if pending := migrate.pending():
        words = f"{len(pending)} migrations have not run: {', '.join(pending)}"
        return [(State.WRONG, words, "run mailpoll migrate")]
    if database.is_pooled() and not config.database_pooler:
        words = "a pooler gives connections for one transaction each, and nobody has said so"
        return [(State.WRONG, words, "set MAILPOLL_DATABASE_POOLER=yes")]
    with database.connected():
        accounts = EmailAccount.select().count()
    return [(State.OK, f"{name} answers in {took:.1f} ms, and has {accounts:,} accounts", "")]


def _keys(config: Settings) -> list[Seen]:
    try:
        keys.require(config)
    except SettingsError as error:
        return [(State.WRONG, str(error), "put the key back, or see docs/operations.md")]
    return [(State.OK, "every stored secret has its key", "")]


def _redis(broker: Broker) -> list[Seen]:
    try:
        state = queues.redis_state(broker)
        version = broker.client.info("server")["redis_version"]
    except redis.RedisError as error:
        advice = "check REDIS_URL, or start mailpoll up, which brings its own"
        return [(State.WRONG, f"does not answer ({type(error).__name__})", advice)]
    found = [(State.OK, f"version {version}, {state.memory:.0%} of its memory is used", "")]
    if not broker.bell.may_ring():
        words = "its user may use no channel: each task is seen up to a second late"
        found.append((State.CONCERN, words, f"give the user channels: &{broker.namespace}:*"))
    if not state.keeps:
        words = "it may throw tasks away when it is full"
        found.append((State.WRONG, words, "set its maxmemory-policy to noeviction"))
    if state.memory > alarms.MEMORY:
        found.append((State.CONCERN, "its memory is nearly full", "give it more memory"))
    return found


def _store(config: Settings) -> list[Seen]:
    """Write, read and delete a blob of an account that there is not, in the clear."""
    storage = storage_from_url(config.storage, None, Form(), spool.directory)
    store = storage.stores[storage.primary_type]
    content = secrets.token_bytes(1_000)
    digest = hashlib.sha256(content).hexdigest()
    account = str(uuid4())
    key = blob_key(account, digest)
    start = time.monotonic()
    try:
        store.check()
        store.put([NewBlob(key, len(content), digest, content)])
        try:
            with store.open(key) as blob:
                same = blob.read() == content
        finally:
            store.delete_account(account)
        gone = not store.exists(key)
    except (StoreUnavailable, BlobMissing, BlobCorrupt) as error:
        return [(State.WRONG, str(error), "check STORAGE_URL, its credentials and its bucket")]
    if not same or not gone:
        words = "gave other bytes back" if not same else "still has what was deleted"
        return [(State.WRONG, words, "check what stands between mailpoll and the store")]
    took = (time.monotonic() - start) * 1_000
    return [(State.OK, f"wrote, read and deleted a blob in {took:.0f} ms", "")]


def _clocks(broker: Broker) -> list[Seen]:
    """By how much the database's and Redis' clocks are ahead of this machine's, in seconds."""
    seconds, microseconds = broker.client.time()
    here = datetime.now(UTC)
    ahead = {
        "Redis": seconds + microseconds / 1e6 - here.timestamp(),
        "the database": (database.now() - here).total_seconds(),
    }
    wrong = {name: by for name, by in ahead.items() if abs(by) > CLOCKS}
    if wrong:
        words = ", ".join(f"{name} is {by:+.0f} s from this machine" for name, by in wrong.items())
        return [(State.WRONG, words, "keep the clocks of all machines right with NTP")]
    most = max(abs(by) for by in ahead.values())
    return [(State.OK, f"within {most:.1f} s of this machine's", "")]


def _alarm(name: str, broker: Broker, well: str) -> Seen:
    """What an alarm sees now, whether it was told of or not."""
    found = alarms.ALARMS[name].look(broker)
    if found is None:
        return State.OK, well, ""
    return State.WRONG, found.words, alarms.ALARMS[name].advice


def _standing() -> list[Seen]:
    """Alarms that hold, and that no other check is about."""
    elsewhere = {"redis", "storage_away", "scheduler_silent", "disk_full"}
    holding = [
        alarm
        for alarm in alarms.known()
        if alarm.cleared_at is None and alarm.name not in elsewhere
    ]
    found = [(State.CONCERN, one.words, alarms.ALARMS[one.name].advice) for one in holding]
    return found or [(State.OK, "no other holds", "")]


def _servers(config: Settings) -> list[Seen]:
    """Whether mail servers can be reached; logs in nowhere."""
    table = EmailAccount
    with database.connected():
        rows = (
            table.select(table.host, table.port, table.security, fn.COUNT(table.id))
            .where(table.host != "")
            .group_by(table.host, table.port, table.security)
            .order_by(fn.COUNT(table.id).desc(), table.host)
            .limit(SERVERS)
            .tuples()
        )
        places = list(rows)
    found = [_server(config, *place) for place in places]
    return found or [(State.OK, "no account has one yet", "")]


def _server(config: Settings, host: str, port: int, security: str, accounts: int) -> Seen:
    login = Login(host, port, security, "", "password", "")
    try:
        steps.dial(login, steps.reach(login, config), config.imap_connect_timeout).close()
    except ImapError as error:
        advice = "check the way out: DNS, firewall, proxy; then mailpoll doctor ADDRESS"
        return State.WRONG, f"{error} ({accounts:,} accounts)", advice
    return State.OK, f"{host}:{port} can be reached ({accounts:,} accounts)", ""
