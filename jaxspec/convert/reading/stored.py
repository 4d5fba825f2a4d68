"""A tensor in a file, and the set of them that is a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.errors import DataError


@dataclass(frozen=True)
class Stored:
    """A tensor that has not been read.

    Attributes:
      shape: of the tensor.
      dtype: of its numbers; bfloat16 and the float8 kinds are ml_dtypes'.
      file: where it is.
      read: reads it, as an array that is the caller's own.
      alias: the name under which it is stored, where that is another one.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    read: Callable[[], np.ndarray]
    alias: str | None = None

    @property
    def size(self) -> int:
        """Numbers in it."""
        return int(np.prod(self.shape, dtype=object))


@dataclass(frozen=True)
class Source:
    """A model as it was found.

    Attributes:
      name: of the file, folder or repository, for messages and records.
      tensors: of the weights that were taken, by name, in the order of the files.
      config: the model's own `config.json`, if there is one.
      folder: of the files that may lie beside the weights (a tokenizer's).
      revision: commit of the repository it came from.
      left_out: names of things that belong to no set of weights.
      sets: all sets of weights by name, with the names that the file has for their
        tensors; see `reading.sets`.
      weights: the name of the one that was taken.
      prefixes: of wrappers, which were removed from names in `tensors`.
    """

    name: str
    tensors: Mapping[str, Stored]
    config: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    revision: str | None = None
    left_out: tuple[str, ...] = ()
    sets: Mapping[str, Mapping[str, Stored]] = field(default_factory=dict)
    weights: str = ""
    prefixes: tuple[str, ...] = ()

    def shape(self, name: str, axes: int | None = None) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
          DataError: there is none of that name, or it has not so many axes.
        """
        if name not in self.tensors:
            raise DataError(f"'{self.name}' has no tensor {name}")
        shape = self.tensors[name].shape
        if axes is not None and len(shape) != axes:
            raise DataError(f"'{self.name}': {name} is {shape}, not of {axes} axes")
        return shape


def printable(text: str, most: int = 200) -> str:
    """A name from a file, safe to show: no control characters, not too long."""
    shown = text[:most].encode("unicode_escape").decode()
    return shown + ("..." if len(text) > most else "")
