"""The database connection: SQLite (WAL) or PostgreSQL, pooled, with explicit transactions.

Rules that the rest of the program keeps by using only ``connected`` and ``transaction``:
a thread holds a connection no longer than one unit of work, and every SQLite write transaction
starts with BEGIN IMMEDIATE (a deferred one fails at once with "database is locked" when two
processes write, whatever the busy time-out).
"""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from select import POLLIN, poll
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import orjson
import peewee
from playhouse.pool import (
    MaxConnectionsExceeded,
    PooledPostgresqlDatabase,
    PooledSqliteDatabase,
)

from . import turns

#: Milliseconds that a SQLite writer waits for another process's transaction.
BUSY_TIMEOUT = 30_000
#: Seconds between two looks at another process's transaction.
LOCK_PAUSE = 0.0005
#: SQLite: bytes of its log above which it is emptied, and milliseconds that readers get for it.
LOG_LIMIT, LOG_PATIENCE = 64_000_000, 500
#: Seconds that a thread waits for a free connection of the pool.
POOL_WAIT = 30
#: PostgreSQL, milliseconds: a lock is waited for as in SQLite; and a process that stands still in
#: the middle of a transaction (a frozen virtual machine, a debugger) gives its locks up.
LIMITS = {"lock_timeout": BUSY_TIMEOUT, "idle_in_transaction_session_timeout": 60_000}
#: PostgreSQL: what is lost in a power cut is done again.
LATER = "SET LOCAL synchronous_commit TO off"
#: PostgreSQL, for libpq: a peer that is gone without a word is noticed within a minute.
TCP = {
    "keepalives_idle": 30,  # seconds
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}
#: What is raised while the database does not answer, is full, or takes no writes
#: (PostgreSQL: 25006 ``read_only_sql_transaction`` is an ``InternalError``).
AWAY = (
    peewee.OperationalError,
    peewee.InterfaceError,
    peewee.InternalError,
    MaxConnectionsExceeded,
)

#: SQLSTATE: a connection is gone, resources are used up, an operator stopped it, the system fails,
#: no writes are taken, others hold the locks. And SQLite's names for the same.
WHOLE = ("08", "53", "57", "58", "25006", "40", "55P03")
WHOLE_SQLITE = ("SQLITE_BUSY", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")

proxy = peewee.DatabaseProxy()
#: Threads of one process queue here.
_sqlite_writer = threading.RLock()


class _Transaction(threading.local):
    """This thread's transaction: what is to follow its commit, and when it is, once asked."""

    def __init__(self) -> None:
        self.is_open = False
        self.actions: dict[Callable[[], None], None] = {}
        self.moment: datetime | None = None


_current = _Transaction()


def timestamp(moment: datetime) -> str:
    """A time as both databases take it."""
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="microseconds")


def moment(value: datetime | str) -> datetime:
    """A time as the databases give it."""
    time = datetime.fromisoformat(value) if isinstance(value, str) else value
    return time if time.tzinfo is UTC else time.astimezone(UTC)


def json(value: Any) -> str:
    """Lists and objects as both databases take them."""
    return orjson.dumps(value).decode()


class TimestampField(peewee.Field):
    """An aware UTC datetime: TIMESTAMPTZ in PostgreSQL, sortable ISO text in SQLite."""

    field_type = "TIMESTAMPTZ"

    def db_value(self, value: datetime | None) -> str | None:
        return None if value is None else timestamp(value)

    def python_value(self, value: datetime | str | None) -> datetime | None:
        return None if value is None else moment(value)


class JsonField(peewee.Field):
    """Lists and objects: JSONB in PostgreSQL, text in SQLite."""

    field_type = "JSONB"

    def db_value(self, value: Any) -> str | None:
        return None if value is None else json(value)

    def python_value(self, value: Any) -> Any:
        return orjson.loads(value) if isinstance(value, str | bytes) else value


class IdField(peewee.BigAutoField):
    """A primary key that is never given out twice, even after its row was deleted."""

    def ddl(self, ctx: Any) -> Any:
        nodes = super().ddl(ctx)
        if is_sqlite():
            return peewee.NodeList((nodes, peewee.SQL("AUTOINCREMENT")))
        return nodes


