"""What a process of mailpoll has open: configuration, database, object store, keys."""

from functools import cache

from . import database, logs
from .blobs import Storage, storage_from_url
from .crypto import KeyRing
from .settings import SettingsError, settings


def start() -> None:
    """Set up logging and the database for this process; connects to nothing yet.

    Raises:
      SettingsError: a variable is missing or invalid; the message names it.
    """
    config = settings()
    logs.configure(config.log_level, config.log_format)
    database.open_database(config.database, config.database_pool)


@cache
def storage() -> Storage:
    """The process's object store with its fall-back.

    Raises:
      SettingsError: STORAGE_URL is not usable.
    """
    config = settings()
    try:
        return storage_from_url(config.storage, config.fallback_dir)
    except ValueError as error:
        raise SettingsError(f"STORAGE_URL: {error}") from None


@cache
def keyring() -> KeyRing:
    """The keys that open stored credentials.

    Raises:
      SettingsError: MAILPOLL_SECRET_KEY is missing.
    """
    return KeyRing(settings().require_keys())
