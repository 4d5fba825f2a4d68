"""Folders that are replaced whole or not at all, and digests of their files."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from jaxspec.errors import CheckpointError
from jaxspec.fresh import alone_in, fresh_folder, remove


def recover(path: str | os.PathLike) -> Path:
    """Finishes a replacement that was cut off between its two renames.

    Returns:
      The path, which may be a link to the folder.
    """
    target = Path(os.path.realpath(path))
    if _is_cut_off(target):
        with alone_in(target.parent):  # another process may be between the two
            if _is_cut_off(target):
                _old(target).rename(target)
    return Path(path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a fresh folder that takes `path`'s place when all went well.

    A link stays, and the folder it leads to is replaced. A folder that is there hands
    on its permissions; a new one has what the umask leaves.

    Raises:
      CheckpointError: the place cannot be written.
    """
    try:
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target)
        if target.exists() and not target.is_dir():
            raise CheckpointError(f"cannot write '{path}': it is no folder")
        with fresh_folder(target) as fresh:
            yield fresh
            if target.exists():
                os.chmod(fresh, stat.S_IMODE(target.stat().st_mode))
            with alone_in(target.parent):
                _swap(fresh, target)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"cannot write '{path}': {reason}") from None


def _swap(fresh: Path, target: Path) -> None:
    old = _old(target)
    remove(old)
    try:
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    finally:
        if _is_cut_off(target):
            old.rename(target)
        remove(old)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _is_cut_off(target: Path) -> bool:
    return _old(target).is_dir() and not target.exists()


def file_digests(folder: str | os.PathLike) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by path relative to it."""
    folder = Path(folder)
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(
            file.read_bytes()
        ).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
