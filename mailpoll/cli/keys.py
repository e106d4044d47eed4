"""Secrets: encryption keys, tokens, and the API's keys."""

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from .needs import needs_database
from .output import Failure, failing_with_2, new_table, refused, safe, show, show_json, tell


@click.group()
def keys() -> None:
    """Encryption keys."""


@keys.command("new")
def keys_new() -> None:
    """Print a new key for MAILPOLL_SECRET_KEY; put it before the old ones, with a comma."""
    from ..settings import new_key

    click.echo(new_key())


@keys.command("status")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@failing_with_2
@needs_database
def keys_status(as_json: bool) -> None:
    """Show how many stored secrets each key has sealed.

    Exit code 1: some need a key that is not in the ring.
    """
    from .. import keys as ring_keys
    from .. import runtime

    ring = runtime.keyring()
    counts = ring_keys.counts()
    rows: list[dict[str, Any]] = [
        {
            "id": name,
            "in_ring": name in ring.ids,
            "first": name == ring.current,
            "secrets": sum(counts.get(name, {}).values()),
            "columns": counts.get(name, {}),
        }
        for name in dict.fromkeys([*ring.ids, *sorted(counts)])
    ]
    if as_json:
        show_json({"keys": rows})
    else:
        table = new_table("key", "in the ring", "secrets", "columns")
        for row in rows:
            place = "first" if row["first"] else "yes" if row["in_ring"] else "missing"
            amounts = ring_keys.describe(row["columns"])
            table.add_row(safe(row["id"]), place, f"{row['secrets']:,}", amounts)
        show(table)
    sys.exit(int(not all(row["in_ring"] for row in rows)))


@keys.command("rotate")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@failing_with_2
@needs_database
def keys_rotate(as_json: bool) -> None:
    """Seal every stored secret with the first key, while everything runs.

    First put the new key before the old ones, for every process, and start them again. Can be
    ended and run again at any time. Exit code 1: some secrets are still sealed with another key.
    """
    from .. import keys as ring_keys
    from .. import runtime

    def progress(rotation: Any) -> None:
        click.echo(f"{rotation.done:,} of {rotation.total:,} secrets", err=True)

    ring = runtime.keyring()
    rotation = ring_keys.rotate(ring, progress)
    counts = ring_keys.counts()
    left = {name: columns for name, columns in counts.items() if name != ring.current}
    if as_json:
        sealed = {"key": ring.current, "sealed": counts.get(ring.current, {})}
        show_json({**asdict(rotation), **sealed, "left": left})
    else:
        now = ring_keys.describe(counts.get(ring.current, {})) or "nothing"
        click.echo(f"{rotation.done:,} secrets sealed again; key {ring.current} seals {now}")
        for context in rotation.unreadable:
            click.echo(f"no key of the ring opens {context}", err=True)
        for name, columns in left.items():
            click.echo(f"key {name} still seals {ring_keys.describe(columns)}", err=True)
    sys.exit(int(bool(left)))


@keys.command("remove")
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def keys_remove(key: str, as_json: bool) -> None:
    """Take a key out of the ring, by the id that `status` shows; refused while it is needed."""
    from .. import keys as ring_keys
    from ..settings import settings

    try:
        done = ring_keys.remove(settings(), key)
    except ring_keys.KeyNeeded as error:
        raise Failure(str(error)) from None
    words = f"nothing needs key {key}: take it out of MAILPOLL_SECRET_KEY"
    if done:
        words = f"key {key} is removed: start the processes again"
    tell({"id": key, "removed": bool(done)}, words, as_json=as_json)


@click.group()
def tokens() -> None:
    """API tokens."""


@tokens.command("new")
def tokens_new() -> None:
    """Print a new token for MAILPOLL_API_TOKEN."""
    from ..settings import new_token

    click.echo(new_token())


@click.group("api-keys")
def api_keys() -> None:
    """Keys of the API, each with a scope."""


@api_keys.command("create")
@click.argument("name")
@click.option(
    "--scope", type=click.Choice(["read", "operate", "admin"]), required=True, help="what it may do"
)
@click.option(
    "--expires",
    type=click.DateTime(["%Y-%m-%d"]),
    help="it opens nothing from then on (UTC); default: never",
)
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def create_key(name: str, scope: str, expires: datetime | None, as_json: bool) -> None:
    """Make a key and print its token, which cannot be shown again."""
    from pydantic import ValidationError

    from .. import api_keys as service
    from ..models import Scope
    from ..web.schemas import NewApiKey

    try:
        given: dict[str, Any] = {"name": name, "scope": scope}
        new = NewApiKey(**given, expires_at=expires and expires.replace(tzinfo=UTC))
        key, token = service.create(new.name, Scope(new.scope), new.expires_at)
    except ValidationError as error:
        raise refused(error) from None
    except service.KeyRefused as error:
        raise Failure(str(error)) from None
    if as_json:
        show_json({**_key(key), "token": token})
    else:
        click.echo(token)
        click.echo(f"{name}, scope {scope}: keep it now, only its hash is stored", err=True)


def _key(row: Any) -> dict[str, Any]:
    names = ("name", "scope", "created_at", "expires_at", "last_used_at", "revoked_at")
    return {"id": row.uuid, **{name: getattr(row, name) for name in names}}


@api_keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def list_keys(as_json: bool) -> None:
    """List the keys, revoked ones too."""
    from .. import database
    from ..models import ApiKey

    with database.connected():
        rows = [_key(row) for row in ApiKey.select().order_by(ApiKey.id)]
    if as_json:
        for row in rows:
            show_json(row)
        return
    times = ("created_at", "expires_at", "last_used_at", "revoked_at")
    table = new_table("name", "scope", "created", "expires", "last used", "revoked", "id")
    for row in rows:
        shown = [f"{row[name]:%Y-%m-%d %H:%M}" if row[name] else "" for name in times]
        table.add_row(safe(row["name"]), row["scope"], *shown, row["id"])
    show(table)


@api_keys.command("revoke")
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def revoke_key(key: str, as_json: bool) -> None:
    """Let a key (its name or id) open nothing any more, at once."""
    from .. import api_keys as service
    from .. import database
    from ..models import ApiKey

    with database.connected():
        row = ApiKey.get_or_none((ApiKey.name == key) | (ApiKey.uuid == key))
    if row is None:
        raise Failure(f"there is no API key {key}")
    revoked = service.revoke(row.uuid)
    if as_json:
        show_json(_key(revoked))
    else:
        click.echo("revoked")