Row = TypeVar("Row", bound=peewee.Model)
Value = TypeVar("Value")
#: Values of a list in one statement.
CHUNK = 500


def chunks(values: Iterable[Value]) -> Iterator[list[Value]]:
    """Values in lists that are short enough for one statement."""
    found: Iterator[list[Value]] = peewee.chunked(values, CHUNK)
    return found


def padded(values: Sequence[Value]) -> list[Value]:
    """Values to look for, the last one repeated, so that lists have few different lengths.

    For each length a connection keeps what it has prepared, 12 kB for a hundred values in SQLite.
    It keeps 128 such statements, so that with lists of all lengths its memory grew for hours.
    """
    found = list(values)
    length = 1 << (len(found) - 1).bit_length() if found else 0
    return found + found[-1:] * (length - len(found))


class Statement:
    """SQL of the hot path, written once: peewee takes longer to build it than SQLite to run it.

    Parameters:
      sql: with ``?`` for each parameter, ``[]`` for a list of them, and nothing that the two
        databases read differently but ``FOR UPDATE``: SQLite locks more than rows anyway.
    """

    def __init__(self, sql: str) -> None:
        text = " ".join(sql.split())
        self._sqlite = text.replace(" FOR UPDATE", "")
        self._postgresql = text.replace("?", "%s")

    def run(self, *parameters: Any) -> Any:
        """Execute inside the caller's connection; the cursor. One parameter may be a list."""
        sql, flat = self._sql, []
        for value in parameters:
            if isinstance(value, list):
                among = padded(value)
                marks = ["?" if is_sqlite() else "%s"] * len(among)
                # PostgreSQL knows no empty list, and nothing is in one of NULL.
                sql = sql.replace("[]", f"({', '.join(marks) or 'NULL'})")
                flat += among
            else:
                flat.append(value)
        return proxy.execute_sql(sql, flat)

    def run_many(self, rows: Sequence[tuple[Any, ...]]) -> int:
        """Execute once for each row; how many rows that changed in all."""
        if not rows:
            return 0
        with peewee.__exception_wrapper__:  # the errors that ``execute_sql`` raises
            cursor = proxy.cursor()
            cursor.executemany(self._sql, rows)
        return int(cursor.rowcount)

    @property
    def _sql(self) -> str:
        return self._sqlite if is_sqlite() else self._postgresql


def select(model: type[Row], where: str, *parameters: Any) -> list[Row]:
    """Read the rows that ``where`` names, inside the caller's connection.

    The columns are named, and not all: a later version may add some while this one is running, and
    PostgreSQL then refuses what it has prepared for all.

    Parameters:
      where: a condition as in ``Statement``.
    """
    statement, columns = _select(model, where)  # type: ignore[arg-type]
    return [_instance(model, columns, row) for row in statement.run(*parameters).fetchall()]


#: The name of a field, and what makes its value of the database's.
Column = tuple[str, Callable[[Any], Any]]


@cache
def _select(model: type[peewee.Model], where: str) -> tuple[Statement, list[Column]]:
    fields = model._meta.sorted_fields
    names = ", ".join(field.column_name for field in fields)
    statement = Statement(f"SELECT {names} FROM {model._meta.table_name} WHERE {where}")  # noqa: S608
    return statement, [(field.name, field.python_value) for field in fields]


def _instance(model: type[Row], columns: list[Column], row: tuple[Any, ...]) -> Row:
    found = model(__no_default__=1)
    found.__data__ = {
        name: convert(value) for (name, convert), value in zip(columns, row, strict=True)
    }
    found._dirty.clear()
    return found


def update(model: type[peewee.Model], values: Mapping[str, Any], where: str, *rest: Any) -> int:
    """Write some columns of the rows that ``where`` names, in the caller's transaction.

    Parameters:
      values: by the names of the model's fields; not empty.
      where: a condition as in ``Statement``; ``rest`` are its parameters.

    Returns:
      how many rows that changed.
    """
    fields = model._meta.fields
    converted = [fields[name].db_value(value) for name, value in values.items()]
    statement = _update(model, tuple(values), where)  # type: ignore[arg-type]
    return int(statement.run(*converted, *rest).rowcount)


