"""Random noise as a function of the key of a sequence and an absolute position."""

from dataclasses import dataclass, field
from operator import index
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.core.arguments import check_batch, check_keys
from jaxspec.core.threefry import threefry
from jaxspec.errors import ConfigError
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int, Key, UInt32

# Numbers folded into a key for noise that is independent of the coupled noise. The
# counter of coupled noise is (position, token) with tokens below 2**31, that of
# `fold_in` is (0, number): the two never coincide.
_FRESH, _NODES, _PRIVATE = 0x80000001, 0x80000002, 0x80000003


@register_dataclass
@dataclass(frozen=True)
class FreshNoise:
    """Gumbel noise of the positions after the root, sampled at one of them on demand.

    Attributes:
      keys: typed keys [B].
      positions: int32 [B, A], absolute positions.
      greedy: bool [B], sequences whose noise is 0.
      vocab_size: size of the vocabulary, `V`; static.
    """

    keys: BatchKeys
    positions: Int[Array, "B A"]
    greedy: Bool[Array, "B"]
    vocab_size: int = field(metadata={"static": True})

    def at(self, index: Int[Array, "B"]) -> Float[Array, "B V"]:
        """Noise of position number `index` after the root, float32."""
        position = jnp.take_along_axis(self.positions, index[:, None], axis=1)
        noise = position_noise(self.keys, position, self.vocab_size)[:, 0]
        return jnp.where(self.greedy[:, None], 0.0, noise)


@register_dataclass
@dataclass(frozen=True)
class Noise:
    """Random noise of a verifier in one round.

    Under `jit`, noise that a verifier does not use is not computed.

    Attributes:
      coupled: float32 [B, A, V], Gumbel noise of the positions after the root, which
        drafters also read; 0 in greedy sequences.
      fresh: Gumbel noise that only the verifier reads.
      nodes: float32 [B, N], Gumbel noise by which a verifier samples the last accepted
        node; only the verifier reads it.
      greedy: bool [B], sequences that take the likeliest token.
    """

    coupled: Float[Array, "B A V"]
    fresh: FreshNoise
    nodes: Float[Array, "B N"]
    greedy: Bool[Array, "B"]


def check_seed(seed: int) -> int:
    """Returns the seed as an `int`.

    Raises:
      ConfigError: the seed is not a whole number, or does not fit in 64 bits.
    """
    try:
        number = index(seed)
    except TypeError:
        number = None
    if number is None or not -(1 << 63) <= number < 1 << 63:
        raise ConfigError(
            f"seed={seed} is impossible; use a whole number that fits in 64 bits, sign "
            "included"
        )
    return number


