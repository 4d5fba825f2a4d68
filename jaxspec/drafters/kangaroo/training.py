"""Kangaroo training: the adapter predicts next tokens from early-layer features."""

import jax.numpy as jnp

from jaxspec.drafters.common.training import (
    DrafterOutputs,
    TeacherOutputs,
    sample_starts,
)
from jaxspec.drafters.kangaroo.drafter import Kangaroo
from jaxspec.typing import Array, Params


def kangaroo_outputs(
    drafter: Kangaroo, drafter_params: Params, teacher: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """Predicts the token after sampled positions.

    Args:
      drafter: static functions of the drafter.
      drafter_params: parameters of the adapter.
      teacher: sequences with the target's logits and features.
      key: random key for the positions; consumed.
    """
    batch, length = teacher.tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    causal = jnp.tril(jnp.ones((length, length), bool))
    logits, _ = drafter.adapt(
        drafter.with_target_params(drafter_params, teacher.params),
        teacher.features,
        positions,
        jnp.broadcast_to(causal, (batch, length, length)),
    )
    starts = sample_starts(teacher, key, drafter.target.prefix_length)
    logits = jnp.take_along_axis(logits, starts[..., None], axis=1)
    valid = jnp.ones((*starts.shape, 1), bool)
    return DrafterOutputs(
        logits[:, :, None], starts[..., None] + 1, valid, jnp.zeros((), jnp.float32)
    )