@cache
def _update(model: type[peewee.Model], names: tuple[str, ...], where: str) -> Statement:
    columns = ", ".join(f"{model._meta.fields[name].column_name} = ?" for name in names)
    return Statement(f"UPDATE {model._meta.table_name} SET {columns} WHERE {where}")  # noqa: S608


class _Postgresql(peewee.PostgresqlDatabase):  # type: ignore[misc]
    """PostgreSQL in which nobody waits for ever, nor is waited for.

    The limits are set by a command, as PgBouncer takes no ``options`` when a connection is made.
    So is the time zone: in another one than UTC the last moments of the year 9999, which any sender
    can write into a message, cannot be read.

    Parameters:
      pooler: what answers gives a connection for one transaction only. It keeps the time zone for
        whoever has set it, but no limits, which are set for each transaction, and nothing that was
        prepared.
    """

    def __init__(self, *args: Any, pooler: bool = False, **options: Any) -> None:
        self._begin = "; ".join(["BEGIN", *(_limits("SET LOCAL") if pooler else ())])
        self._settings = ["SET TimeZone = 'UTC'", *(() if pooler else _limits("SET"))]
        if pooler:
            options["prepare_threshold"] = None
        super().__init__(*args, **options)

    def _connect(self) -> Any:
        connection = super()._connect()
        with connection.cursor() as cursor:
            for setting in self._settings:
                cursor.execute(setting)
        return connection

    def begin(self, isolation_level: Any = None, *, durable: bool = True) -> None:  # noqa: ARG002
        """Begin a transaction; with all that is set for it in the same round trip."""
        self.execute_sql(self._begin if durable else f"{self._begin}; {LATER}")


def _limits(command: str) -> list[str]:
    return [f"{command} {name} = {milliseconds}" for name, milliseconds in LIMITS.items()]


class _PooledPostgresql(PooledPostgresqlDatabase, _Postgresql):  # type: ignore[misc]
    """The pool makes its connections as ``_Postgresql`` does, and asks few of them how they are.

    playhouse sends a query each time that it gives one out, for which all other threads wait. One
    that the server has ended, or of which keepalives have found the peer gone, can be read from.
    A peer that is gone without a word is found by whoever uses a connection to it next: then those
    that lay in the pool meanwhile are asked.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._doubted: set[int] = set()
        super().__init__(*args, **options)

    def _is_closed(self, connection: Any) -> bool:
        doubted = id(connection) in self._doubted
        self._doubted.discard(id(connection))
        return connection.closed or (
            (doubted or _has_input(connection)) and super()._is_closed(connection)
        )

    def _can_reuse(self, connection: Any) -> bool:
        sound = super()._can_reuse(connection)
        if not sound:
            self._doubted = {id(idle) for _, _, idle in self._connections}
        return bool(sound)


def _has_input(connection: Any) -> bool:
    """Whether something can be read of a connection without waiting, be it its end."""
    waiting = poll()
    waiting.register(connection.fileno(), POLLIN)
    return bool(waiting.poll(0))


def open_database(url: str, pool: int = 8, *, pooler: bool = False) -> None:
    """Bind the models to the database at ``url``; no connection is made yet.

    Parameters:
      url: ``sqlite:///file`` or ``postgresql://user:password@host:port/name``.
      pool: connections that this process may hold at most.
      pooler: PostgreSQL is behind one that gives connections for a transaction each.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        path = Path(unquote(parts.path[1:]))  # sqlite:///relative and sqlite:////absolute
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = PooledSqliteDatabase(
            str(path),
            max_connections=max(pool, 64),
            timeout=POOL_WAIT,
            autoconnect=False,
            check_same_thread=False,
            field_types={"TIMESTAMPTZ": "TEXT", "JSONB": "TEXT", "BIGAUTO": "INTEGER"},
            pragmas={
                "journal_mode": "wal",
                "busy_timeout": BUSY_TIMEOUT,
                "foreign_keys": 1,
                "synchronous": "normal",
                "wal_autocheckpoint": 4_000,
                # For each connection, and every commit of another empties it: the system has the
                # file in memory too.
                "cache_size": -1_000,
                # What was deleted must not stay readable in the file.
                "secure_delete": "on",
            },
        )
    else:
        database = _PooledPostgresql(
            url.replace("postgres://", "postgresql://", 1),
            max_connections=pool,
            timeout=POOL_WAIT,
            autoconnect=False,
            field_types={"TIMESTAMPTZ": "TIMESTAMPTZ", "JSONB": "JSONB"},
            prefer_psycopg3=True,
            connect_timeout=10,
            pooler=pooler,
            **TCP,
        )
    proxy.initialize(database)


