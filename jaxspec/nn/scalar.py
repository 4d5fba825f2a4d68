"""Quantizers without a learned codebook: FSQ, LFQ and the bits of BAE.

Both round every channel of a vector by itself, so that their codebook is the product of
the values of each channel. Channel 0 is the fastest digit of a code.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.typing import Array, Bool, Float, Int

_MARGIN = 1e-3
# Channels of which all combinations are counted together.
_GROUP = 12


def product_codebook(values: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """All vectors float32 [V, C] of given values of each channel, in code order."""
    grids = np.meshgrid(*values[::-1], indexing="ij")
    return np.stack([grid.reshape(-1) for grid in grids[::-1]], -1).astype(np.float32)


def fsq_values(levels: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """Values of each channel, from -1 on (FSQ, arXiv 2309.15505)."""
    return tuple(
        tuple((i - count // 2) / (count // 2) for i in range(count)) for count in levels
    )


def fsq_bounded(
    vectors: Float[Array, "... C"], levels: tuple[int, ...]
) -> Float[Array, "... C"]:
    """Vectors whose channels are squeezed into the range of their values, float32.

    Args:
      vectors: vectors before quantization.
      levels: number of values of each channel.
    """
    counts = np.array(levels)
    half = (counts - 1) * (1 + _MARGIN) / 2
    offset = np.where(counts % 2 == 0, 0.5, 0.0)
    shift = np.arctanh(offset / half)
    x = vectors.astype(jnp.float32) + _constant(shift, vectors)
    bounded = jnp.tanh(x) * _constant(half, vectors) - _constant(offset, vectors)
    return bounded / _constant(counts // 2, vectors)


def product_codes(
    vectors: Float[Array, "... C"], levels: tuple[int, ...]
) -> Int[Array, "..."]:
    """Codes, int32, of the nearest vectors of FSQ's codebook.

    Args:
      vectors: vectors as `fsq_bounded` returns them.
      levels: number of values of each channel.
    """
    halves = np.array(levels) // 2
    digits = jnp.round(vectors * _constant(halves, vectors))
    digits = digits.astype(jnp.int32) + _whole(halves, vectors)
    digits = jnp.clip(digits, 0, _whole(np.array(levels) - 1, vectors))
    weights = [math.prod(levels[:j]) for j in range(len(levels))]
    return jnp.sum(digits * _whole(weights, vectors), axis=-1, dtype=jnp.int32)


def sign_codes(vectors: Float[Array, "... C"]) -> Int[Array, "..."]:
    """Codes, int32, of signs (LFQ, arXiv 2310.05737); that of 0 is -1."""
    return bit_codes(vectors > 0)


def bit_codes(bits: Bool[Array, "... C"]) -> Int[Array, "..."]:
    """Codes, int32, of bits, of which the first is the lowest.

    In the models of BAE (arXiv 2410.16257) it is the highest.
    """
    weights = _whole(1 << np.arange(bits.shape[-1]), bits)
    return jnp.sum(bits.astype(jnp.int32) * weights, axis=-1, dtype=jnp.int32)


def sign_entropy(
    vectors: Float[Array, "n C"], temperature: float = 0.01
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean entropy of soft codes, and entropy of their mean, in nats (LFQ).

    A vector's soft code is the softmax, over all codes, of minus its squared distance
    divided by the temperature. The entropy of the mean is the sum of those of groups of
    at most 12 channels, which is exact for up to 12 and an upper bound beyond.

    Args:
      vectors: vectors before quantization.
      temperature: temperature of the softmax.
    """
    x = vectors.astype(jnp.float32) * (4 / temperature)
    # Channels are independent of each other, so entropies of one vector add up.
    own = jax.nn.sigmoid(x) * jax.nn.softplus(-x) + jax.nn.sigmoid(
        -x
    ) * jax.nn.softplus(x)
    channels, total = vectors.shape[-1], jnp.zeros((), jnp.float32)
    for first in range(0, channels, _GROUP):
        part = x[:, first : first + _GROUP]
        values = ((-1.0, 1.0),) * part.shape[-1]
        logits = part @ jnp.asarray(product_codebook(values).T) / 2
        mean = jnp.mean(jax.nn.softmax(logits, axis=-1), axis=0)
        # Codes that no vector is near to have a mean of 0, without a logarithm.
        total -= jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-20)))
    return jnp.mean(jnp.sum(own, axis=-1)), total


def _constant(values, like: Array) -> Array:
    """Numbers of each channel, float32, with the axes of an array."""
    values = np.asarray(values, np.float32)
    return jnp.asarray(values.reshape((1,) * (like.ndim - 1) + (-1,)))


def _whole(values, like: Array) -> Array:
    values = np.asarray(values, np.int32)
    return jnp.asarray(values.reshape((1,) * (like.ndim - 1) + (-1,)))
