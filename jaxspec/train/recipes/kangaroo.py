"""Kangaroo's adapter learns the target's next tokens from its first layers."""

import jax.numpy as jnp

from jaxspec.drafters.kangaroo import Kangaroo
from jaxspec.train.recipes.lesson import DrafterOutputs, TeacherOutputs, some_starts
from jaxspec.typing import Array, Params


def kangaroo_guesses(
    drafter: Kangaroo, own: Params, lesson: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """The token after some positions; `key` draws them and is consumed."""
    rows, length = lesson.tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    causal = jnp.tril(jnp.ones((length, length), bool))
    logits, _ = drafter.adapt(
        drafter.with_target_params(own, lesson.params),
        lesson.features,
        positions,
        jnp.broadcast_to(causal, (rows, length, length)),
    )
    starts = some_starts(lesson, key, drafter.target.prefix_length)
    chosen = jnp.take_along_axis(logits, starts[..., None], axis=1)
    present = jnp.ones((*starts.shape, 1), bool)
    places = starts[..., None] + 1
    return DrafterOutputs(
        chosen[:, :, None], places, present, jnp.zeros((), jnp.float32)
    )
