"""Bundles that come with jaxspec, by name, and folders by path."""

import os
from pathlib import Path

from jaxspec.errors import CheckpointError

# Bundle that is loaded when none is named: of classes, in an order in which many tokens
# of a call are right without a trained drafter.
DEFAULT = "fruits64_halton"
# Bundle of a class-conditional model in raster order with a trained drafter, which
# benchmarks and evaluations take by default.
CLASSES = "fruits64"
# Bundle of a model of captions, which commands take by default for a prompt.
CAPTIONS = "emoji64"


def embedded_folder() -> Path:
    """Folder of the bundles that come with jaxspec.

    Raises:
      CheckpointError: the installation has none.
    """
    package = Path(__file__).parent.parent
    for folder in (package / "_checkpoints", package.parent / "checkpoints"):
        if (folder / CLASSES).is_dir():
            return folder
    raise CheckpointError(
        "this installation has no embedded checkpoint; name a folder with --checkpoint"
    )


def embedded_names() -> list[str]:
    """Names of the bundles that come with jaxspec."""
    folders = [
        path for path in embedded_folder().iterdir() if (path / "prior").is_dir()
    ]
    return sorted(path.name for path in folders)


def find_folder(path: str | os.PathLike | None = None) -> Path:
    """A folder by path, or the folder of an embedded bundle by name.

    A folder that exists is preferred to a bundle of the same name.

    Args:
      path: path or name; None for the default bundle.

    Raises:
      CheckpointError: there is neither.
    """
    folder = embedded_folder() / DEFAULT if path is None else Path(path)
    if folder.is_dir():
        return folder
    names = embedded_names()
    if os.fspath(folder) in names:
        return embedded_folder() / folder
    raise CheckpointError(
        f"no checkpoint folder at '{folder}'; check the path, or name one that comes "
        f"with jaxspec: {', '.join(names)}"
    )
