"""Types for tensors in files that have not been read, and for models made of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.errors import DataError


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, which has not been read.

    Attributes:
      shape: shape of the tensor.
      dtype: dtype of the tensor; bfloat16 and float8 are those of ml_dtypes.
      file: path of the file.
      read: function that reads the tensor into a new array.
      alias: name under which the tensor is stored, if it is another one.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    read: Callable[[], np.ndarray]
    alias: str | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=object))


@dataclass(frozen=True)
class Source:
    """Files of a released model.

    Attributes:
      name: name of the file, folder or repository, for messages and metadata.
      tensors: tensors of the selected weights by name, in the order of the files.
      config: contents of the model's `config.json`; empty if there is none.
      folder: folder of the files, which can hold a tokenizer, too.
      revision: commit of the repository, for a model from the Hugging Face hub.
      left_out: names of entries that belong to no set of weights.
      sets: sets of weights by name, with tensor names as in the files; see
        `reading.sets`.
      weights: name of the selected set of weights.
      prefixes: prefixes of wrappers that were removed from the names of `tensors`.
      vocabulary: function that makes the text of a `tokenizer.json` from a vocabulary
        in the files themselves; None if there is none.
      text: settings of a model of text that are in the files themselves, see
        `convert.text`.
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
    vocabulary: Callable[[], str | None] | None = None
    text: Mapping[str, Any] | None = None

    def shape(self, name: str, axes: int | None = None) -> tuple[int, ...]:
        """Returns the shape of a tensor.

        Args:
          name: name of the tensor.
          axes: number of axes to check; None accepts any.

        Raises:
          DataError: there is no such tensor, or it has another number of axes.
        """
        if name not in self.tensors:
            raise DataError(f"'{self.name}' has no tensor {name}")
        shape = self.tensors[name].shape
        if axes is not None and len(shape) != axes:
            raise DataError(
                f"'{self.name}': {name} has the shape {shape}, not {axes} axes"
            )
        return shape


def printable(text: str, max_length: int = 200) -> str:
    """Escapes and truncates a text from a file, so that it is safe to print."""
    escaped = text[:max_length].encode("unicode_escape").decode()
    return escaped + ("..." if len(text) > max_length else "")
