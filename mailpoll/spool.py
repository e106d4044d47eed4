"""Where large messages wait while they are downloaded or read: files of this machine alone."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

from .settings import settings

#: Seconds after which nothing works on a file any more; no task may take so long.
STALE = 7_200


def directory() -> Path:
    """The directory, readable by its owner only, without what killed processes left in it."""
    path = settings().spool_dir
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    oldest = time.time() - STALE
    for entry in path.iterdir():
        with suppress(OSError):  # its owner, or another process, is faster
            if entry.lstat().st_mtime < oldest:
                remove(entry)
    return path


def remove(entry: Path) -> None:
    """Remove a file or directory of the spool; never what a link points at."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
