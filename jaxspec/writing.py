"""Files that are replaced whole or not at all, by one function for all of them.

A link is written through: what it leads to is replaced. A file that is there keeps its
permissions, its owner and its other names; a new one gets what the umask leaves. A file
with several names, or of another owner, is written over in place once all bytes are
there: a failure then may leave it in part. Into pipes and terminals, `/dev/stdout`
among them, bytes are written as they come. Whatever else is no regular file is refused.
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
from jaxspec.fresh import fresh_file

_OPEN = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_LINKS = 40  # as many as Linux follows
_REFUSED = {
    stat.S_IFDIR: "it is a folder",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFBLK: "it is a disk",
}


def check_writable(path: str | os.PathLike) -> Path:
    """Fails early where `write_file` would fail late.

    Raises:
      DataError: the folder is missing or cannot be written, or `path` is something
        that no file can replace, or is write-protected.
    """
    with _named(path):
        target, _ = _checked(path)
        if target is not None:
            with fresh_file(target):
                pass
    return Path(path)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Yields a stream; what was written to it takes `path`'s place when all went well.

    Raises:
      DataError: as `check_writable`; or writing failed.
    """
    with _named(path):
        target, there = _checked(path)
        if target is None:
            with os.fdopen(_open_stream(path), "wb") as out:
                yield out
            return
        # Until it is whole, it is readable for no more than the old one was.
        with fresh_file(target, 0o600 if there else 0o666) as (fresh, descriptor):
            with os.fdopen(os.dup(descriptor), "w+b") as out:
                yield out
            if there and _in_place(there, os.fstat(descriptor)):
                with open(fresh, "rb") as source, open(target, "r+b") as old:
                    shutil.copyfileobj(source, old)
                    old.truncate()
                return
            if there:
                os.chmod(fresh, stat.S_IMODE(there.st_mode))
            os.replace(fresh, target)


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file whole or not at all, but for the exceptions of this module.

    Raises:
      DataError: as `whole_file`.
    """
    with whole_file(path) as out:
        out.write(data)


def open_descriptor(path: str | os.PathLike) -> int | None:
    """The number that `/dev/stdout`, `/dev/fd/N` or a link to one stands for."""
    name = os.path.abspath(path)
    for _ in range(_LINKS):
        if name in _OPEN:
            return _OPEN[name]
        if found := re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", name):
            return int(found[1])
        if not os.path.islink(name):
            break
        name = os.path.abspath(os.path.join(os.path.dirname(name), os.readlink(name)))
    return None


def _checked(
    path: str | os.PathLike,
) -> tuple[Path | None, os.stat_result | None]:
    """The regular file behind links, or None for a stream; and what is there."""
    if (number := open_descriptor(path)) is not None:
        return None, os.fstat(number)
    try:
        there = os.stat(path)
    except FileNotFoundError:
        there = None
    if there and (what := _REFUSED.get(stat.S_IFMT(there.st_mode))):
        raise DataError(f"cannot write '{path}': {what}")
    if there and not os.access(path, os.W_OK):
        raise DataError(f"cannot write '{path}': it is write-protected")
    if there and not stat.S_ISREG(there.st_mode):
        return None, there
    target = Path(os.path.realpath(path) if os.path.islink(path) else path)
    if not target.parent.is_dir():
        raise DataError(f"cannot write '{path}': there is no folder '{target.parent}'")
    return target, there


def _in_place(there: os.stat_result, fresh: os.stat_result) -> bool:
    """Whether a rename would leave another name behind, or change the owner."""
    owners = (there.st_uid, there.st_gid), (fresh.st_uid, fresh.st_gid)
    return there.st_nlink > 1 or owners[0] != owners[1]


def _open_stream(path: str | os.PathLike) -> int:
    """A descriptor of a pipe or terminal; nothing is created or cut."""
    if (number := open_descriptor(path)) is None:
        return os.open(path, os.O_WRONLY)
    if number == 1 and sys.stdout is not None:
        sys.stdout.flush()  # what was printed before comes before
    return os.dup(number)


@contextlib.contextmanager
def _named(path: str | os.PathLike) -> Iterator[None]:
    """Turns the system's errors into one sentence that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error.strerror or error}") from None
