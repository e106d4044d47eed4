"""What commands need before they can work: settings, a database, an account, a secret."""

import getpass
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .output import Failure

if TYPE_CHECKING:
    from ..models import EmailAccount


def needs_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Read the configuration first; a wrong variable ends the command with one line."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        from ..settings import SettingsError

        try:
            _start()
            return command(*args, **kwargs)
        except SettingsError as error:
            raise Failure(str(error)) from None

    return wrapper


def _start() -> None:
    """Set the process up, and find every wrong variable now rather than at its first use."""
    from .. import audit, runtime
    from ..settings import settings

    audit.act_as(audit.COMMAND_LINE)
    config = settings()
    try:
        runtime.start()
    except OSError as error:
        name = "DATABASE_URL" if config.database_url else "MAILPOLL_DATA_DIR"
        raise Failure(f"{name}: the directory cannot be made ({error.strerror})") from None
    try:
        runtime.storage()
    except OSError as error:
        raise Failure(f"STORAGE_URL: the directory cannot be made ({error.strerror})") from None


def needs_database(command: Callable[..., Any]) -> Callable[..., Any]:
    """Check that the database is there and up to date before the command uses it."""

    @needs_settings
    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        from .. import migrate

        with reaching_database():
            if migrate.pending():
                raise Failure("the database is not ready: run `mailpoll migrate` or `mailpoll up`")
            _tell_webhooks()
            return command(*args, **kwargs)

    return wrapper


def _tell_webhooks() -> None:
    """Let the events of this command go out at once, not with the next sweep.

    The actors that do it are loaded when there is an event: most commands need none of them.
    """
    from ..models import EmailEvent

    def begin_deliveries() -> None:
        with suppress(ValueError):  # another thread's commit came first
            EmailEvent.readers.remove(begin_deliveries)
        from ..actors import notify  # a reader of its own from now on

        notify.begin_deliveries()

    if not EmailEvent.readers:
        EmailEvent.readers.append(begin_deliveries)


@contextmanager
def reaching_database() -> Iterator[None]:
    """One line for a database that does not answer."""
    import peewee

    try:
        yield
    except (peewee.OperationalError, peewee.InterfaceError, peewee.ProgrammingError) as error:
        raise _away(error) from None


def _away(error: Exception) -> Failure:
    """The driver's reason, unless the URL is so wrong that it could quote the password."""
    from ..settings import settings

    reason = (str(error).splitlines() or [type(error).__name__])[0]
    password = urlsplit(settings().database).netloc.rpartition("@")[0].partition(":")[2]
    if password and any(part in reason for part in re.split("[@:/]", password) if part):
        reason = "is it a URL with its password percent-encoded?"
    return Failure(f"DATABASE_URL: the database does not answer ({reason})")


def find_account(name: str) -> "EmailAccount":
    """The account with this address or id.

    Raises:
      Failure: there is none.
    """
    from .. import database
    from ..models import EmailAccount

    with database.connected():
        account: EmailAccount | None = (
            EmailAccount.visible()
            .where((EmailAccount.address == name) | (EmailAccount.uuid == name))
            .get_or_none()
        )
    if account is None:
        raise Failure(f"there is no account {name}")
    return account


def ask_secret(prompt: str, from_stdin: bool) -> str:
    """A secret that is typed unseen, or the first line of standard input.

    Raises:
      Failure: it is no text.
    """
    if from_stdin:
        try:
            return sys.stdin.buffer.readline().decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise Failure("password: should be UTF-8") from None
    return getpass.getpass(prompt)
