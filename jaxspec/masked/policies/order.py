"""Orders that do not depend on the tokens."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from jaxspec.core.unmasking import random_order
from jaxspec.errors import ConfigError
from jaxspec.masked.policy import View, revealed
from jaxspec.typing import Array, Bool


@dataclass(frozen=True)
class RandomOrder:
    """A random order of each sequence; implements `Policy`.

    With one token a step this is the first-hitting sampler of masked diffusion
    (arXiv 2409.02908), whose samples have the distribution of the model. It is also the
    order of MAR (arXiv 2406.11838).
    """

    revises: ClassVar[bool] = False

    def reveal(self, view: View) -> Bool[Array, "B T"]:
        """See `Policy`."""
        order = random_order(view.keys, view.tokens.shape[1])
        return revealed(view, order.astype(jnp.float32))


@dataclass(frozen=True)
class FixedOrder:
    """The same order in all sequences; implements `Policy`.

    Attributes:
      order: positions, the first one known first. `halton_order` spreads them over an
        image; ascending ones are the order of an autoregressive model.

    Raises:
      ConfigError: the positions are no permutation.
    """

    order: tuple[int, ...]

    revises: ClassVar[bool] = False

    def __post_init__(self):
        if sorted(self.order) != list(range(len(self.order))):
            raise ConfigError("order is no permutation of the positions 0, 1, ...")

    def reveal(self, view: View) -> Bool[Array, "B T"]:
        """See `Policy`.

        Raises:
          ConfigError: the order has another length than the sequences.
        """
        length = view.tokens.shape[1]
        if len(self.order) != length:
            raise ConfigError(
                f"an order of {len(self.order)} positions does not fit {length} tokens"
            )
        rank = jnp.argsort(jnp.asarray(self.order))
        scores = jnp.broadcast_to(-rank.astype(jnp.float32), view.tokens.shape)
        return revealed(view, scores)


def halton_order(height: int, width: int) -> tuple[int, ...]:
    """Cells of a grid in the order of a Halton sequence, which spreads them evenly.

    Source: the Halton scheduler (Besnier et al., ICLR 2025). Bases 2 and 3; cells that
    the sequence has met are left out.

    Args:
      height: rows of the grid.
      width: columns of the grid.
    """
    found: dict[int, None] = {}
    index = 0
    while len(found) < height * width:
        index += 1
        row, column = _radical_inverse(index, 2), _radical_inverse(index, 3)
        found.setdefault(int(row * height) * width + int(column * width))
    return tuple(found)


def _radical_inverse(index: int, base: int) -> float:
    """Digits of a number, mirrored at the point."""
    value, scale = 0.0, 1.0
    while index:
        index, digit = divmod(index, base)
        scale /= base
        value += digit * scale
    return value
