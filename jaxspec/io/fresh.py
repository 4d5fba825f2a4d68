"""Temporary files and folders beside the path that they will replace.

Each is hidden (`.NAME.0.part`) and locked while its writer runs. The next writer of the
same path deletes those whose writers were killed, and leaves those that another process
is still writing.
"""

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

# Number of temporary names that are checked for files of killed writers.
_MAX_ABANDONED = 8


@contextlib.contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path`; it is deleted afterwards unless it was moved.

    Raises:
      OSError: the folder cannot be created.
    """

    def create(fresh: Path) -> int:
        fresh.mkdir()
        return os.open(fresh, os.O_RDONLY)

    with _fresh_path(path, create) as (fresh, _):
        yield fresh


@contextlib.contextmanager
def fresh_file(path: Path, mode: int = 0o666) -> Iterator[tuple[Path, int]]:
    """Yields a new file beside `path`; it is deleted afterwards unless it was moved.

    Args:
      path: file that the new one will replace.
      mode: permissions before the umask is applied.

    Yields:
      The new path, and its descriptor for reading and writing.

    Raises:
      OSError: the file cannot be created.
    """

    def create(fresh: Path) -> int:
        return os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)

    with _fresh_path(path, create) as (fresh, descriptor):
        yield fresh, descriptor


@contextlib.contextmanager
def lock_folder(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Holds an exclusive lock on `folder`.

    Args:
      folder: folder that exists.
      wait: whether to wait for other holders of this lock.

    Yields:
      False if another holds the lock; True also where the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(descriptor, wait=wait) is not False
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Deletes a file or folder if it exists; an interrupt is raised after that."""
    try:
        _remove_tree(path)
    except KeyboardInterrupt:
        _remove_tree(path)
        raise


@contextlib.contextmanager
def _fresh_path(
    path: Path, create: Callable[[Path], int]
) -> Iterator[tuple[Path, int]]:
    """Yields a locked temporary path and its descriptor.

    Args:
      path: path that the temporary one will replace.
      create: function that creates and opens a path, and returns the descriptor.
    """
    for i in range(_MAX_ABANDONED):
        _clear_abandoned(_numbered(path, i))
    for i in itertools.count():
        fresh = _numbered(path, i)
        try:
            descriptor = create(fresh)
        except FileExistsError:
            continue
        # Another process may have deleted it before it was locked.
        if _lock(descriptor) is not False and _is_same_file(fresh, descriptor):
            break
        os.close(descriptor)
    try:
        yield fresh, descriptor
    finally:
        if _is_same_file(fresh, descriptor):
            remove(fresh)
        os.close(descriptor)


def _numbered(path: Path, i: int) -> Path:
    return path.with_name(f".{path.name}.{i}.part")


def _clear_abandoned(path: Path) -> None:
    """Deletes a temporary file or folder that no process has locked."""
    with contextlib.suppress(OSError):  # it does not exist, or is another user's
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if _lock(descriptor) and _is_same_file(path, descriptor):
                remove(path)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, wait: bool = False) -> bool | None:
    """Locks a file or folder: False if already locked, None if locks do not exist."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _is_same_file(path: Path, descriptor: int) -> bool:
    """Whether `path` is still the file or folder that was opened as `descriptor`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_tree(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
