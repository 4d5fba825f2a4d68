"""Falcon training: two blocks after each start, the second on predicted features."""

import jax.numpy as jnp

from jaxspec.drafters.common.target_params import target_norm
from jaxspec.drafters.common.training import (
    DrafterOutputs,
    TeacherOutputs,
    predicted_positions,
    sample_starts,
    smooth_l1,
)
from jaxspec.drafters.falcon.drafter import Falcon
from jaxspec.drafters.falcon.network import windows_of
from jaxspec.typing import Array, Bool, Float, Int, Params

Cache = tuple[Array, Array]  # keys and values of the layer


def falcon_outputs(
    drafter: Falcon, drafter_params: Params, teacher: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """Predicts one block from the target's features and a second from predicted ones.

    The second block replaces the paper's glancing (a second pass in which some wrong
    predictions are corrected): both expose the drafter to its own outputs. A regression
    loss pulls predicted features towards the target's.

    Args:
      drafter: static functions of the drafter.
      drafter_params: parameters of the drafter's network.
      teacher: sequences with the target's logits and features.
      key: random key for the start positions; consumed.
    """
    params = drafter.with_target_params(drafter_params, teacher.params)
    size, length = drafter.config.block, teacher.tokens.shape[1]
    pairs = _data_pairs(drafter, params, teacher)
    starts = sample_starts(teacher, key, max(drafter.target.prefix_length - 1, 0))
    # Slots of the data's pairs, of all first blocks and of all second blocks.
    queries = starts.shape[1] * size
    slots = jnp.arange(length + 2 * queries)
    cache = _cache_data(drafter, params, pairs, length, len(slots))

    past = slots[None, None] <= starts[..., None]
    offsets = jnp.arange(2 * size - 1)[None, None]
    block_pairs = _gather(pairs, starts[..., None] + offsets)  # up to that at the start
    first, cache = _run_block(
        drafter, params, block_pairs, starts - size + 1, past, cache, length
    )

    predicted = _predicted_pairs(params, teacher, starts, first)
    block_pairs = jnp.concatenate([block_pairs[:, :, size:], predicted], axis=2)
    offset = slots[None] - (length + queries)
    same_block = offset // size == jnp.arange(starts.shape[1])[:, None]
    mask = past | (same_block & (offset >= 0))[None]
    second, _ = _run_block(
        drafter, params, block_pairs, starts + 1, mask, cache, length + queries
    )

    h = jnp.concatenate([first, second], axis=2)
    positions, valid = predicted_positions(teacher, starts, 2 * size)
    target_features = target_norm(drafter.target, params, teacher.features)
    regression = smooth_l1(h, _gather(target_features, positions - 1), valid)
    return DrafterOutputs(drafter.scores(params, h), positions, valid, regression)


def _data_pairs(
    drafter: Falcon, params: Params, teacher: TeacherOutputs
) -> Float[Array, "B M C"]:
    """Pairs of each feature and its next token, after the `2 (G - 1)` of no token."""
    pad = ((0, 0), (2 * (drafter.config.block - 1), 0))
    features = jnp.pad(teacher.features, (*pad, (0, 0)))
    tokens = jnp.pad(jnp.roll(teacher.tokens, -1, axis=1), pad, constant_values=-1)
    return drafter.pairs(params, features, tokens)


def _cache_data(
    drafter: Falcon,
    params: Params,
    pairs: Float[Array, "B M C"],
    length: int,
    capacity: int,
) -> Cache:
    """Cache of `capacity` slots with the keys and values of `length` pairs."""
    config, batch = drafter.config, len(pairs)
    shape = (batch, config.heads, capacity, config.head_size)
    causal = jnp.tril(jnp.ones((length, length), bool))
    causal = jnp.pad(causal, ((0, 0), (0, capacity - length)))
    _, cache = drafter.layer(
        params,
        windows_of(pairs[:, config.block - 1 :], config.block),
        jnp.broadcast_to(jnp.arange(length), (batch, length)),
        jnp.broadcast_to(causal, (batch, length, capacity)),
        (jnp.zeros(shape, pairs.dtype), jnp.zeros(shape, pairs.dtype)),
        jnp.zeros(batch, jnp.int32),
    )
    return cache


def _run_block(
    drafter: Falcon,
    params: Params,
    pairs: Float[Array, "B M window C"],
    first: Int[Array, "B M"],
    mask: Bool[Array, "B M S"],
    cache: Cache,
    slot: int,
) -> tuple[Float[Array, "B M G D"], Cache]:
    """Predicts the features of `M` blocks in each sequence.

    Args:
      drafter: static functions of the drafter.
      params: parameters, see `Falcon.with_target_params`.
      pairs: [B, M, 2 G - 1, C], pairs in the windows of a block's queries.
      first: int32 [B, M], position of each block's first query.
      mask: bool [B, M, S], cache slots that the queries of a block attend to.
      cache: keys and values of the layer.
      slot: first cache slot that is written.
    """
    size, (batch, blocks) = drafter.config.block, first.shape
    windows = windows_of(pairs.reshape(batch * blocks, *pairs.shape[2:]), size)
    positions = first[..., None] + jnp.arange(size)[None, None]
    h, cache = drafter.layer(
        params,
        windows.reshape(batch, blocks * size, size, -1),
        positions.reshape(batch, blocks * size),
        jnp.repeat(mask, size, axis=1),
        cache,
        jnp.full(batch, slot),
    )
    return h.reshape(batch, blocks, size, -1), cache


def _predicted_pairs(
    params: Params,
    teacher: TeacherOutputs,
    starts: Int[Array, "B M"],
    features: Float[Array, "B M G D"],
) -> Float[Array, "B M G C"]:
    """Pairs of predicted features and the data's tokens after them."""
    batch, length = teacher.tokens.shape
    offsets = jnp.arange(features.shape[2])[None, None]
    ahead = jnp.minimum(starts[..., None] + 2 + offsets, length - 1)
    tokens = jnp.take_along_axis(teacher.tokens, ahead.reshape(batch, -1), axis=1)
    embedded = params["embedding"][tokens.reshape(ahead.shape)]
    return jnp.concatenate([embedded, features], axis=-1)


def _gather(
    x: Float[Array, "B T C"], index: Int[Array, "B M window"]
) -> Float[Array, "B M window C"]:
    """Vectors of `x` at indices into its second axis."""
    flat = index.reshape(len(x), -1)[..., None]
    return jnp.take_along_axis(x, flat, axis=1).reshape(*index.shape, -1)
