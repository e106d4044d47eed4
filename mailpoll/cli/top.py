"""``mailpoll top``: what goes on, on a terminal that stays."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .needs import needs_database
from .output import Failure, console, new_table, safe, show, show_json, styled

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from ..broker import Broker
    from ..pulse import Pulse

#: Looks whose messages per minute are drawn.
DRAWN = 60
BARS = " ▁▂▃▄▅▆▇█"


@click.command("top")
@click.option(
    "--interval",
    type=click.FloatRange(0.5, 3_600),
    default=2.0,
    show_default=True,
    help="seconds between two looks",
)
@click.option("--once", is_flag=True, help="look once, and end")
@click.option("--json", "as_json", is_flag=True, help="with --once")
@needs_database
def watch(interval: float, once: bool, as_json: bool) -> None:
    """Watch queues, polls, messages per minute and lateness, until Ctrl-C.

    A queue's messages are waiting, delayed, running (which includes those that a worker has
    fetched ahead), or dead: failed for good. Late is a mailbox whose poll is overdue by more than
    a minute; lateness is how late the last polls began.
    """
    from .. import pulse
    from ..broker import make_broker
    from ..settings import settings

    if as_json and not once:
        raise click.UsageError("--json: goes with --once")
    broker = make_broker(settings())
    if as_json:
        show_json(asdict(pulse.look(broker)))
    elif once:
        found = pulse.look(broker)
        show(_frame(found, [found.messages_per_minute]))
    elif not console().is_terminal:
        raise Failure("standard output is no terminal: give --once")
    else:
        _watch(broker, interval)


def _watch(broker: "Broker", interval: float) -> None:
    from rich.live import Live

    from .. import pulse

    drawn: deque[int] = deque(maxlen=DRAWN)
    try:
        with Live(console=console(), screen=True, auto_refresh=False) as live:
            while True:
                found = pulse.look(broker)
                drawn.append(found.messages_per_minute)
                live.update(_frame(found, drawn), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        return  # which is how it is meant to end


def _frame(found: "Pulse", drawn: Sequence[int]) -> "Group":
    from rich.console import Group

    states = ", ".join(f"{amount:,} {state}" for state, amount in found.accounts.items() if amount)
    p95 = "none" if found.lateness_p95_ms is None else f"{found.lateness_p95_ms / 1_000:,.1f} s"
    late = styled(f"{found.late_accounts:,} late", "red" if found.late_accounts else "")
    lines = [
        styled(f"mailpoll at {found.at:%Y-%m-%d %H:%M:%S} UTC", "bold"),
        styled(f"mailboxes: {states or 'none'}; ").append(late).append(f"; lateness p95: {p95}"),
        _rates(found, drawn),
        styled(
            f"waiting: {found.waiting:,} messages, the oldest new one for "
            f"{found.oldest_pending_seconds:,.0f} s"
        ),
        *(safe(f"alarm: {words}") for words in found.alarms),
    ]
    for line in lines[4:]:
        line.stylize("red")
    return Group(*lines, _queues(found), _polls(found))


def _rates(found: "Pulse", drawn: Sequence[int]) -> "Text":
    most = max(drawn, default=0)
    bars = "".join(BARS[-(-one * (len(BARS) - 1) // most)] for one in drawn) if most else ""
    rates = f"a minute: {found.messages_per_minute:,} messages, {found.polls_per_minute:,} polls, "
    failed = styled(f"{found.failures_per_minute:,} failures")
    failed.stylize("red" if found.failures_per_minute else "")
    return styled(rates).append(failed).append(f"  {bars}" if len(drawn) > 1 else "")


def _queues(found: "Pulse") -> "Table | Text":
    if found.queues is None:
        return styled("the queue does not answer", "red")
    table = new_table("queue", "waiting", "delayed", "running", "dead")
    for size in found.queues:
        dead = styled(f"{size.dead:,}", "red" if size.dead else "")
        row = (f"{amount:,}" for amount in (size.waiting, size.delayed, size.running))
        table.add_row(size.queue, *row, dead)
    return table


def _polls(found: "Pulse") -> "Table | Text":
    if not found.polling:
        return styled("no poll is running")
    table = new_table("poll of", "for")
    for poll in found.polling:
        table.add_row(safe(poll["address"]), f"{poll['seconds']:,.0f} s")
    return table