def close_database() -> None:
    """Close every pooled connection, for instance before a fork."""
    if proxy.obj is not None:
        proxy.obj.close_all()


def is_sqlite() -> bool:
    return isinstance(proxy.obj, peewee.SqliteDatabase)


def is_pooled() -> bool:
    """Whether a connection is another one of PostgreSQL's after each transaction.

    Seen if the one that it had, free again, is the next to be given out, as PgBouncer does.
    """
    if is_sqlite():
        return False
    asked = "SELECT pg_backend_pid()"
    # Not one of the pool's: its errors are made those that ``execute_sql`` raises.
    with connected(), peewee.__exception_wrapper__, _Postgresql._connect(proxy.obj) as other:
        (before,) = proxy.execute_sql(asked).fetchone()
        with other.transaction():
            other.execute("SELECT 1")
            (after,) = proxy.execute_sql(asked).fetchone()
    return bool(before != after)


@contextmanager
def connected() -> Iterator[None]:
    """Hold a connection for the block; nests."""
    if not proxy.is_closed():
        yield
        return
    try:
        # Those that have the pool's connections may be waiting for the turn.
        with turns.waiting():
            proxy.connect()
        yield
    finally:
        _give_back()


def _give_back() -> None:
    """Return this thread's connection to the pool.

    An interrupt may come when a call has done its work and nobody knows of it yet: then there is no
    connection, or one of SQLite's has a transaction that peewee has not heard of.
    """
    if proxy.is_closed():
        return
    if is_sqlite() and proxy.connection().in_transaction:
        proxy.connection().rollback()
    proxy.close()


@contextmanager
def transaction(*, durable: bool = True) -> Iterator[None]:
    """One write transaction for the block: commits at its end, rolls back when it raises.

    Parameters:
      durable: flushed to disk at commit. ``False`` is for work that is simply done again when a
        power cut takes it back, such as the parsing of a message whose raw row is durable.
    """
    if not proxy.is_closed() and proxy.in_transaction():
        yield
        return
    with _followed(), connected():
        if not is_sqlite():
            with turns.waiting(), proxy.atomic(durable=durable):
                yield
        elif durable:
            with _writing(), _flushed(), proxy.atomic("IMMEDIATE"):
                yield
        else:
            with _writing(), proxy.atomic("IMMEDIATE"):
                yield


def after_commit(action: Callable[[], None]) -> None:
    """Call ``action`` when the caller's transaction has committed, once however often it is asked.

    Never when it rolls back. The action should raise nothing: what it follows is done.
    """
    _current.actions[action] = None


@contextmanager
def _followed() -> Iterator[None]:
    """Carry out what is to follow the commit, when the locks are given back."""
    _current.actions, _current.moment = {}, None
    try:
        _current.is_open = True
        yield
    finally:
        _current.is_open = False
        _current.moment = None
    for action in _current.actions:
        action()


@contextmanager
def _writing() -> Iterator[None]:
    """Be SQLite's one writer: among this process's threads, then among the processes."""
    with ExitStack() as stack:
        # Before the lock: an interrupt comes to a thread that waits for it the moment it has it.
        stack.callback(_let_others_write)
        with turns.waiting():
            _sqlite_writer.acquire()
            stack.enter_context(_lock_file())
        yield


