"""Prompts of a pipeline: class labels, captions, or texts to continue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from jaxspec.config import TransformerConfig
from jaxspec.core.numbers import whole
from jaxspec.errors import ConfigError
from jaxspec.pipeline.captions import Captions
from jaxspec.typing import PyTree

Condition = Literal["class", "caption", "none"]
_NAMES = {"class": "class labels", "caption": "captions", "none": "texts to continue"}


@dataclass(frozen=True)
class Prompts:
    """One prompt for each sequence, on the host.

    Attributes:
      values: arrays with one entry a prompt: class ids int32 [B]; a `Caption`; or bytes
        int32 [B, P] with -1 after shorter texts.
      condition: kind of the prompts, as `TransformerConfig.condition`.
      texts: captions, for reports; empty for other prompts.
    """

    values: PyTree
    condition: Condition
    texts: tuple[str, ...] = ()

    @classmethod
    def from_classes(cls, labels: Sequence[int]) -> "Prompts":
        """Class labels.

        Raises:
          ConfigError: there is none, or one is no whole number of at least 0.
        """
        _check_count(len(labels))
        return cls(whole("class_labels", np.asarray(labels), 0), "class")

    @classmethod
    def from_captions(cls, captions: Captions) -> "Prompts":
        """Captions and their features.

        Raises:
          ConfigError: there is none.
        """
        _check_count(len(captions.texts))
        return cls(captions.features, "caption", captions.texts)

    @classmethod
    def from_texts(cls, texts: Sequence[bytes]) -> "Prompts":
        """Texts as bytes, for a model of text to continue.

        Raises:
          ConfigError: there is none, or one is empty.
        """
        _check_count(len(texts))
        if not all(texts):
            raise ConfigError("a text to continue needs at least one byte")
        longest = max(map(len, texts))
        rows = [np.frombuffer(text, np.uint8).astype(np.int32) for text in texts]
        padded = [
            np.pad(row, (0, longest - len(row)), constant_values=-1) for row in rows
        ]
        return cls(np.stack(padded), "none")

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.values)[0])

    @property
    def length(self) -> int:
        """Tokens that the longest prompt takes of the model's sequence length."""
        return self.values.shape[1] if self.condition == "none" else 0

    def take(self, indices: np.ndarray) -> PyTree:
        """Prompts by index, with repetition."""
        return jax.tree.map(lambda x: x[indices], self.values)

    def check(self, model: TransformerConfig) -> None:
        """Checks that a model takes these prompts.

        Raises:
          ConfigError: the model takes other prompts, has no such class, or has no room
            for new tokens.
        """
        if self.condition != model.condition:
            raise ConfigError(
                f"this model takes {_NAMES[model.condition]}, not "
                f"{_NAMES[self.condition]}"
            )
        if self.condition == "class" and (self.values >= model.classes).any():
            unknown = self.values[self.values >= model.classes][0]
            raise ConfigError(
                f"unknown class {unknown}; this prior has 0 to {model.classes - 1}"
            )
        if self.length >= model.sequence_length:
            raise ConfigError(
                f"a text of {self.length} bytes leaves no room for new ones; the model "
                f"has {model.sequence_length} positions"
            )


def spread_classes(classes: int, count: int) -> tuple[int, ...]:
    """`count` class labels, evenly spread over `classes`."""
    return tuple(i * classes // count % classes for i in range(count))


def _check_count(count: int) -> None:
    if not count:
        raise ConfigError("there is nothing to generate; give at least one prompt")
