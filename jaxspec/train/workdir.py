"""Lock of the working folder of a training."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from jaxspec.errors import CheckpointError
from jaxspec.io.fresh import lock_folder


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Keeps other processes from training in a folder.

    Raises:
      CheckpointError: another process trains there.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with lock_folder(workdir, wait=False) as locked:
        if not locked:
            raise CheckpointError(
                f"another process trains in '{workdir}'; choose another --out"
            )
        yield
