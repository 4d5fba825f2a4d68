"""Randomness that belongs to a row and an absolute position, and to nothing else."""

from dataclasses import dataclass, field
from operator import index
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.core.arguments import check_keys, check_rows
from jaxspec.core.threefry import threefry
from jaxspec.errors import ConfigError
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int, Key

# Streams apart from the coupled noise. Its counter is (position, token), with tokens
# below 2**31; folding one of these in is the counter (0, stream).
_FRESH, _NODES, _PRIVATE = 0x80000001, 0x80000002, 0x80000003


@register_dataclass
@dataclass(frozen=True)
class FreshNoise:
    """Gumbel noise of the positions after the root, drawn where it is asked for.

    Attributes:
      keys: one typed key a row.
      positions: int32 [B, A], absolute.
      greedy: bool [B], rows whose noise is 0.
      vocab_size: `V`; static.
    """

    keys: BatchKeys
    positions: Int[Array, "B A"]
    greedy: Bool[Array, "B"]
    vocab_size: int = field(metadata={"static": True})

    def at(self, place: Int[Array, "B"]) -> Float[Array, "B V"]:
        """Float32, of the `place`-th position after the root."""
        position = jnp.take_along_axis(self.positions, place[:, None], axis=1)
        noise = position_noise(self.keys, position, self.vocab_size)[:, 0]
        return jnp.where(self.greedy[:, None], 0.0, noise)


@register_dataclass
@dataclass(frozen=True)
class Noise:
    """What a verifier draws with in one round. What a verifier leaves unused is not
    computed.

    Attributes:
      coupled: float32 [B, A, V], Gumbel noise of the positions after the root. Drafters
        may see it. 0 in greedy rows.
      fresh: Gumbel noise that nothing but the verifier sees.
      nodes: float32 [B, N], Gumbel noise that decides where a draft ends; as secret.
      greedy: bool [B], rows that take the likeliest token.
    """

    coupled: Float[Array, "B A V"]
    fresh: FreshNoise
    nodes: Float[Array, "B N"]
    greedy: Bool[Array, "B"]


def check_seed(seed: int) -> int:
    """The seed.

    Raises:
      ConfigError: it is no whole number, or does not fit in 64 bits.
    """
    try:
        number = index(seed)
    except TypeError:
        number = None
    if number is None or not -(1 << 63) <= number < 1 << 63:
        raise ConfigError(
            f"seed={seed} is impossible; use a whole number that fits in 64 bits with "
            "its sign"
        )
    return number


def batch_keys(seed: int | Key[Array, ""], batch: int | Int[Array, "B"]) -> BatchKeys:
    """One key a sequence: `fold_in(key, i)`, not `split`, for sequence `i`.

    Sequence `i` has the same key in a batch of any size.

    Args:
      seed: seed, see `seed_key`; or a typed key.
      batch: number of sequences, or their numbers.

    Raises:
      ConfigError: the seed is no whole number of 64 bits, or the key is of another kind
        than `jax.random.key(seed, impl="threefry2x32")`.
    """
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        key = seed
        check_keys(key[None])
    else:
        key = seed_key(cast(int, seed))
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(
        jnp.arange(batch, dtype=jnp.int32) if isinstance(batch, int) else batch
    )


def seed_key(seed: int) -> Key[Array, ""]:
    """The key of a seed: all of its 64 bits, whether or not JAX has 64-bit numbers.

    `jax.random.key` drops the upper 32 without `JAX_ENABLE_X64`, so that seeds that
    differ by `2**32` would yield the same images. For `0 <= seed < 2**32` the key is
    that of `jax.random.key(seed, impl="threefry2x32")`.

    Args:
      seed: from `-2**63` to `2**63 - 1`; no two have the same key.

    Raises:
      ConfigError: the seed is no whole number of 64 bits.
    """
    number = check_seed(seed)
    words = np.array([number >> 32 & 0xFFFFFFFF, number & 0xFFFFFFFF], np.uint32)
    # Named, because under other generators draws depend on the batch they are part of.
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


def position_noise(
    keys: BatchKeys, positions: Int[Array, "B A"], vocab_size: int
) -> Float[Array, "B A V"]:
    """Standard Gumbel noise of each row, absolute position and token, float32.

    Each number is a function of its row's key, its position and its token alone.
    Uniform numbers have 48 bits where they become large noise: with the 23 of a plain
    float32 draw the noise would never exceed 15.94, which sharpens a distribution over
    many unlikely tokens (arXiv 2409.02908).

    Raises:
      ConfigError: the keys are not those of `batch_keys`, or not one for each row of
        positions.
    """
    check_keys(keys)
    check_rows(keys.shape[0], positions=positions)
    words = jax.random.key_data(keys)
    token = jnp.arange(vocab_size, dtype=jnp.uint32)

    def draw(position):  # [B, ...] to [B, ..., V]
        axes = (1,) * position.ndim  # of [B, ..., V], all but one
        word = words.reshape(-1, *axes, 2)
        counter = position.astype(jnp.uint32)[..., None], token.reshape(*axes, -1)
        return _gumbel(*threefry((word[..., 0], word[..., 1]), counter))

    def one_by_one(positions):
        return jax.lax.map(draw, positions.T).swapaxes(0, 1)

    # On a CPU XLA would fuse the draw into whatever reads it, and so repeat it for
    # every node of a position. A loop's result is drawn once.
    return jax.lax.platform_dependent(positions, cpu=one_by_one, default=draw)


def _gumbel(high: Int[Array, "..."], low: Int[Array, "..."]) -> Float[Array, "..."]:
    """Standard Gumbel noise from two random words."""

    def fraction(word):  # in [0, 1), 24 bits
        return (word >> 8).astype(jnp.int32).astype(jnp.float32) * 2.0**-24

    x = fraction(high)
    # The second word refines where float32 can tell, and keeps x from being 0.
    x = jnp.where(x < 0.5, x + 2.0**-24 * fraction(low) + 2.0**-49, x)
    return -jnp.log(-jnp.log1p(-x))


def draw_noise(
    keys: BatchKeys,
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

    Raises:
      ConfigError: as `position_noise`.
    """
    check_keys(keys)
    if greedy is None:
        greedy = jnp.zeros(positions.shape[0], bool)

    def fold(stream):
        return jax.vmap(lambda key: jax.random.fold_in(key, jnp.uint32(stream)))(keys)

    def quiet(noise):
        return jnp.where(greedy.reshape(-1, *(1,) * (noise.ndim - 1)), 0.0, noise)

    return Noise(
        quiet(position_noise(keys, positions, vocab_size)),
        FreshNoise(fold(_FRESH), positions, greedy, vocab_size),
        quiet(position_noise(fold(_NODES), positions[:, :1], nodes)[:, 0]),
        greedy,
    )


def private_keys(keys: BatchKeys, positions: Int[Array, "B"]) -> BatchKeys:
    """Keys for a drafter's own draws at a root: no verifier ever uses them."""

    def fold(key, position):
        key = jax.random.fold_in(key, jnp.uint32(_PRIVATE))
        return jax.random.fold_in(key, position)

    return jax.vmap(fold)(keys, positions)
