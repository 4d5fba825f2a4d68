"""Tokens of the image row above a position, known before that position is drafted."""

import jax.numpy as jnp

from jaxspec.typing import Array, Bool, Int

# Columns relative to the drafted position.
COLUMNS = (-1, 0, 1)


def row_above(
    tokens: Int[Array, "B T"], index: Int[Array, "B ..."], grid: int
) -> tuple[Int[Array, "B ... 3"], Bool[Array, "B ... 3"]]:
    """Reads the tokens above a position: left of it, straight above and right of it.

    Args:
      tokens: tokens of the image in raster order.
      index: indices of the drafted positions in the image.
      grid: number of tokens in an image row.

    Returns:
      The tokens, and whether each one lies inside the image.
    """
    shift = jnp.array(COLUMNS).reshape(*(1,) * index.ndim, -1)
    column = index[..., None] % grid + shift
    above = index[..., None] - grid + shift
    inside = (above >= 0) & (column >= 0) & (column < grid)
    flat = jnp.clip(above, 0, tokens.shape[1] - 1).reshape(len(tokens), -1)
    values = jnp.take_along_axis(tokens, flat, axis=1).reshape(above.shape)
    return values, inside
