"""Atomic replacement of folders, and SHA-256 digests of their files."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxspec.errors import CheckpointError
from jaxspec.io.fresh import fresh_folder, lock_folder, remove


def recover(path: str | os.PathLike) -> Path:
    """Restores the old folder if a replacement was killed between its two renames.

    Returns:
      `path` itself, which may be a symbolic link to the folder.
    """
    target = Path(os.path.realpath(path))
    if _is_interrupted(target):
        with lock_folder(target.parent):  # another process may be replacing it now
            if _is_interrupted(target):
                _backup_path(target).rename(target)
    return Path(path)


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder, which replaces `path` if the block raises nothing.

    A symbolic link is kept, and the folder that it points to is replaced. The new
    folder takes over the permissions of the old one; without an old one they follow
    from the umask.

    Raises:
      CheckpointError: `path` cannot be written.
    """
    try:
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target)
        if target.exists() and not target.is_dir():
            raise CheckpointError(f"cannot write '{path}': it is not a folder")
        with fresh_folder(target) as fresh:
            yield fresh
            if target.exists():
                os.chmod(fresh, stat.S_IMODE(target.stat().st_mode))
            with lock_folder(target.parent):
                _swap(fresh, target)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"cannot write '{path}': {reason}") from None


def _swap(fresh: Path, target: Path) -> None:
    """Moves `fresh` to `target`; an error or interrupt restores the old folder."""
    backup = _backup_path(target)
    remove(backup)
    try:
        if target.exists():
            target.rename(backup)
        fresh.rename(target)
    finally:
        if _is_interrupted(target):
            backup.rename(target)
        remove(backup)


def _backup_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _is_interrupted(target: Path) -> bool:
    """Whether the old folder was moved away and no new one took its name."""
    return _backup_path(target).is_dir() and not target.exists()


def write_notes(folder: Path, notes: Mapping[str, str] | None) -> None:
    """Writes text files, by name, into a new folder.

    Raises:
      OSError: a file cannot be written.
    """
    for name, text in (notes or {}).items():
        (folder / name).write_text(text, encoding="utf-8")


def file_digests(folder: str | os.PathLike) -> dict[str, str]:
    """SHA-256 of every file in `folder`, by relative path."""
    folder = Path(folder)
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(
            file.read_bytes()
        ).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def checkpoint_of(folder: str | Path, part: str | None = None) -> Path:
    """The checkpoint that a folder stands for.

    Args:
      folder: checkpoint, bundle, or working folder of a training.
      part: part of a bundle that is meant; None for the bundle.
    """
    folder = Path(folder)
    bundle = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    if part is not None and (bundle / part).is_dir():
        return bundle / part
    return bundle
