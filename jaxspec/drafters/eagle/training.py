"""EAGLE training: the head is unrolled on its own features."""

import jax.numpy as jnp

from jaxspec.drafters.common.training import (
    DrafterOutputs,
    TeacherOutputs,
    predicted_positions,
    sample_starts,
    smooth_l1,
)
from jaxspec.drafters.eagle.draft_vocabulary import widened
from jaxspec.drafters.eagle.drafter import Eagle
from jaxspec.typing import Array, Params

# Steps for which the head is unrolled (training-time test of EAGLE-3).
UNROLL = 5


def eagle_outputs(
    drafter: Eagle, drafter_params: Params, teacher: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """Unrolls the head for `UNROLL` tokens after sampled positions.

    Step 0 reads the target's features at all positions. Step `i` reads the head's
    outputs of step `i - 1` at the sampled positions, one token further on. A query
    attends to the target features up to its start and to the head's own outputs since,
    as it does when drafting. EAGLE-1 is also trained to predict the target's next
    feature.

    Args:
      drafter: static functions of the drafter.
      drafter_params: parameters of the head.
      teacher: sequences with the target's logits and features.
      key: random key for the positions; consumed.
    """
    params = drafter.with_target_params(drafter_params, teacher.params)
    network = drafter.network(drafter_params)
    batch, length = teacher.tokens.shape
    starts = sample_starts(teacher, key, drafter.target.prefix_length - 1)
    count = starts.shape[1]
    target_features = h = drafter.inputs(params, teacher.features)
    capacity = length + (UNROLL - 1) * count
    shape = (batch, drafter.config.num_kv_heads, capacity, drafter.config.head_size)
    cache = jnp.zeros(shape, h.dtype), jnp.zeros(shape, h.dtype)
    first = jnp.broadcast_to(jnp.arange(length), (batch, length))
    cached = 0
    mask = jnp.pad(
        jnp.tril(jnp.ones((length, length), bool)), ((0, 0), (0, capacity - length))
    )
    mask = jnp.broadcast_to(mask, (batch, length, capacity))
    logits, regression = [], jnp.zeros((), jnp.float32)
    for i in range(UNROLL):
        # The token i + 1 positions after the first feature of the unrolled sequence.
        ahead = jnp.minimum(first + i + 1, length - 1)
        tokens = jnp.take_along_axis(teacher.tokens, ahead, axis=1)
        h, cache = network.layer(
            params["embedding"][tokens],
            h,
            drafter.angles(first + i),
            mask,
            cache,
            jnp.full(batch, cached),
        )
        cached += first.shape[1]
        if drafter.config.version == 1:
            # The output predicts the feature at the position of the token just read.
            next_feature = jnp.take_along_axis(target_features, ahead[..., None], 1)
            inside = first + i + 1 < length
            regression += smooth_l1(h, next_feature, inside) / UNROLL
        if i == 0:  # only the sampled positions are unrolled further
            h = jnp.take_along_axis(h, starts[..., None], axis=1)
            mask = jnp.take_along_axis(mask, starts[..., None], axis=1)
            first = starts
        scores = drafter.scores(params, h)
        if drafter.config.draft_vocab:
            scores = widened(scores, drafter_params["ids"], drafter.target.vocab_size)
        logits.append(scores)
        slots = jnp.arange(length + i * count, length + (i + 1) * count)
        mask |= (slots[:, None] == jnp.arange(capacity)[None])[None]
    positions, valid = predicted_positions(teacher, starts, UNROLL)
    return DrafterOutputs(jnp.stack(logits, axis=2), positions, valid, regression)
