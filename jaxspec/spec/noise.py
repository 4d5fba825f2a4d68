"""Randomness that belongs to a row and an absolute position, and to nothing else."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Bool, Float, Int, RowKeys

# Streams apart from the coupled noise, which is keyed by position alone (< 2**31).
_FRESH, _NODES, _PRIVATE = 0x80000001, 0x80000002, 0x80000003


@register_dataclass
@dataclass(frozen=True)
class Noise:
    """What a rule draws with in one round. What a rule leaves unused is not computed.

    Attributes:
      coupled: float32 [B, A, V], Gumbel noise of the positions after the root. Drafters
        may see it. 0 in greedy rows.
      fresh: float32 [B, A, V], Gumbel noise that nothing but the rule sees.
      nodes: float32 [B, N], Gumbel noise that decides where a draft ends; as secret.
      greedy: bool [B], rows that take the likeliest token.
    """

    coupled: Float[Array, "B A V"]
    fresh: Float[Array, "B A V"]
    nodes: Float[Array, "B N"]
    greedy: Bool[Array, "B"]


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


def draw_noise(
    keys: RowKeys,
    positions: Int[Array, "B A"],
    nodes: int,
    vocab_size: int,
    greedy: Bool[Array, "B"] | None = None,
) -> Noise:
    """All randomness of one round; equal arguments give equal noise.

    Args:
      keys: one typed key a row.
      positions: absolute positions after the root, `positions[:, 0]` the next one.
      nodes: `N`.
      vocab_size: `V`.
      greedy: rows without noise; none by default.
    """
    if greedy is None:
        greedy = jnp.zeros(positions.shape[0], bool)

    def fold(stream):
        return jax.vmap(lambda key: jax.random.fold_in(key, jnp.uint32(stream)))(keys)

    def quiet(noise):
        return jnp.where(greedy.reshape(-1, *(1,) * (noise.ndim - 1)), 0.0, noise)

    return Noise(
        quiet(position_noise(keys, positions, vocab_size)),
        quiet(position_noise(fold(_FRESH), positions, vocab_size)),
        quiet(position_noise(fold(_NODES), positions[:, :1], nodes)[:, 0]),
        greedy,
    )


def private_keys(keys: RowKeys, positions: Int[Array, "B"]) -> RowKeys:
    """Keys for a drafter's own draws at a root: no rule ever uses them."""

    def fold(key, position):
        key = jax.random.fold_in(key, jnp.uint32(_PRIVATE))
        return jax.random.fold_in(key, position)

    return jax.vmap(fold)(keys, positions)
