"""The tokens of an image's row above: known before the place below is drafted."""

import jax.numpy as jnp

from jaxspec.typing import Array, Bool, Int

# Columns relative to the place that is drafted.
COLUMNS = (-1, 0, 1)


def row_above(
    tokens: Int[Array, "B T"], index: Int[Array, "B ..."], grid: int
) -> tuple[Int[Array, "B ... 3"], Bool[Array, "B ... 3"]]:
    """Tokens above a place and to both sides, and whether there are such.

    Args:
      tokens: by place in the image, row after row.
      index: places that are drafted.
      grid: places in a row.
    """
    shift = jnp.array(COLUMNS).reshape(*(1,) * index.ndim, -1)
    column = index[..., None] % grid + shift
    place = index[..., None] - grid + shift
    there = (place >= 0) & (column >= 0) & (column < grid)
    flat = jnp.clip(place, 0, tokens.shape[1] - 1).reshape(len(tokens), -1)
    taken = jnp.take_along_axis(tokens, flat, axis=1).reshape(place.shape)
    return taken, there
