"""Rotary position embeddings over adjacent pairs, angles in float32."""

import jax.numpy as jnp
import numpy as np

from jaxspec.config import TransformerConfig
from jaxspec.typing import Array, Float, Int


def grid_table(
    prefix: int, grid: int, head_dim: int, base: float, extra: int = 0
) -> np.ndarray:
    """LlamaGen's 2-D table: cosines and sines by absolute position.

    The first half of the pairs turns with the row, the second with the column. The
    rows of the `prefix` condition positions are zeros, not identities: they turn the
    queries and keys of the condition into zero vectors, as in the original.

    Args:
      prefix: condition positions.
      grid: tokens along a side; token `t` is at row `t // grid`, column `t % grid`.
      head_dim: `F`, a multiple of 4.
      base: of the frequencies.
      extra: rows beyond the grid, for drafts that reach over its end.

    Returns:
      float32 `[prefix + grid ** 2 + extra, F / 2, 2]`.
    """
    half = head_dim // 2
    frequencies = base ** (-2.0 * np.arange(half // 2) / half)
    tokens = np.arange(grid * grid + extra)
    rows = np.outer(tokens // grid, frequencies)
    columns = np.outer(tokens % grid, frequencies)
    angles = np.concatenate([rows, columns], axis=-1)
    table = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    zeros = np.zeros((prefix, *table.shape[1:]))
    return np.concatenate([zeros, table]).astype(np.float32)


def sequence_angles(
    positions: Int[Array, "R T"], head_dim: int, base: float
) -> Float[Array, "R T f 2"]:
    """1-D cosines and sines of each position, `f = F / 2`."""
    frequencies = base ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies.astype(np.float32)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def angles_of(
    config: TransformerConfig,
    positions: Int[Array, "R T"],
    head_dim: int,
    overhang: int = 64,
) -> Float[Array, "R T f 2"]:
    """Angles of absolute positions by a transformer's scheme, for heads of any size.

    Args:
      config: of the transformer.
      positions: int32.
      head_dim: `F`.
      overhang: positions beyond a grid that a draft may reach; they get rows of the
        table like any other and are never committed.
    """
    if config.rope == "sequence":
        return sequence_angles(positions, head_dim, config.rope_base)
    table = grid_table(
        config.prefix_length, config.grid, head_dim, config.rope_base, overhang
    )
    return jnp.asarray(table)[positions]


def rotate(
    x: Float[Array, "R T H F"], angles: Float[Array, "R T f 2"]
) -> Float[Array, "R T H F"]:
    """Turns each adjacent pair of the last axis; float32 inside."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = angles[..., None, :, 0], angles[..., None, :, 1]
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
