"""EAGLE's recipes: next features, and the head fed with its own outputs."""

import jax.numpy as jnp

from jaxspec.drafters.draft_vocabulary import widened
from jaxspec.drafters.feature_head import Eagle
from jaxspec.train.recipes.lesson import (
    DrafterOutputs,
    TeacherOutputs,
    guesses_from,
    smooth_l1,
    some_starts,
)
from jaxspec.typing import Array, Params

# Places ahead that the head is unrolled for: training-time test of EAGLE-3.
UNROLL = 5


def feature_guesses(
    drafter: Eagle, own: Params, lesson: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """Some positions go on for `UNROLL` tokens with the head's own features.

    Step 0 reads the target's features of all positions; step `i` the head's outputs of
    step `i - 1` at the drawn ones, one token further on. A row sees the features of
    step 0 up to itself, and its own outputs of the steps since, as it will when
    drafting. Version 1 also learns to meet the target's next feature (EAGLE-1's
    regression). `key` draws the positions and is consumed.
    """
    params = drafter.with_target_params(own, lesson.params)
    network = drafter.network(own)
    rows, length = lesson.tokens.shape
    starts = some_starts(lesson, key, drafter.target.prefix_length - 1)
    count = starts.shape[1]
    wanted = h = drafter.inputs(params, lesson.features)
    capacity = length + (UNROLL - 1) * count
    shape = (rows, drafter.config.num_kv_heads, capacity, drafter.config.head_size)
    cache = jnp.zeros(shape, h.dtype), jnp.zeros(shape, h.dtype)
    place, read = jnp.broadcast_to(jnp.arange(length), (rows, length)), 0
    mask = jnp.pad(
        jnp.tril(jnp.ones((length, length), bool)), ((0, 0), (0, capacity - length))
    )
    mask = jnp.broadcast_to(mask, (rows, length, capacity))
    logits, regression = [], jnp.zeros((), jnp.float32)
    for i in range(UNROLL):
        # The token i + 1 places after the position of a row's first feature.
        ahead = jnp.minimum(place + i + 1, length - 1)
        tokens = jnp.take_along_axis(lesson.tokens, ahead, axis=1)
        h, cache = network.layer(
            params["embedding"][tokens],
            h,
            drafter.angles(place + i),
            mask,
            cache,
            jnp.full(rows, read),
        )
        read += place.shape[1]
        if drafter.config.version == 1:
            # The output stands for the feature at the position of the token just read.
            next_feature = jnp.take_along_axis(wanted, ahead[..., None], axis=1)
            inside = place + i + 1 < length
            regression += smooth_l1(h, next_feature, inside) / UNROLL
        if i == 0:  # the others are not followed further
            h = jnp.take_along_axis(h, starts[..., None], axis=1)
            mask = jnp.take_along_axis(mask, starts[..., None], axis=1)
            place = starts
        scores = drafter.scores(params, h)
        if drafter.config.draft_vocab:
            scores = widened(scores, own["ids"], drafter.target.vocab_size)
        logits.append(scores)
        own_rows = jnp.arange(length + i * count, length + (i + 1) * count)
        mask |= (own_rows[:, None] == jnp.arange(capacity)[None])[None]
    places, present = guesses_from(lesson, starts, UNROLL)
    return DrafterOutputs(jnp.stack(logits, axis=2), places, present, regression)