def _let_others_write() -> None:
    with suppress(RuntimeError):  # the interrupt came before the lock was this thread's
        _sqlite_writer.release()


@contextmanager
def _lock_file() -> Iterator[None]:
    """Wait for other processes' transactions, at most as long as SQLite would.

    SQLite sleeps up to 100 ms between two looks at its lock, while a transaction takes 10 ms: with
    two workers the processes spent a quarter of their time asleep.
    """
    with _opened("lock") as lock, _opened("waiting") as queue:
        end = time.monotonic() + BUSY_TIMEOUT / 1_000
        while not _locked(lock) and time.monotonic() < end:
            _locked(queue, fcntl.LOCK_SH)
            time.sleep(LOCK_PAUSE)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield
        fcntl.flock(lock, fcntl.LOCK_UN)
        if not _locked(queue):
            # Who has just written would be the first to have the lock again, and a process that
            # writes now and then, such as the API, would wait for half a second.
            with turns.waiting():
                time.sleep(2 * LOCK_PAUSE)


@contextmanager
def _opened(ending: str) -> Iterator[int]:
    """A file beside the database's; to close it gives its lock back."""
    path = f"{proxy.database}.{ending}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _flushed() -> Iterator[None]:
    """Let SQLite flush its log at commit (in WAL mode it does so only with FULL)."""
    proxy.execute_sql("PRAGMA synchronous = FULL")
    try:
        yield
    finally:
        proxy.execute_sql("PRAGMA synchronous = NORMAL")


def is_away(error: BaseException) -> bool:
    """Whether the database as a whole is to blame for one of ``AWAY``, and not what it was told."""
    if isinstance(error, MaxConnectionsExceeded):
        return True
    cause = error.__cause__ or error.__context__
    name = getattr(cause, "sqlite_errorname", None)
    if name is not None:
        return bool(name.startswith(WHOLE_SQLITE))
    state = getattr(cause, "sqlstate", None)
    return state is None or state.startswith(WHOLE)


def lost_a_race(error: BaseException) -> bool:
    """Whether PostgreSQL ended a transaction because of others' locks: it may be tried again.

    A deadlock, or a lock that was waited for too long.
    """
    cause = error.__cause__ or error.__context__
    return getattr(cause, "sqlstate", None) in ("40P01", "55P03")


def checkpoint(patience: int = BUSY_TIMEOUT) -> bool:
    """Let nothing of earlier transactions stay in SQLite's log; false while readers hold it.

    What is deleted is overwritten in the file, but the log has the pages as they were before.

    Parameters:
      patience: milliseconds to wait for readers, in which nobody writes.
    """
    if not is_sqlite():
        return True
    with connected(), _writing():
        proxy.execute_sql(f"PRAGMA busy_timeout = {patience}")
        try:
            (busy, *_) = proxy.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            proxy.execute_sql(f"PRAGMA busy_timeout = {BUSY_TIMEOUT}")
    return not busy


def shorten_log() -> None:
    """Empty SQLite's log when it is long: while somebody always reads, SQLite only adds to it."""
    if not is_sqlite():
        return
    log = Path(f"{proxy.database}-wal")
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        checkpoint(LOG_PATIENCE)


def now() -> datetime:
    """The database's clock: the one that leases and due times are measured by.

    It stands still in a transaction, which asks for it once. SQLite has no server: its clock is
    this machine's. See ``waited``.
    """
    # An interrupt may have kept a transaction from noting that it is over.
    inside = _current.is_open and proxy.in_transaction()
    if inside and _current.moment is not None:
        return _current.moment
    if is_sqlite():
        moment = datetime.now(UTC)
    else:
        with connected():
            (told,) = proxy.execute_sql("SELECT clock_timestamp()").fetchone()
        moment = told.astimezone(UTC)
    if inside:
        _current.moment = moment
    return moment


def waited() -> None:
    """Let the transaction ask for the time anew: it may have waited for another to end."""
    _current.moment = None
