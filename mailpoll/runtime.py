"""What a process of mailpoll has open: configuration, database, object store, keys."""

import base64
import secrets
import time
from collections.abc import Callable
from functools import cache, lru_cache

from . import database, logs, spool
from .blobs import Form, Storage, storage_from_url
from .crypto import DataKeyError, DecryptionError, KeyRing
from .models import EmailAccount
from .settings import KEY_BYTES, SettingsError, settings

#: Data keys that a process remembers, and seconds after which it forgets all of them: those of
#: accounts that were deleted by another process are to be gone.
DATA_KEYS, KEPT = 10_000, 60.0


def start() -> None:
    """Set up logging and the database for this process; connects to nothing yet.

    Raises:
      SettingsError: a variable is missing or invalid; the message names it.
    """
    config = settings()
    logs.configure(config.log_level, config.log_format)
    pool, pooler = config.database_pool, config.database_pooler
    database.open_database(config.database, pool, pooler=pooler)


@cache
def storage() -> Storage:
    """The process's object store with its fall-back.

    Raises:
      SettingsError: STORAGE_URL is not usable.
    """
    config = settings()
    try:
        return storage_from_url(config.storage, config.fallback_dir, form(), spool.directory)
    except ValueError as error:
        raise SettingsError(f"STORAGE_URL: {error}") from None


def form() -> Form:
    """The form in which this process keeps blobs."""
    config = settings()
    return Form(config.blob_compression_level, data_key, encrypt=config.blob_encryption)


@cache
def keyring() -> KeyRing:
    """The keys that open stored credentials and data keys.

    Raises:
      SettingsError: MAILPOLL_SECRET_KEY is missing.
    """
    return KeyRing(settings().require_keys())


def new_data_key(uuid: str) -> str:
    """A random key for the blobs of a new account, encrypted, as ``EmailAccount.data_key``."""
    key = base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()
    return keyring().encrypt(key, data_key_context(uuid))


def data_key_context(uuid: str) -> str:
    """What a data key's ciphertext is bound to."""
    return f"{uuid}:data_key"


def data_key(uuid: str) -> bytes:
    """The key of an account's blobs, which never changes, and is gone a minute after the account.

    Raises:
      DataKeyError: no key of the ring opens it, or it is gone with its account.
      SettingsError: MAILPOLL_SECRET_KEY is missing.
    """
    return data_keys(time.monotonic() // KEPT)(uuid)


@lru_cache(1)
def data_keys(_: float) -> Callable[[str], bytes]:
    """The data keys of a while, each opened at its first use; the next while forgets them."""
    return lru_cache(DATA_KEYS)(_open_data_key)


def _open_data_key(uuid: str) -> bytes:
    with database.connected():
        row = EmailAccount.select(EmailAccount.data_key).where(EmailAccount.uuid == uuid).first()
    if row is None or not row.data_key:
        raise DataKeyError(f"the data key of account {uuid} is gone: the account was deleted")
    try:
        return base64.urlsafe_b64decode(keyring().decrypt(row.data_key, data_key_context(uuid)))
    except DecryptionError:
        raise DataKeyError(
            f"the data key of account {uuid} does not open with the keys in MAILPOLL_SECRET_KEY"
        ) from None
