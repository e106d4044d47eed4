"""Blobs as files in a directory."""

import ctypes
import errno
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .. import faults, turns
from .blob import (
    CHUNK,
    BlobCorrupt,
    BlobMissing,
    NewBlob,
    StoreUnavailable,
    check_account_uuid,
    is_account_uuid,
    split_key,
)
from .form import Form
from .store import BlobStore, Listed

TEMPORARY = ".tmp"
STALE_AFTER = 24 * 3600  # seconds; no put takes that long, so its writer is dead
MAX_OPEN_FILES = 64  # of one put, between writing and flushing
DELETE_ATTEMPTS = 5

#: From so many on, one flush of the file system is cheaper than one for each.
MANY = 8
#: syncfs(2), where the system has it; errors of writing back are reported since Linux 5.8.
SYNCFS = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class LocalFiles(BlobStore):
    """Files named by their key under ``root``, readable by our user only.

    Unless a blob is sealed, ``zstd -d`` makes the message of it again. It is written under a
    temporary name on the same file system, flushed, and renamed: it is there whole or not at all. A
    put flushes all its files, renames them, and flushes their directories. Many at once are flushed
    with ``syncfs`` (Linux), which takes 15 ms for 100 blobs of 40 KB where a flush of each takes
    35 ms and as much again of the system's CPU.

    Every step of a path is opened relative to the one before and never through a symbolic link.
    """

    def __init__(self, root: Path, form: Form | None = None) -> None:
        """Create ``root`` if need be and remove what dead writers left. Raises OSError."""
        self._root = root
        self.form = form or Form()
        self._root_name = str(root)  # joining paths takes longer than opening them
        (root / TEMPORARY).mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        self._remove_stale()

    def put(self, blobs: Sequence[NewBlob]) -> None:
        for start in range(0, len(blobs), MAX_OPEN_FILES):
            with _unavailable_on_error(), _opened() as opened:
                self._put_together(blobs[start : start + MAX_OPEN_FILES], opened)

    def open_stored(self, key: str) -> BinaryIO:
        with _unavailable_on_error(), _opened() as opened:
            try:
                return _open_file(split_key(key)[2], self._directory(key, opened))
            except FileNotFoundError:
                raise BlobMissing(key) from None

    def exists(self, key: str) -> bool:
        try:
            self.open_stored(key).close()
        except BlobMissing:
            return False
        return True

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with _unavailable_on_error(), _opened() as opened, suppress(FileNotFoundError):
                os.unlink(split_key(key)[2], dir_fd=self._directory(key, opened))

    def delete_account(self, account_uuid: str) -> int:
        check_account_uuid(account_uuid)
        deleted = 0
        with _unavailable_on_error():
            for temporary in self.temporary_files(account_uuid):
                temporary.unlink(missing_ok=True)
            for attempt in range(1, DELETE_ATTEMPTS + 1):
                deleted += sum(1 for _ in self.list_account(account_uuid))
                try:
                    _remove_tree(self._root / account_uuid)
                    faults.point("objects-deleted")
                    break
                except OSError as error:
                    # A put that has not heard of the deletion yet may add files meanwhile.
                    if error.errno != errno.ENOTEMPTY or attempt == DELETE_ATTEMPTS:
                        raise
            self._flush_directory(self._root)
        return deleted

    def list_account(self, account_uuid: str) -> Iterator[Listed]:
        check_account_uuid(account_uuid)
        with _unavailable_on_error():
            for directory in _names(self._root / account_uuid):
                for name in _names(self._root / account_uuid / directory):
                    key = f"{account_uuid}/{directory}/{name}"
                    with suppress(ValueError, FileNotFoundError):
                        found = self.path(key).lstat()
                        modified = datetime.fromtimestamp(found.st_mtime, UTC)
                        yield Listed(key, modified, found.st_size)

    def temporary_files(self, account_uuid: str) -> list[Path]:
        """What puts of an account have not finished, or were killed in."""
        check_account_uuid(account_uuid)
        return list((self._root / TEMPORARY).glob(f"{account_uuid}.*"))

    def accounts(self) -> Iterator[str]:
        with _unavailable_on_error():
            yield from filter(is_account_uuid, _names(self._root))

    def check(self) -> None:
        with _unavailable_on_error():
            # Without a name where the system can, so that a process killed here leaves nothing.
            tempfile.TemporaryFile(dir=self._root / TEMPORARY).close()

    def path(self, key: str) -> Path:
        """Where the blob lies, or would lie."""
        return self._root.joinpath(*split_key(key))

    def _put_together(self, blobs: Sequence[NewBlob], opened: list[int]) -> None:
        temporary = _open_directory(f"{self._root_name}/{TEMPORARY}", opened)
        root = _open_directory(self._root_name, opened)
        directories: dict[str, int] = {"": root}
        written: list[_Written] = []
        try:
            for blob in blobs:
                target = self._make_directories(blob.key, directories, opened)
                # One that is there already may be so new that its directory is still to be flushed.
                if self._has(target, blob):
                    # Nor may it count as left over from long ago while its row is being written.
                    _touch_if_there(blob.sha256, target)
                else:
                    written.append(self._write(blob, temporary, target, opened))
            faults.point("file-written")
            _flush([one.file for one in written], root)
            faults.point("put-sent")
            for one in written:
                os.rename(one.name, one.final, src_dir_fd=temporary, dst_dir_fd=one.directory)
        except BaseException:
            for one in written:
                _unlink_if_there(one.name, temporary)
            raise
        _flush(list(reversed(directories.values())), root)

    def _has(self, directory: int, blob: NewBlob) -> bool:
        """Whether the blob is there and whole: what is damaged is written anew."""
        try:
            with self.form.decode(blob.key, _open_file(blob.sha256, directory)) as content:
                while content.read(CHUNK):
                    pass
        except (OSError, BlobCorrupt):
            return False
        return True

    def _write(self, blob: NewBlob, temporary: int, target: int, opened: list[int]) -> "_Written":
        account, _, final = split_key(blob.key)
        name = f"{account}.{secrets.token_hex(8)}"
        file = os.open(name, _CREATE, 0o600, dir_fd=temporary)
        opened.append(file)
        try:
            for piece in self.form.encode(blob):
                _write_all(file, piece)
        except BaseException:
            _unlink_if_there(name, temporary)
            raise
        return _Written(name, file, final, target)

    def _make_directories(self, key: str, known: dict[str, int], opened: list[int]) -> int:
        """The directory of ``key``; ``known`` holds those of this put by their path."""
        path, descriptor = "", known[""]
        for name in split_key(key)[:2]:
            path += f"/{name}"
            if path not in known:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=descriptor)
                known[path] = _open_directory(name, opened, descriptor)
            descriptor = known[path]
        return descriptor

    def _directory(self, key: str, opened: list[int]) -> int:
        account, digits, _ = split_key(key)
        parent = _open_directory(f"{self._root_name}/{account}", opened)
        return _open_directory(digits, opened, parent)

    def _remove_stale(self) -> None:
        oldest = time.time() - STALE_AFTER
        for file in (self._root / TEMPORARY).iterdir():
            with suppress(FileNotFoundError):
                if file.lstat().st_mtime < oldest:
                    file.unlink()

    @staticmethod
    def _flush_directory(path: Path) -> None:
        with _opened() as opened:
            os.fsync(_open_directory(path, opened))


