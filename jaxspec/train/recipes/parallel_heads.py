"""Medusa's and Hydra's recipe: every head at every position."""

import jax.numpy as jnp

from jaxspec.drafters.parallel_heads import Medusa
from jaxspec.drafters.shared import target_norm
from jaxspec.nn.rope import angles_of
from jaxspec.train.recipes.lesson import (
    DrafterOutputs,
    TeacherOutputs,
    guesses_from,
    some_starts,
)
from jaxspec.typing import Array, Params


def head_guesses(
    drafter: Medusa, own: Params, lesson: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """From the feature of each position, the tokens two and more places later.

    The next one is the target's own. Hydra's heads read the data's tokens in between.
    `key` draws the positions and is consumed.
    """
    c, params = drafter.config, drafter.with_target_params(own, lesson.params)
    network = drafter.network(own)
    rows, length = lesson.tokens.shape
    h = target_norm(drafter.target, params, lesson.features)
    if c.prefix_heads:
        positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
        size = c.width // c.prefix_heads
        causal = jnp.tril(jnp.ones((length, length), bool))
        mask = jnp.broadcast_to(causal, (rows, length, length))
        h, _ = network.prefix(h, angles_of(drafter.target, positions, size), mask)
    starts = some_starts(lesson, key, drafter.target.prefix_length - 1)
    h = jnp.take_along_axis(h, starts[..., None], axis=1)
    logits, path = [], []
    for i in range(c.heads):
        ahead = jnp.minimum(starts + i + 1, length - 1)
        tokens = jnp.take_along_axis(lesson.tokens, ahead, axis=1)
        path.append(params["embedding"][tokens])
        seen = jnp.concatenate(path, axis=-1) if c.sequential else None
        logits.append(drafter.scores(params, i, network.head(i, h, seen)))
    places, present = guesses_from(lesson, starts, c.heads)
    zero = jnp.zeros((), jnp.float32)
    return DrafterOutputs(jnp.stack(logits, axis=2), places, present, zero)
