"""Atomic writing of files: a file is replaced completely or not at all.

- Symbolic links are followed: the file that they point to is replaced.
- An existing file keeps its permissions, owner and hard links. The permissions of a new
  one follow from the umask.
- A file with several hard links, or of another owner, is overwritten in place after all
  bytes have been produced. This is not atomic: a failure may leave it incomplete.
- Pipes, terminals and `/dev/stdout` are written as a stream.
- Folders, sockets and block devices are refused.
"""

import contextlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxspec.errors import DataError
from jaxspec.io.fresh import fresh_file

_STANDARD_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_MAX_LINKS = 40  # the limit of Linux
_REFUSED = {
    stat.S_IFDIR: "it is a folder",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFBLK: "it is a block device",
}


def check_writable(path: str | os.PathLike) -> Path:
    """Checks before a long computation that `write_file` will be able to write.

    Returns:
      `path`.

    Raises:
      DataError: the folder is missing or cannot be written, or `path` is
        write-protected, or is a folder, socket or block device.
    """
    with _as_data_error(path):
        target, _ = _resolve(path)
        if target is not None:
            with fresh_file(target):
                pass
    return Path(path)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Yields a stream whose bytes replace `path` if the block raises nothing.

    Raises:
      DataError: the file cannot be written; see `check_writable`.
    """
    with _as_data_error(path):
        target, status = _resolve(path)
        if target is None:
            with os.fdopen(_open_stream(path), "wb") as out:
                yield out
            return
        # Other users who could not read the old file must not read the temporary one.
        with fresh_file(target, 0o600 if status else 0o666) as (fresh, descriptor):
            with os.fdopen(os.dup(descriptor), "w+b") as out:
                yield out
            if status and _must_overwrite(status, os.fstat(descriptor)):
                with open(fresh, "rb") as source, open(target, "r+b") as old:
                    shutil.copyfileobj(source, old)
                    old.truncate()
                return
            if status:
                os.chmod(fresh, stat.S_IMODE(status.st_mode))
            os.replace(fresh, target)


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file atomically, with the exceptions listed at the top of this module.

    Raises:
      DataError: the file cannot be written; see `check_writable`.
    """
    with whole_file(path) as out:
        out.write(data)


def open_descriptor(path: str | os.PathLike) -> int | None:
    """The descriptor of `/dev/stdout`, `/dev/fd/N` or a link to one, else None."""
    name = os.path.abspath(path)
    for _ in range(_MAX_LINKS):
        if name in _STANDARD_STREAMS:
            return _STANDARD_STREAMS[name]
        if match := re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", name):
            return int(match[1])
        if not os.path.islink(name):
            break
        name = os.path.abspath(os.path.join(os.path.dirname(name), os.readlink(name)))
    return None


def _resolve(
    path: str | os.PathLike,
) -> tuple[Path | None, os.stat_result | None]:
    """Resolves links and checks that the path can be written.

    Returns:
      The regular file to replace, or None for a stream; and the status of what exists
      at `path`, or None.

    Raises:
      DataError: see `check_writable`.
    """
    if (descriptor := open_descriptor(path)) is not None:
        return None, os.fstat(descriptor)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        status = None
    if status and (reason := _REFUSED.get(stat.S_IFMT(status.st_mode))):
        raise DataError(f"cannot write '{path}': {reason}")
    if status and not os.access(path, os.W_OK):
        raise DataError(f"cannot write '{path}': it is write-protected")
    if status and not stat.S_ISREG(status.st_mode):
        return None, status
    target = Path(os.path.realpath(path) if os.path.islink(path) else path)
    if not target.parent.is_dir():
        raise DataError(f"cannot write '{path}': there is no folder '{target.parent}'")
    return target, status


def _must_overwrite(old: os.stat_result, fresh: os.stat_result) -> bool:
    """Whether a rename would break hard links or change the owner."""
    old_owner, fresh_owner = (old.st_uid, old.st_gid), (fresh.st_uid, fresh.st_gid)
    return old.st_nlink > 1 or old_owner != fresh_owner


def _open_stream(path: str | os.PathLike) -> int:
    """Opens a pipe or terminal, or duplicates an open descriptor; truncates nothing."""
    if (descriptor := open_descriptor(path)) is None:
        return os.open(path, os.O_WRONLY)
    if descriptor == 1 and sys.stdout is not None:
        sys.stdout.flush()  # keep the order with text that was printed before
    return os.dup(descriptor)


@contextlib.contextmanager
def _as_data_error(path: str | os.PathLike) -> Iterator[None]:
    """Converts an `OSError` into a `DataError` with the path."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error.strerror or error}") from None
