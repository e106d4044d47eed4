"""The command line: thin, calls the layers below.

A module for each family of commands. They import what they work with when they run, so that help
and small commands come at once.
"""

import click

from .. import __version__
from . import (
    account_actions,
    accounts,
    archives,
    completion,
    deletions,
    doctor,
    events,
    examples,
    fsck,
    keys,
    messages,
    operations,
    report,
    retention,
    running,
    search,
    stats,
    top,
    webhooks,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mailpoll")
def cli() -> None:
    """Bring the mail of many IMAP mailboxes into your own database and object store."""


for command in (
    running.up,
    running.migrate,
    running.web,
    running.scheduler,
    running.poller,
    running.worker,
    running.watcher,
    running.notifier,
    accounts.accounts,
    doctor.doctor,
    stats.stats,
    report.make_report,
    top.watch,
    fsck.fsck,
    retention.show_retention,
    retention.legal_holds,
    search.find,
    search.reindex,
    messages.messages,
    messages.list_attachments,
    messages.blob,
    events.list_events,
    webhooks.hooks,
    archives.export_account,
    archives.import_files,
    keys.keys,
    keys.tokens,
    keys.api_keys,
    operations.notify,
    operations.show_audit,
    operations.openapi,
    completion.print_completion,
):
    cli.add_command(command)
for command in (
    account_actions.pause,
    account_actions.resume,
    account_actions.poll,
    account_actions.reconcile,
    account_actions.delete,
    deletions.deletions,
    deletions.receipt,
):
    accounts.accounts.add_command(command)
examples.show(cli)


def main() -> None:
    """The ``mailpoll`` command."""
    cli(complete_var=completion.VARIABLE)
