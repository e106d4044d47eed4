"""``mailpoll events``: what happened, and what happens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from .event_types import types_option
from .needs import find_account, needs_database
from .output import at_most, new_table, safe, show, show_json, styled

if TYPE_CHECKING:
    from rich.text import Text

    from ..events import Event


@click.command("events")
@click.option("--after", type=click.IntRange(0), metavar="ID", help="only those behind this one")
@types_option("such as message.new; can be repeated; default: all")
@click.option("--account", metavar="ADDRESS_OR_ID", help="only of this mailbox")
@at_most
@click.option("--follow", is_flag=True, help="then show what comes, until Ctrl-C")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@needs_database
def list_events(
    after: int | None,
    types: tuple[str, ...],
    account: str | None,
    limit: int,
    follow: bool,
    as_json: bool,
) -> None:
    """Show what happened: mail that came, moved or went, states of mailboxes, faults.

    Shows the latest events, oldest first; with --after ID the first ones behind that. Ids never
    change and have no gaps: a program that keeps the last one that it saw goes on from there
    and misses nothing.
    """
    chosen = _Chosen(list(types) or None, find_account(account).id if account else None)
    addresses = _Addresses()
    if not follow:
        found, _ = chosen.latest(after, limit)
        if as_json:
            for event in found:
                show_json(event.public())
        else:
            _show_table(found, addresses)
        return
    try:
        for event in chosen.from_now_on(after, limit):
            _show_line(event, addresses, as_json)
    except KeyboardInterrupt:
        return  # which is how it is meant to end


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The events that are wanted."""

    types: list[str] | None
    account_id: int | None

    def latest(self, after: int | None, limit: int) -> tuple[list["Event"], int]:
        """Events in their order, and the number behind which none was looked at yet."""
        from .. import events

        # Looked at first: what comes meanwhile is in the list or behind it.
        last = events.last()
        if after is None:
            found = events.read(0, limit, self.types, self.account_id, newest=True)[::-1]
        else:
            found = events.read(after, limit, self.types, self.account_id)
        return found, found[-1].number if found else max(after or 0, last)

    def from_now_on(self, after: int | None, limit: int) -> Iterator["Event"]:
        """The same, and then those that come, without end."""
        from .. import events

        found, last = self.latest(after, limit)
        yield from found
        yield from filter(None, events.follow(last, float("inf"), self.types, self.account_id))


class _Addresses:
    """The addresses of accounts by their public ids; each is looked up once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, event: "Event") -> str:
        """The address of the event's account; empty where it is about none."""
        from .. import accounts

        uuid = event.account_uuid
        if uuid is None:
            return ""
        if uuid not in self._known:
            account = accounts.find(uuid)
            self._known[uuid] = account.address if account else uuid
        return self._known[uuid]


def _show_table(found: list["Event"], addresses: _Addresses) -> None:
    table = new_table("id", "at (UTC)", "type", "account", "message", "what")
    for event in found:
        table.add_row(
            str(event.number),
            f"{event.created_at:%Y-%m-%d %H:%M:%S}",
            str(event.type),
            safe(addresses.of(event)),
            "" if event.message_id is None else str(event.message_id),
            _data(event),
        )
    show(table)


def _show_line(event: "Event", addresses: _Addresses, as_json: bool) -> None:
    if as_json:
        show_json(event.public())
        return
    message = "" if event.message_id is None else f"message {event.message_id}"
    line = styled(f"{event.number:>8}  {event.created_at:%Y-%m-%d %H:%M:%S}  {event.type}")
    for part in (safe(addresses.of(event)), styled(message), _data(event)):
        if part:
            line.append("  ").append(part)
    show(line, soft_wrap=True)


def _data(event: "Event") -> "Text":
    parts = [
        f"{name}={_word(value)}" for name, value in sorted(event.data.items()) if value is not None
    ]
    return safe(", ".join(parts))


def _word(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
