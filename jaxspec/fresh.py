"""Hidden files and folders beside a place, until they take it.

Each is locked while its writer lives. The next writer of the same place clears those
whose writers were killed, and leaves what another process is still writing.
"""

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

# So many names are looked at for what was left behind.
_LOOKED_AT = 8


@contextlib.contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path`, which is gone afterwards unless it was moved.

    Raises:
      OSError: it cannot be made.
    """

    def make(fresh: Path) -> int:
        fresh.mkdir()
        return os.open(fresh, os.O_RDONLY)

    with _fresh(path, make) as (fresh, _):
        yield fresh


@contextlib.contextmanager
def fresh_file(path: Path, mode: int = 0o666) -> Iterator[tuple[Path, int]]:
    """Likewise a new file, with its descriptor for reading and writing.

    Args:
      path: what it is beside.
      mode: permissions, less the umask.

    Raises:
      OSError: it cannot be made.
    """

    def make(fresh: Path) -> int:
        return os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)

    with _fresh(path, make) as (fresh, descriptor):
        yield fresh, descriptor


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Waits for other processes that are in `folder` by this function."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file or folder, if it is there; an interrupt waits until it is gone."""
    try:
        _removed(path)
    except KeyboardInterrupt:
        _removed(path)
        raise


@contextlib.contextmanager
def _fresh(path: Path, make: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    for i in range(_LOOKED_AT):
        _clear_abandoned(_name(path, i))
    for i in itertools.count():
        fresh = _name(path, i)
        try:
            descriptor = make(fresh)
        except FileExistsError:
            continue
        # Another may have taken it for abandoned before it was locked.
        if _lock(descriptor) is not False and _is_at(fresh, descriptor):
            break
        os.close(descriptor)
    try:
        yield fresh, descriptor
    finally:
        if _is_at(fresh, descriptor):
            remove(fresh)
        os.close(descriptor)


def _name(path: Path, i: int) -> Path:
    return path.with_name(f".{path.name}.{i}.part")


def _clear_abandoned(left: Path) -> None:
    with contextlib.suppress(OSError):  # it is not there, or belongs to another user
        descriptor = os.open(left, os.O_RDONLY)
        try:
            if _lock(descriptor) and _is_at(left, descriptor):
                remove(left)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, wait: bool = False) -> bool | None:
    """Locks a file or folder; False where another has it, None where locks are none."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a name still stands for what was opened under it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _removed(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
