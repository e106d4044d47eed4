"""Where large messages wait while they are downloaded or read: files of this machine alone.

What is made here is named ``<account UUID>.<random>``, so that it goes with the account.
"""

import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from .settings import settings

#: Seconds after which nothing works on a file any more; no task may take so long.
STALE = 7_200


def directory() -> Path:
    """The directory, without what killed processes left in it.

    Raises:
      PermissionError: it is a link, or belongs to another user.
    """
    path = private(settings().spool_dir)
    oldest = time.time() - STALE
    for entry in path.iterdir():
        with suppress(OSError):  # its owner, or another process, is faster
            if _touched(entry) < oldest:
                remove(entry)
    return path


def _touched(entry: Path) -> float:
    """When it, or a file in it, was written to: an upload can take longer than any task may."""
    within = entry.iterdir() if entry.is_dir() and not entry.is_symlink() else ()
    return max(one.lstat().st_mtime for one in (entry, *within))


def new_file(account_uuid: str) -> Path:
    """An empty file for one large message, readable by its owner only."""
    path = directory() / f"{account_uuid}.{os.urandom(16).hex()}"
    path.touch(mode=0o600, exist_ok=False)
    return path


def new_directory(account_uuid: str) -> "tempfile.TemporaryDirectory[str]":
    """A directory that is removed at the end of its block."""
    return tempfile.TemporaryDirectory(prefix=f"{account_uuid}.", dir=directory())


def of_account(account_uuid: str) -> list[Path]:
    """What is there for an account, of live tasks and of killed ones."""
    return list(settings().spool_dir.glob(f"{account_uuid}.*"))


def private(path: Path) -> Path:
    """Make a directory that only its owner can enter, and that nobody has put there before us.

    Raises:
      PermissionError: it is a link, or belongs to another user.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{path} is a link, or belongs to another user")
    path.chmod(0o700)
    return path


def remove(entry: Path) -> None:
    """Remove a file or directory of the spool; never what a link points at."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
