"""Commands that run mailpoll: everything on this machine, or one process."""

import sys

import click

from .. import __version__
from .needs import needs_settings, reaching_database
from .output import tell


@click.command()
@needs_settings
def up() -> None:
    """Run everything on this machine until Ctrl-C."""
    from .. import migrate, processes, runtime
    from ..settings import settings

    config = settings()
    config.create_secrets()
    config.require_keys()
    runtime.storage()
    migrate.migrate()
    _ready(sealing=True)
    token = config.require_tokens()[0]
    shown = token if sys.stderr.isatty() else f"in {config.data_dir / 'api.token'}"
    address = f"http://{config.bind}:{config.port}"
    click.echo(f"mailpoll {__version__}: {address}/ and {address}/docs", err=True)
    click.echo(f"sign in there with the token {shown}", err=True)
    click.echo("add a mailbox with: mailpoll accounts add me@example.org", err=True)
    sys.exit(processes.up(config))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON object, for programs")
@needs_settings
def migrate(as_json: bool) -> None:
    """Bring the database up to date."""
    from .. import migrate as migrations

    with reaching_database():
        done = migrations.migrate()
    tell({"migrations": done}, "\n".join(done) if done else "nothing to do", as_json=as_json)


@click.command()
@needs_settings
def web() -> None:
    """Run the web process."""
    from .. import processes
    from ..settings import settings

    settings().require_tokens()
    _ready(sealing=True)
    processes.run(processes.web_command(settings()))


@click.command()
@needs_settings
def scheduler() -> None:
    """Run the scheduler. Two of them do no harm."""
    from .. import processes

    _ready(sealing=False)
    sys.exit(processes.supervise_scheduler())


@click.command()
@needs_settings
def poller() -> None:
    """Run a poller: it fetches mail."""
    from .. import processes, runtime
    from ..settings import settings

    runtime.storage()
    _ready(sealing=True)
    processes.run(processes.poller_command(settings()))


@click.command()
@needs_settings
def worker() -> None:
    """Run a worker: it parses mail and keeps house."""
    from .. import processes, runtime
    from ..settings import settings

    runtime.storage()
    _ready(sealing=True)
    processes.run(processes.worker_command(settings()))


@click.command()
@needs_settings
def watcher() -> None:
    """Run a watcher: it keeps connections open on which servers tell of new mail."""
    _ready(sealing=True)
    from .. import watcher as process

    process.run()


@click.command()
@needs_settings
def notifier() -> None:
    """Run a notifier: it tells webhooks of events."""
    from .. import processes
    from ..settings import settings

    _ready(sealing=True)
    processes.run(processes.notifier_command(settings()))


def _ready(*, sealing: bool) -> None:
    """Check what a process needs before it becomes one, and say what it puts up with.

    Parameters:
      sealing: it opens stored secrets, and so needs the keys.
    """
    import structlog

    from .. import keys
    from ..settings import settings

    if sealing:
        keys.require(settings())
    for concern in settings().concerns():
        structlog.get_logger().warning(concern)
