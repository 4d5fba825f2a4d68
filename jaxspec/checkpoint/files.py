"""Folders that are replaced whole or not at all, and digests of their files."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxspec.errors import CheckpointError


def recover(path: str | os.PathLike) -> Path:
    """Finishes a replacement that was cut off between its two renames."""
    path = Path(path)
    old = path.with_name(f".{path.name}.old")
    if old.is_dir() and not path.exists():
        old.rename(path)
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a fresh sibling folder that takes `path`'s place when all went well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        os.chmod(fresh, 0o755)
    except OSError as error:
        raise CheckpointError(f"cannot write '{path}': {error.strerror}") from None
    try:
        yield fresh
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        fresh.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"cannot write '{path}': {error.strerror}") from None
    finally:
        recover(path)
        shutil.rmtree(fresh, ignore_errors=True)


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
