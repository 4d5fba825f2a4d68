"""Falcon training: two blocks after each start, the second on predicted features."""

import jax.numpy as jnp

from jaxspec.drafters.falcon import Falcon, windows_of
from jaxspec.drafters.shared import target_norm
from jaxspec.train.recipes.teacher import (
    DrafterOutputs,
    TeacherOutputs,
    predicted_positions,
    sample_starts,
    smooth_l1,
)
from jaxspec.typing import Array, Params


def falcon_outputs(
    drafter: Falcon, drafter_params: Params, teacher: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """Predicts one block from the target's features and a second from its own.

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
    size = drafter.config.block
    batch, length = teacher.tokens.shape
    before = 2 * (size - 1)
    pad = ((0, 0), (before, 0))
    features = jnp.pad(teacher.features, (*pad, (0, 0)))
    tokens = jnp.pad(jnp.roll(teacher.tokens, -1, axis=1), pad, constant_values=-1)
    pairs = drafter.pairs(params, features, tokens)

    starts = sample_starts(teacher, key, max(drafter.target.prefix_length - 1, 0))
    blocks = starts.shape[1]
    queries = blocks * size
    capacity = length + 2 * queries
    config = drafter.config
    shape = (batch, config.heads, capacity, config.head_size)
    cache = jnp.zeros(shape, pairs.dtype), jnp.zeros(shape, pairs.dtype)

    # Keys and values of all pairs of the data.
    causal = jnp.tril(jnp.ones((length, length), bool))
    causal = jnp.pad(causal, ((0, 0), (0, 2 * queries)))
    order = jnp.broadcast_to(jnp.arange(length), (batch, length))
    _, cache = drafter.layer(
        params,
        windows_of(pairs[:, size - 1 :], size),
        order,
        jnp.broadcast_to(causal, (batch, length, capacity)),
        cache,
        jnp.zeros(batch, jnp.int32),
    )

    def run_block(block_pairs, first, mask, cache, slot):
        """Features predicted from `block_pairs` [B, M, 2 G - 1, width of a pair].

        Queries have the positions from `first` [B, M] on and are cached from `slot` on.
        """
        flat = block_pairs.reshape(batch * blocks, *block_pairs.shape[2:])
        windows = windows_of(flat, size).reshape(batch, queries, size, -1)
        positions = first[..., None] + jnp.arange(size)[None, None]
        h, cache = drafter.layer(
            params,
            windows,
            positions.reshape(batch, queries),
            jnp.repeat(mask, size, axis=1),
            cache,
            jnp.full(batch, slot),
        )
        return h.reshape(batch, blocks, size, -1), cache

    past = jnp.arange(capacity)[None, None] <= starts[..., None]
    steps = jnp.arange(2 * size - 1)[None, None]
    index = starts[..., None] + steps  # the last one is the pair at the start
    data_pairs = jnp.take_along_axis(
        pairs, index.reshape(batch, -1)[..., None], axis=1
    ).reshape(batch, blocks, 2 * size - 1, -1)
    first, cache = run_block(data_pairs, starts - size + 1, past, cache, length)

    ahead = jnp.minimum(
        starts[..., None] + 2 + jnp.arange(size)[None, None], length - 1
    )
    tokens = jnp.take_along_axis(teacher.tokens, ahead.reshape(batch, -1), axis=1)
    embedded = params["embedding"][tokens.reshape(ahead.shape)]
    predicted_pairs = jnp.concatenate([embedded, first], axis=-1)
    block_pairs = jnp.concatenate([data_pairs[:, :, size:], predicted_pairs], axis=2)
    offset = jnp.arange(capacity)[None] - (length + queries)
    same_block = offset // size == jnp.arange(blocks)[:, None]
    mask = past | (same_block & (offset >= 0))[None]
    second, _ = run_block(block_pairs, starts + 1, mask, cache, length + queries)

    h = jnp.concatenate([first, second], axis=2)
    positions, valid = predicted_positions(teacher, starts, 2 * size)
    target_features = target_norm(drafter.target, params, teacher.features)
    target_features = jnp.take_along_axis(
        target_features, positions.reshape(batch, -1)[..., None] - 1, axis=1
    ).reshape(h.shape)
    regression = smooth_l1(h, target_features, valid)
    return DrafterOutputs(drafter.scores(params, h), positions, valid, regression)
