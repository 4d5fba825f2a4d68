"""Reader of packed images: concatenated JPEG files in an `.npz` archive."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxspec.errors import DataError


def read_packed(path: str | Path, split: str) -> Iterator[tuple[bytes, int]]:
    """Yields the JPEG bytes and the label of each image of a split.

    Args:
      path: file with arrays `{split}_jpeg` (uint8 [bytes]), `{split}_offsets` (int64
        [n + 1]) and `{split}_labels` (integer [n]).
      split: name of the split, "train" or "test".

    Raises:
      DataError: the file is missing, damaged or in another format.
    """
    jpeg, offsets, labels = _arrays(
        path, f"{split}_jpeg", f"{split}_offsets", f"{split}_labels"
    )
    if len(offsets) != len(labels) + 1 or offsets[-1] != len(jpeg):
        raise DataError(f"'{path}': the offsets of split {split!r} do not fit its data")
    for start, end, label in zip(offsets[:-1], offsets[1:], labels, strict=True):
        yield jpeg[start:end].tobytes(), int(label)


def read_class_names(path: str | Path) -> list[str]:
    """Class names of a packed file, indexed by label."""
    return [str(name) for name in _arrays(path, "class_names")[0]]


def _arrays(path: str | Path, *names: str) -> list[np.ndarray]:
    try:
        with np.load(path) as file:
            return [file[name] for name in names]
    except FileNotFoundError:
        raise DataError(
            f"no packed data file at '{path}'; give the folder that holds it "
            "(--manual-dir)"
        ) from None
    except KeyError as error:
        raise DataError(f"'{path}' has no array {error.args[0]!r}") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"'{path}' is not a readable .npz file ({error})") from None
