"""Embeddings of tokens made of sub-codes, and of the cells that they are for."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxspec.config import TransformerConfig
from jaxspec.config.orders import cells_of
from jaxspec.nn.factors import split_codes
from jaxspec.nn.layers import INIT, linear
from jaxspec.typing import Array, Float, Int


class FactoredEmbed(nn.Module):
    """Embeddings of sub-codes, concatenated and mixed by a matrix.

    Attributes:
      sizes: number of values of each sub-code.
      width: width of the result, `D`, a multiple of the number of sub-codes.
    """

    sizes: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "..."]) -> Float[Array, "... D"]:
        """Embeddings of tokens."""
        width = self.width // len(self.sizes)
        parts = [
            nn.Embed(size, width, embedding_init=INIT, name=f"part_{i}")(codes)
            for i, (size, codes) in enumerate(
                zip(self.sizes, split_codes(tokens, self.sizes), strict=True)
            )
        ]
        return linear(self.width, "mix")(jnp.concatenate(parts, axis=-1))

    @property
    def embedding(self) -> Float[Array, "V D"]:
        """Embeddings of all tokens."""
        return self(jnp.arange(math.prod(self.sizes)))


class NextCell(nn.Module):
    """Embedding of the cell of the token that a position predicts (RAR).

    Attributes:
      config: sizes and order of the tokens.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, following: Int[Array, "R n"]) -> Float[Array, "R n D"]:
        """Embeddings by the position of the predicted token; zeros where there is none.

        Args:
          following: positions of the predicted tokens, counted with the condition.
        """
        c = self.config
        cells = jnp.asarray(np.array(cells_of(c.order, c.grid), np.int32))
        table = nn.Embed(c.grid**2, c.width, embedding_init=INIT, name="cells")
        index = following - c.prefix_length
        inside = (index >= 0) & (index < len(cells))
        embedded = table(cells[jnp.clip(index, 0, len(cells) - 1)])
        return jnp.where(inside[..., None], embedded, jnp.zeros((), embedded.dtype))
