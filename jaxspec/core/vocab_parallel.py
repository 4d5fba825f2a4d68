"""Choosing tokens by blocks of the vocabulary.

Blocks can be worked on where they lie: on a mesh that divides the vocabulary, only what
is best in each travels. On one device it saves passes over the scores.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxspec.typing import Array, Bool, Float, Int

BLOCKS = 128
# Of a mesh, the axis along which the vocabulary is divided.
AXIS = "model"


def vocab_shards() -> int:
    """Among how many devices `sharding.over_batch` divides the vocabulary here."""
    mesh = jax.sharding.get_abstract_mesh()
    divided = AXIS in mesh.auto_axes and bool(mesh.manual_axes)
    return mesh.shape[AXIS] if divided else 1


def split_vocab(x: Float[Array, "... V"], fill: float) -> Float[Array, "... c v"]:
    """`c` blocks of neighboring tokens, the last ones filled up."""
    size = x.shape[-1]
    count = BLOCKS if size >= 4 * BLOCKS else 1
    width = -(-size // count)
    pad = [(0, 0)] * (x.ndim - 1) + [(0, count * width - size)]
    blocks = jnp.pad(x, pad, constant_values=fill)
    return blocks.reshape(*x.shape[:-1], count, width)


def argmax_with_margin(scores: Float[Array, "... V"]) -> tuple[Array, Array]:
    """The best token, lowest id on ties, and its lead over the second best.

    Reads the scores once, for the best of each block, and then the winning block:
    several times faster than `argmax` on a CPU.
    """
    blocks = split_vocab(scores, -jnp.inf)
    width = blocks.shape[-1]
    best = jnp.max(blocks, axis=-1)
    top = jnp.max(best, axis=-1, keepdims=True)
    block = _first(best == top)
    own = jnp.take_along_axis(blocks, block[..., None], axis=-2)[..., 0, :]
    place = _first(own == top)
    others = jnp.maximum(_best_but(best, block), _best_but(own, place))
    token = (block * width + place)[..., 0]
    return jnp.minimum(token, scores.shape[-1] - 1), top[..., 0] - others


def vocab_top_k(
    scores: Float[Array, "... V"], count: int
) -> tuple[Float[Array, "... W"], Int[Array, "... W"]]:
    """The best `count` scores and their tokens, in order; lowest ids first on ties.

    Under `over_batch` each device looks through its own part of the vocabulary, and the
    best of each are compared: `top_k` alone would gather the scores.
    """
    parts = vocab_shards()
    if parts == 1 or scores.shape[-1] % parts or scores.shape[-1] // parts < count:
        return jax.lax.top_k(scores, count)

    def local(own):
        best, tokens = jax.lax.top_k(own, count)
        tokens = tokens + jax.lax.axis_index(AXIS) * own.shape[-1]
        together = partial(jax.lax.all_gather, axis_name=AXIS, axis=-1, tiled=True)
        best, at = jax.lax.top_k(together(best), count)
        return best, jnp.take_along_axis(together(tokens), at, axis=-1)

    last = PartitionSpec(*(None,) * (scores.ndim - 1), AXIS)
    return jax.shard_map(
        local,
        in_specs=last,
        out_specs=PartitionSpec(),
        axis_names={AXIS},
        check_vma=False,
    )(scores)


def sample_by_inverse_cdf(
    weights: Float[Array, "... V"], shares: Float[Array, "... W"]
) -> Int[Array, "... W"]:
    """Tokens at given shares (in [0, 1)) of the cumulative weight; each has some."""
    blocks = split_vocab(weights, 0.0)
    mass = jnp.sum(blocks, axis=-1)
    block, rest = _below(jnp.cumsum(mass, axis=-1), shares)
    own = jnp.take_along_axis(blocks[..., None, :, :], block[..., None, None], axis=-2)[
        ..., 0, :
    ]  # [..., W, v]
    before = jnp.cumsum(own, axis=-1)
    inside = rest / jnp.take_along_axis(mass, block, axis=-1)
    place, _ = _below(before, inside[..., None])
    token = block * blocks.shape[-1] + place[..., 0]
    return jnp.minimum(token, weights.shape[-1] - 1).astype(jnp.int32)


def _below(total: Float[Array, "... n"], shares: Float[Array, "... W"]):
    """The first index whose running total exceeds a share of it all; what is left."""
    whole = total[..., -1:]
    # Strictly below the whole, so that what is found has some weight.
    level = jnp.minimum(shares * whole, jnp.nextafter(whole, jnp.zeros_like(whole)))
    index = jnp.sum(total[..., None, :] <= level[..., None], axis=-1)
    index = jnp.minimum(index, total.shape[-1] - 1)
    before = jnp.pad(total, [(0, 0)] * (total.ndim - 1) + [(1, 0)])
    return index, jnp.maximum(level - jnp.take_along_axis(before, index, axis=-1), 0.0)


def _first(flags: Bool[Array, "... n"]) -> Int[Array, "... 1"]:
    """The lowest index that is set; `n - 1` if none is."""
    ids = jax.lax.broadcasted_iota(jnp.int32, flags.shape, flags.ndim - 1)
    last = flags.shape[-1] - 1
    return jnp.min(jnp.where(flags, ids, last), axis=-1, keepdims=True)


def _best_but(x: Float[Array, "... n"], index: Int[Array, "... 1"]) -> Array:
    """The largest entry but one."""
    ids = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.max(jnp.where(ids == index, -jnp.inf, x), axis=-1)
