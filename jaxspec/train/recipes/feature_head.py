"""EAGLE's recipes: next features, and the head fed with its own outputs."""

import jax
import jax.numpy as jnp

from jaxspec.drafters.draft_vocabulary import widened
from jaxspec.drafters.feature_head import FeatureHead
from jaxspec.nn.rope import angles_of
from jaxspec.train.recipes.lesson import (
    Guesses,
    Lesson,
    guesses_from,
    some_starts,
)
from jaxspec.typing import Array, Params

# Places ahead that the head is unrolled for: training-time test of EAGLE-3.
UNROLL = 5


def feature_guesses(
    drafter: FeatureHead, own: Params, lesson: Lesson, key: Array
) -> Guesses:
    """Every position goes on for `UNROLL` tokens with the head's own features.

    Step 0 reads the target's features; step `i` the head's outputs of step `i - 1`, one
    token further on. A row sees the features of step 0 up to itself, and its own
    outputs of the steps since, as it will when drafting. Version 1 also learns to meet
    the target's next feature (EAGLE-1's regression). `key` draws the positions whose
    tokens are scored and is consumed.
    """
    params = drafter.bind(own, lesson.params)
    network = drafter.network(own)
    rows, length = lesson.tokens.shape
    wanted = h = drafter.inputs(params, lesson.features)
    positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    causal = jnp.tril(jnp.ones((length, length), bool))
    diagonal = jnp.eye(length, dtype=bool)
    capacity = UNROLL * length
    shape = (rows, drafter.config.num_kv_heads, capacity, drafter.config.head_size)
    cache = jnp.zeros(shape, h.dtype), jnp.zeros(shape, h.dtype)
    starts = some_starts(lesson, key, drafter.target.prefix_length - 1)
    logits, regression = [], jnp.zeros(())
    for i in range(UNROLL):
        # Row t reads the token i + 1 places after the position of its first feature.
        ahead = jnp.roll(lesson.tokens, -(i + 1), axis=1)
        table = jnp.concatenate([causal] + [diagonal] * i, axis=1)
        table = jnp.pad(table, ((0, 0), (0, capacity - table.shape[1])))
        h, cache = network.layer(
            params["embedding"][ahead],
            h,
            angles_of(drafter.target, positions + i, drafter.config.head_size),
            jnp.broadcast_to(table, (rows, length, capacity)),
            cache,
            jnp.full(rows, i * length),
        )
        chosen = jnp.take_along_axis(h, starts[..., None], axis=1)
        scores = drafter.scores(params, chosen)
        if drafter.config.draft_vocab:
            scores = widened(scores, own["ids"], drafter.target.vocab_size)
        logits.append(scores)
        if drafter.config.version == 1:
            # The output stands for the feature at the position of the token just read.
            next_feature = jax.lax.stop_gradient(jnp.roll(wanted, -(i + 1), axis=1))
            gap = jnp.abs(h - next_feature).astype(jnp.float32)
            smooth = jnp.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean(axis=-1)
            inside = jnp.arange(length) + i + 1 < length
            regression += jnp.sum(smooth * inside) / (rows * jnp.sum(inside)) / UNROLL
    places, present = guesses_from(lesson, starts, UNROLL)
    return Guesses(jnp.stack(logits, axis=2), places, present, regression)
