"""Argmax, top-k and sampling over a vocabulary that may be sharded.

The vocabulary is processed in blocks. On a mesh that shards the vocabulary, each device
reduces its own blocks, and only the results are exchanged. On one device, blocks save
passes over the scores.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxspec.typing import Array, Bool, Float, Int

BLOCKS = 128
# Mesh axis along which the vocabulary is sharded.
AXIS = "model"


def vocab_shards() -> int:
    """Number of devices that share the vocabulary, within `sharding.over_batch`."""
    mesh = jax.sharding.get_abstract_mesh()
    sharded = AXIS in mesh.auto_axes and bool(mesh.manual_axes)
    return mesh.shape[AXIS] if sharded else 1


def split_vocab(x: Float[Array, "... V"], fill: float) -> Float[Array, "... c v"]:
    """Splits scores into `c` blocks of `v` adjacent tokens, padded with `fill`."""
    size = x.shape[-1]
    count = BLOCKS if size >= 4 * BLOCKS else 1
    width = -(-size // count)
    pad = [(0, 0)] * (x.ndim - 1) + [(0, count * width - size)]
    blocks = jnp.pad(x, pad, constant_values=fill)
    return blocks.reshape(*x.shape[:-1], count, width)


def argmax_with_margin(scores: Float[Array, "... V"]) -> tuple[Array, Array]:
    """Token with the highest score, lowest id on ties, and its lead over the second.

    Reads all scores once, for the maximum of each block, then the block of the largest
    maximum. This is several times faster than `argmax` on a CPU.
    """
    blocks = split_vocab(scores, -jnp.inf)
    width = blocks.shape[-1]
    maxima = jnp.max(blocks, axis=-1)
    top = jnp.max(maxima, axis=-1, keepdims=True)
    block = _first(maxima == top)
    in_block = jnp.take_along_axis(blocks, block[..., None], axis=-2)[..., 0, :]
    offset = _first(in_block == top)
    second = jnp.maximum(_max_except(maxima, block), _max_except(in_block, offset))
    token = (block * width + offset)[..., 0]
    return jnp.minimum(token, scores.shape[-1] - 1), top[..., 0] - second


def vocab_top_k(
    scores: Float[Array, "... V"], count: int
) -> tuple[Float[Array, "... W"], Int[Array, "... W"]]:
    """The `count` highest scores in descending order, and their tokens.

    Lower ids come first on ties. Within `over_batch` each device finds the highest
    scores of its own part of the vocabulary, and these are compared: `jax.lax.top_k`
    alone would gather all scores.
    """
    shards = vocab_shards()
    if shards == 1 or scores.shape[-1] % shards or scores.shape[-1] // shards < count:
        best, tokens = jax.lax.top_k(scores, count)
        return best, tokens

    def local(shard, index):
        best, tokens = jax.lax.top_k(shard, count)
        tokens = tokens + index * shard.shape[-1]
        gather = partial(jax.lax.all_gather, axis_name=AXIS, axis=-1, tiled=True)
        best, index = jax.lax.top_k(gather(best), count)
        return best, jnp.take_along_axis(gather(tokens), index, axis=-1)

    last = PartitionSpec(*(None,) * (scores.ndim - 1), AXIS)
    return jax.shard_map(
        local,
        in_specs=(last, PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        axis_names={AXIS},
        check_vma=False,
    )(scores, jnp.arange(shards))  # JAX 0.7 has no `axis_index` in a nested `shard_map`


def sample_by_inverse_cdf(
    weights: Float[Array, "... V"], shares: Float[Array, "... W"]
) -> Int[Array, "... W"]:
    """Tokens at which the cumulative weight exceeds given shares of the total.

    Args:
      weights: nonnegative weights of the tokens.
      shares: shares of the total weight, in [0, 1).

    Returns:
      Tokens, int32; none has weight 0.
    """
    blocks = split_vocab(weights, 0.0)
    mass = jnp.sum(blocks, axis=-1)
    block, rest = _search(jnp.cumsum(mass, axis=-1), shares)
    in_block = jnp.take_along_axis(
        blocks[..., None, :, :], block[..., None, None], axis=-2
    )[..., 0, :]  # [..., W, v]
    cumulative = jnp.cumsum(in_block, axis=-1)
    share = rest / jnp.take_along_axis(mass, block, axis=-1)
    offset, _ = _search(cumulative, share[..., None])
    token = block * blocks.shape[-1] + offset[..., 0]
    return jnp.minimum(token, weights.shape[-1] - 1).astype(jnp.int32)


def _search(cumulative: Float[Array, "... n"], shares: Float[Array, "... W"]):
    """First index whose cumulative weight exceeds a share of the total, and the rest.

    The rest is the share of the total minus the cumulative weight before the index.
    """
    total = cumulative[..., -1:]
    # Strictly below the total, so that the entry at the index has some weight.
    level = jnp.minimum(shares * total, jnp.nextafter(total, jnp.zeros_like(total)))
    index = jnp.sum(cumulative[..., None, :] <= level[..., None], axis=-1)
    index = jnp.minimum(index, cumulative.shape[-1] - 1)
    before = jnp.pad(cumulative, [(0, 0)] * (cumulative.ndim - 1) + [(1, 0)])
    return index, jnp.maximum(level - jnp.take_along_axis(before, index, axis=-1), 0.0)


def _first(flags: Bool[Array, "... n"]) -> Int[Array, "... 1"]:
    """Lowest index that is True; `n - 1` if none is."""
    ids = jax.lax.broadcasted_iota(jnp.int32, flags.shape, flags.ndim - 1)
    last = flags.shape[-1] - 1
    return jnp.min(jnp.where(flags, ids, last), axis=-1, keepdims=True)


def _max_except(x: Float[Array, "... n"], index: Int[Array, "... 1"]) -> Array:
    """Largest entry, without the one at `index`."""
    ids = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.max(jnp.where(ids == index, -jnp.inf, x), axis=-1)