def batch_keys(seed: int | Key[Array, ""], batch: int | Int[Array, "B"]) -> BatchKeys:
    """Keys of the sequences of a batch: `fold_in(key, i)` for sequence `i`.

    Unlike with `split`, sequence `i` has the same key in a batch of any size.

    Args:
      seed: seed, see `seed_key`; or a typed key.
      batch: number of sequences, or int32 [B], the index of each sequence.

    Raises:
      ConfigError: the seed is not a whole number of 64 bits, or the key is of another
        kind than `jax.random.key(seed, impl="threefry2x32")`.
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
    """Key made from all 64 bits of a seed, with or without `JAX_ENABLE_X64`.

    Without `JAX_ENABLE_X64`, `jax.random.key` drops the upper 32 bits, so that seeds
    that differ by `2**32` would yield the same images. For `0 <= seed < 2**32` the key
    is `jax.random.key(seed, impl="threefry2x32")`.

    Args:
      seed: whole number from `-2**63` to `2**63 - 1`; different seeds have different
        keys.

    Raises:
      ConfigError: the seed is not a whole number of 64 bits.
    """
    number = check_seed(seed)
    words = np.array([number >> 32 & 0xFFFFFFFF, number & 0xFFFFFFFF], np.uint32)
    # Explicit, since samples of other generators depend on the batch.
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


def position_noise(
    keys: BatchKeys, positions: Int[Array, "B A"], vocab_size: int
) -> Float[Array, "B A V"]:
    """Standard Gumbel noise of each sequence, absolute position and token, float32.

    Each number is a function of the key of its sequence, its position and its token
    alone. Uniform numbers that become large noise have 48 bits: with the 23 bits of a
    float32 sample, noise would never exceed 15.94, which sharpens a distribution over
    many unlikely tokens (arXiv 2409.02908).

    Args:
      keys: typed keys, see `batch_keys`.
      positions: int32, absolute positions.
      vocab_size: size of the vocabulary, `V`.

    Raises:
      ConfigError: the keys are not those of `batch_keys`, or there is not one for each
        sequence.
    """
    check_keys(keys)
    check_batch(keys.shape[0], positions=positions)
    words = jax.random.key_data(keys)
    token = jnp.arange(vocab_size, dtype=jnp.uint32)

    def sample(position):  # [B, ...] to [B, ..., V]
        axes = (1,) * position.ndim
        word = words.reshape(-1, *axes, 2)
        counter = position.astype(jnp.uint32)[..., None], token.reshape(*axes, -1)
        return _gumbel(*threefry((word[..., 0], word[..., 1]), counter))

    def sample_in_loop(positions):
        return jax.lax.map(sample, positions.T).swapaxes(0, 1)

    # On a CPU XLA would fuse sampling into its consumers and repeat it for every node
    # of a position. The result of a loop is computed once.
    return jax.lax.platform_dependent(positions, cpu=sample_in_loop, default=sample)


def _gumbel(
    high: UInt32[Array, "..."], low: UInt32[Array, "..."]
) -> Float[Array, "..."]:
    """Standard Gumbel noise from two random words."""

    def fraction(word):  # in [0, 1), 24 bits
        return (word >> 8).astype(jnp.int32).astype(jnp.float32) * 2.0**-24

    x = fraction(high)
    # The second word adds bits where float32 has them, and keeps x above 0.
    x = jnp.where(x < 0.5, x + 2.0**-24 * fraction(low) + 2.0**-49, x)
    return -jnp.log(-jnp.log1p(-x))


def draw_noise(
    keys: BatchKeys,
    positions: Int[Array, "B A"],
    nodes: int,
    vocab_size: int,
    greedy: Bool[Array, "B"] | None = None,
) -> Noise:
    """Noise of one round; equal arguments give equal noise.

    Args:
      keys: typed keys, one per sequence.
      positions: int32, absolute positions after the root.
      nodes: number of nodes of the tree, `N`.
      vocab_size: size of the vocabulary, `V`.
      greedy: mask of the sequences without noise; none by default.

    Raises:
      ConfigError: keys do not fit, see `position_noise`.
    """
    check_keys(keys)
    if greedy is None:
        greedy = jnp.zeros(positions.shape[0], bool)
    check_batch(keys.shape[0], positions=positions, greedy=greedy)

    def fold(number):
        return jax.vmap(lambda key: jax.random.fold_in(key, jnp.uint32(number)))(keys)

    def zero_greedy(noise):
        return jnp.where(greedy.reshape(-1, *(1,) * (noise.ndim - 1)), 0.0, noise)

    return Noise(
        zero_greedy(position_noise(keys, positions, vocab_size)),
        FreshNoise(fold(_FRESH), positions, greedy, vocab_size),
        zero_greedy(position_noise(fold(_NODES), positions[:, :1], nodes)[:, 0]),
        greedy,
    )


def private_keys(keys: BatchKeys, positions: Int[Array, "B"]) -> BatchKeys:
    """Keys of a drafter at the position of a root; verifiers do not use them."""

    def fold(key, position):
        key = jax.random.fold_in(key, jnp.uint32(_PRIVATE))
        return jax.random.fold_in(key, position)

    return jax.vmap(fold)(keys, positions)
