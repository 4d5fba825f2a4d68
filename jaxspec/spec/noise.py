"""Gumbel noise that belongs to a row and an absolute position, and to nothing else."""

import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Float, Int, RowKeys


def row_keys(seed: int, rows: int) -> RowKeys:
    """One key a row; row `b` has the same key in a batch of any size.

    Raises:
      ConfigError: the seed does not fit in 64 bits.
    """
    if not -(1 << 63) <= seed < 1 << 63:
        raise ConfigError(f"seed={seed} does not fit in 64 bits; use a smaller one")
    # Named, because under other generators draws depend on the batch they are part of.
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def position_noise(
    keys: RowKeys, positions: Int[Array, "B A"], vocab_size: int
) -> Float[Array, "B A V"]:
    """Standard Gumbel noise of each row and absolute position, float32.

    `mode="high"` keeps the tail: the default float32 draw never exceeds 15.94, which
    sharpens a distribution over many unlikely tokens (arXiv 2409.02908).
    """

    def draw(key, position):
        key = jax.random.fold_in(key, position)
        return jax.random.gumbel(key, (vocab_size,), jnp.float32, mode="high")

    return jax.vmap(jax.vmap(draw, (None, 0)))(keys, positions)
