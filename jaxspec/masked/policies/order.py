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
