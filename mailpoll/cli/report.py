"""``mailpoll report``: a day, a week or a month at a glance."""

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from .needs import needs_database
from .output import new_table, readable_size, safe, show, show_json, styled

if TYPE_CHECKING:
    from ..report import Report


@click.command("report")
@click.option(
    "--period",
    type=click.Choice(["day", "week", "month"]),
    default="day",
    show_default=True,
    help="how long",
)
@click.option(
    "--last", type=click.DateTime(["%Y-%m-%d"]), help="its last day (UTC); default: yesterday"
)
@click.option("--html", "as_html", is_flag=True, help="a document that mail programs show")
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_database
def make_report(period: str, last: datetime | None, as_html: bool, as_json: bool) -> None:
    """Report what came in a period, and how things stand: for cron, or once a week.

    A period is 1, 7 or 30 whole UTC days, of which the last is yesterday. Mail counts on the day
    that its server received it; what came before a mailbox was added counts there too.
    """
    from .. import report
    from ..broker import make_broker
    from ..settings import settings

    if as_html and as_json:
        raise click.UsageError("give either --html or --json")
    if last is not None and not 1970 <= last.year <= 9998:
        raise click.BadParameter("should be from 1970 on", param_hint="--last")
    made = report.make(make_broker(settings()), period, last and last.date())
    if as_json:
        show_json(asdict(made), indent=2)
    elif as_html:
        click.echo(report.document(made))
    else:
        _show(made)


def _show(report: "Report") -> None:
    days = f"{report.first}" if report.first == report.last else f"{report.first} to {report.last}"
    show(styled(f"the {report.period}: {days} (UTC)", "bold"))
    for alarm in report.alarms:
        line = safe(f"alarm since {alarm['since']:%Y-%m-%d %H:%M}: {alarm['words']}")
        show(line.append(f"; {alarm['advice']}"), style="red", soft_wrap=True)
    _show_mail(report)
    _show_days(report)
    _show_accounts(report)
    show(f"mailboxes now: {_counted(report.states)}", soft_wrap=True)
    show(f"messages now: {_counted(report.messages)}", soft_wrap=True)
    for account in report.troubled:
        line = safe(f"{account['address']}  {account['state']}  {account['last_error'] or ''}")
        show(line, style="yellow", soft_wrap=True)
    _show_tasks(report)


def _show_mail(report: "Report") -> None:
    table = new_table("received", f"this {report.period}", "the one before")
    both = (report.mail, report.before)
    table.add_row("messages", *(f"{one.messages:,}" for one in both))
    table.add_row("size", *(readable_size(one.bytes) for one in both))
    table.add_row("attachments", *(f"{one.attachments:,}" for one in both))
    table.add_row("could not be processed", *(f"{one.failures:,}" for one in both))
    show(table)


def _show_days(report: "Report") -> None:
    most = max(day["messages"] for day in report.days)
    if len(report.days) == 1 or not most:
        return
    for day in report.days:
        bar = "█" * (-(-day["messages"] * 40 // most))
        show(styled(f"{day['day']}  {bar:<40}  {day['messages']:,}"), soft_wrap=True)


def _show_accounts(report: "Report") -> None:
    if not report.accounts:
        return
    table = new_table("mailboxes with most mail", "messages", "size")
    for row in report.accounts:
        size = readable_size(row["bytes"])
        table.add_row(safe(row["address"]), f"{row['messages']:,}", size)
    show(table)


def _counted(amounts: dict[str, Any]) -> str:
    return ", ".join(f"{amount:,} {name}" for name, amount in amounts.items() if amount) or "none"


def _show_tasks(report: "Report") -> None:
    if report.tasks is None or report.dead is None:
        show("the queue does not answer: nothing is known of tasks", style="red")
        return
    table = new_table("tasks since Redis was emptied last", "runs", "failed", "mean ms")
    for task in report.tasks:
        runs, failures = f"{task['runs']:,}", f"{task['failures']:,}"
        table.add_row(task["actor"], runs, failures, f"{task['mean_ms']:,.1f}")
    show(table)
    show(f"tasks that failed for good in this {report.period}: {len(report.dead):,}")
    for task in report.dead[:10]:
        line = f"{task['failed_at']:%Y-%m-%d %H:%M}  {task['actor']}  {task['reason']}"
        show(safe(line), soft_wrap=True)