class _Written(NamedTuple):
    """A temporary file: its name, its descriptor, and what it will be called in which directory."""

    name: str
    file: int
    final: str
    directory: int


def _write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _flush(descriptors: Sequence[int], root: int) -> None:
    """Make files or directories durable: one by one, or many with one call for the file system."""
    with turns.waiting():
        if len(descriptors) < MANY or SYNCFS is None:
            for descriptor in descriptors:
                os.fsync(descriptor)
        elif SYNCFS(root) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


@contextmanager
def _unavailable_on_error() -> Iterator[None]:
    """A full or failing disk, too many open files, a planted link: the store cannot do it now."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"local files: {error}") from error


@contextmanager
def _opened() -> Iterator[list[int]]:
    """Descriptors that are closed at the end of the block."""
    descriptors: list[int] = []
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _open_directory(path: Path | str, opened: list[int], parent: int | None = None) -> int:
    descriptor = os.open(path, _DIRECTORY, dir_fd=parent)
    opened.append(descriptor)
    return descriptor


def _open_file(name: str, directory: int) -> BinaryIO:
    file = os.open(name, _READ, dir_fd=directory)
    stream = os.fdopen(file, "rb")
    if not stat.S_ISREG(os.fstat(file).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "not a regular file", name)
    return stream


def _unlink_if_there(name: str, directory: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _touch_if_there(name: str, directory: int) -> None:
    with suppress(FileNotFoundError):
        os.utime(name, dir_fd=directory, follow_symlinks=False)


def _names(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_tree(path: Path) -> None:
    try:
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
    except FileNotFoundError:
        return
