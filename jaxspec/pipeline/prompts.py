"""Prompts of a pipeline: class labels, captions, or texts and images to continue."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import TransformerConfig
from jaxspec.core.numbers import whole, within
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.prompts import Caption
from jaxspec.pipeline.captions import Captions
from jaxspec.speculative.prefix import Prefixed
from jaxspec.typing import PyTree

Condition = Literal["class", "caption", "none"]
_NAMES = {"class": "class labels", "caption": "captions", "none": "texts to continue"}


@dataclass(frozen=True)
class Prompts:
    """One prompt for each sequence, on the host.

    Attributes:
      values: arrays with one entry a prompt: class ids int32 [B], or class weights
        float32 [B, classes]; a `Caption`; or tokens int32 [B, P] with -1 after shorter
        texts.
      condition: kind of the prompts, as `TransformerConfig.condition`.
      texts: captions, for reports; empty for other prompts.
      prefix: first image tokens, int32 [B, P], that are continued; None for none.
    """

    values: PyTree
    condition: Condition
    texts: tuple[str, ...] = ()
    prefix: np.ndarray | None = None

    @classmethod
    def from_classes(cls, labels: Sequence[int]) -> "Prompts":
        """Class labels.

        Raises:
          ConfigError: there is none, or one is no whole number of at least 0.
        """
        _check_count(len(labels))
        return cls(whole("class_labels", np.asarray(labels), 0), "class")

    @classmethod
    def from_class_weights(cls, weights: np.ndarray) -> "Prompts":
        """Mixtures of classes, by weights [B, classes] of their embeddings.

        Raises:
          ConfigError: there is none, a weight is negative or infinite, or the weights
            of a prompt do not add up to 1.
        """
        _check_count(len(weights))
        weights = within("class weights", weights)
        sums = weights.sum(axis=1)
        if (wrong := np.abs(sums - 1) > 1e-3).any():
            raise ConfigError(
                f"the class weights of a prompt add up to {sums[wrong][0]:g}; they "
                "must add up to 1"
            )
        return cls(weights, "class")

    @classmethod
    def from_captions(cls, captions: Captions) -> "Prompts":
        """Captions and their features.

        Raises:
          ConfigError: there is none.
        """
        _check_count(len(captions.texts))
        return cls(captions.features, "caption", captions.texts)

    @classmethod
    def example(cls, model: TransformerConfig) -> "Prompts":
        """One prompt, with the shapes of all prompts of an image model."""
        if model.condition == "class":
            return cls.from_classes([0])
        if model.condition == "none":
            return cls.from_tokens([np.zeros(1, np.int32)])
        shape = 1, model.caption_length, model.caption_width
        values = Caption(jnp.zeros(shape), jnp.ones(shape[:2], bool))
        return cls(values, "caption", ("",))

    @classmethod
    def from_tokens(cls, texts: Sequence[np.ndarray]) -> "Prompts":
        """Texts to continue, as tokens int32 [P] of each.

        Raises:
          ConfigError: there is none, or one is empty.
        """
        _check_count(len(texts))
        if not all(map(len, texts)):
            raise ConfigError("a text to continue needs at least one token")
        longest = max(map(len, texts))
        padded = [
            np.pad(row.astype(np.int32), (0, longest - len(row)), constant_values=-1)
            for row in texts
        ]
        return cls(np.stack(padded), "none")

    @classmethod
    def from_texts(cls, texts: Sequence[bytes]) -> "Prompts":
        """Texts to continue, of a model whose tokens are bytes.

        Raises:
          ConfigError: there is none, or one is empty.
        """
        return cls.from_tokens([np.frombuffer(text, np.uint8) for text in texts])

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.values)[0])

    @property
    def length(self) -> int:
        """Tokens that the longest prompt takes of the model's sequence length."""
        if self.prefix is not None:
            return self.prefix.shape[1]
        return self.values.shape[1] if self.condition == "none" else 0

    def take(self, indices: np.ndarray) -> PyTree:
        """Prompts by index, with repetition."""
        values = jax.tree.map(lambda x: x[indices], self.values)
        return values if self.prefix is None else Prefixed(values, self.prefix[indices])

    def with_prefix(self, tokens: Any, model: TransformerConfig) -> "Prompts":
        """The prompts, each with the first tokens of an image that is continued.

        Args:
          tokens: image tokens, ints [B, P].
          model: configuration of the model.

        Raises:
          ConfigError: they are not ints [B, P], `B` is not the number of prompts, a
            token is not in the vocabulary, an image is complete already, or the model
            generates text.
        """
        tokens = np.asarray(tokens)
        if self.condition == "none":
            raise ConfigError(
                "a prefix is the beginning of an image; texts to continue are `prompts`"
            )
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise ConfigError(
                f"a prefix of {tokens.dtype} {list(tokens.shape)} is none; give image "
                "tokens, ints [B, P]"
            )
        if len(tokens) != len(self):
            raise ConfigError(
                f"{len(tokens)} prefixes do not fit {len(self)} prompts; give one for "
                "each, such as numpy.repeat(tokens, count, axis=0)"
            )
        if tokens.shape[1] >= model.sequence_length:
            raise ConfigError(
                f"a prefix of {tokens.shape[1]} tokens leaves nothing to generate; an "
                f"image has {model.sequence_length}: keep fewer, such as prefix_rows=8"
            )
        unknown = tokens[(tokens < 0) | (tokens >= model.vocab_size)]
        if unknown.size:
            raise ConfigError(
                f"a prefix has the token {unknown[0]}; those of this model are 0 to "
                f"{model.vocab_size - 1}"
            )
        return replace(self, prefix=tokens.astype(np.int32))

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
        if self.condition == "class" and np.ndim(self.values) == 2:
            if self.values.shape[1] != model.classes:
                raise ConfigError(
                    f"prompts have weights of {self.values.shape[1]} classes; this "
                    f"prior has {model.classes}"
                )
        elif self.condition == "class" and (self.values >= model.classes).any():
            unknown = self.values[self.values >= model.classes][0]
            raise ConfigError(
                f"unknown class {unknown}; this prior has 0 to {model.classes - 1}"
            )
        if self.length >= model.sequence_length:
            raise ConfigError(
                f"a text of {self.length} tokens leaves no room for new ones; the "
                f"model has {model.sequence_length} positions"
            )


def spread_classes(classes: int, count: int) -> tuple[int, ...]:
    """`count` class labels, evenly spread over `classes`."""
    return tuple(i * classes // count % classes for i in range(count))


def _check_count(count: int) -> None:
    if not count:
        raise ConfigError("there is nothing to generate; give at least one prompt")
