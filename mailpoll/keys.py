"""Which key of the ring every stored secret is sealed with, and how a key is replaced.

A key that comes first seals what is written from then on. ``rotate`` seals again what is there
already, so that the old key can go.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

import peewee
import structlog
from peewee import SQL, fn

from . import audit, database, faults, migrate
from .crypto import FORMAT, DecryptionError, KeyRing, key_id
from .models import EmailAccount, WebhookEndpoint
from .settings import Settings, SettingsError

log = structlog.get_logger()

#: Every column that the ring seals; each value is bound to its row's uuid and its column's name.
SEALED = (
    EmailAccount.credential,
    EmailAccount.refresh_token,
    EmailAccount.access_token,
    EmailAccount.data_key,
    WebhookEndpoint.secret,
    WebhookEndpoint.old_secret,
)
#: Rows sealed again in one transaction: a poll waits for one no longer than a few milliseconds.
PAGE = 100
ID_CHARACTERS = 8

#: Values of each column, such as ``email_accounts.credential``, by the key that sealed them.
Counts = dict[str, dict[str, int]]


class KeyNeeded(Exception):
    """A key cannot be taken out of the ring; says why."""


@dataclass(slots=True)
class Rotation:
    """What came of sealing everything with the ring's first key.

    Parameters:
      done, total: values sealed again, and that had to be.
      unreadable: ``<uuid>:<column>`` of those that no key of the ring opens.
    """

    total: int
    done: int = 0
    unreadable: list[str] = field(default_factory=list)


def counts() -> Counts:
    """How many stored values each key has sealed, column by column."""
    found: Counts = defaultdict(dict)
    with database.connected():
        for column in SEALED:
            rows = column.model.select(_sealed_with(column), fn.COUNT(SQL("1")))
            for name, amount in rows.where(_is_sealed(column)).group_by(SQL("1")).tuples():
                found[name][_name(column)] = amount
    return dict(found)


def missing(ring: KeyRing) -> Counts:
    """The same for keys that values need and the ring has not."""
    return {name: columns for name, columns in counts().items() if name not in ring.ids}


def _name(column: Any) -> str:
    return f"{column.model._meta.table_name}.{column.name}"


def _sealed_with(column: Any) -> Any:
    return fn.SUBSTR(column, len(FORMAT) + 2, ID_CHARACTERS)


def _is_sealed(column: Any) -> Any:
    return fn.SUBSTR(column, 1, len(FORMAT) + 1) == f"{FORMAT}."


def rotate(ring: KeyRing, progress: Callable[[Rotation], None]) -> Rotation:
    """Seal every stored value with the ring's first key, while everything runs.

    Each page is a transaction that leaves its rows readable, and rows that are done are not looked
    at again: killed anywhere, it goes on where it was.

    Parameters:
      progress: called after each page.
    """
    audit.record("keys.rotate", "key", ring.current)
    old = {name: columns for name, columns in counts().items() if name != ring.current}
    rotation = Rotation(total=sum(sum(columns.values()) for columns in old.values()))
    for table in dict.fromkeys(column.model for column in SEALED):
        columns = [column for column in SEALED if column.model is table]
        last = 0
        while (page_end := _rotate_page(ring, columns, last, rotation)) is not None:
            last = page_end
            progress(rotation)
    return rotation


def _rotate_page(ring: KeyRing, columns: list[Any], last: int, rotation: Rotation) -> int | None:
    """Seal the page of rows after the id ``last`` again; the page's last id."""
    table = columns[0].model
    old = [_is_sealed(column) & (_sealed_with(column) != ring.current) for column in columns]
    rows = (
        table.select(table.id, table.uuid, *columns)
        .where(table.id > last, reduce(or_, old))
        .order_by(table.id)
        .limit(PAGE)
    )
    with database.transaction():
        page = list(rows if database.is_sqlite() else rows.for_update())
        for row in page:
            sealed = _sealed_again(ring, row, columns, rotation)
            if sealed:
                table.update(sealed).where(table.id == row.id).execute()
    faults.point("keys-page")
    return page[-1].id if page else None


def _sealed_again(
    ring: KeyRing, row: Any, columns: list[Any], rotation: Rotation
) -> dict[str, str]:
    sealed = {}
    for name in (column.name for column in columns):
        value = getattr(row, name)
        if not value or value.startswith(f"{FORMAT}.{ring.current}."):
            continue
        context = f"{row.uuid}:{name}"
        try:
            sealed[name] = ring.encrypt(ring.decrypt(value, context), context)
        except DecryptionError:
            rotation.unreadable.append(context)
    rotation.done += len(sealed)
    return sealed


def remove(config: Settings, name: str) -> bool:
    """Take a key out of the ring, which nothing may need any more.

    Returns:
      whether that is done: only the operator can change an environment variable.

    Raises:
      KeyNeeded: values need it, or it is the first key, or not in the ring.
      SettingsError: there is no ring.
    """
    keys = config.require_keys()
    if name not in map(key_id, keys):
        raise KeyNeeded(f"the ring has no key {name}")
    if name == key_id(keys[0]):
        raise KeyNeeded(f"{name} is the first key, which seals what is written from now on")
    needed = counts().get(name)
    if needed:
        raise KeyNeeded(f"{name} is needed by {describe(needed)}: run `mailpoll keys rotate`")
    audit.record("keys.remove", "key", name)
    kept = config.keep_keys([key for key in keys if key_id(key) != name])
    faults.point("key-removed")
    return kept


def describe(columns: dict[str, int]) -> str:
    """How many values of which columns, in words."""
    return ", ".join(f"{amount:,} {name}" for name, amount in sorted(columns.items()))


def require(config: Settings) -> None:
    """Check before a process starts that the ring has every key that stored values need.

    A database that is away or empty is no reason to stay down.

    Raises:
      SettingsError: keys are missing; names them and what needs them.
    """
    ring = KeyRing(config.require_keys())
    try:
        lost = {} if migrate.pending() else missing(ring)
    except (peewee.OperationalError, peewee.InterfaceError):
        log.warning("the keys could not be compared with the database: it does not answer")
        return
    if not lost:
        return
    needs = "; ".join(f"{name} ({describe(columns)})" for name, columns in sorted(lost.items()))
    if not config.allow_missing_keys:
        raise SettingsError(
            f"MAILPOLL_SECRET_KEY: lacks keys that stored secrets need: {needs}. Put them back "
            "after the first one, or set MAILPOLL_ALLOW_MISSING_KEYS=yes if they are lost"
        )
    log.warning("stored secrets cannot be opened: their keys are missing", keys=needs)
