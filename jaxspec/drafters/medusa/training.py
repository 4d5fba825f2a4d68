"""Medusa and Hydra training: all heads at sampled positions."""

import jax.numpy as jnp

from jaxspec.drafters.common.target_params import target_norm
from jaxspec.drafters.common.training import (
    DrafterOutputs,
    TeacherOutputs,
    predicted_positions,
    sample_starts,
)
from jaxspec.drafters.medusa.drafter import Medusa
from jaxspec.nn.rope import angles_of
from jaxspec.typing import Array, Params


def medusa_outputs(
    drafter: Medusa, drafter_params: Params, teacher: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """Predicts the tokens two and more positions after each sampled feature.

    The next token comes from the target itself. Hydra's heads also read the data's
    tokens in between.

    Args:
      drafter: static functions of the drafter.
      drafter_params: parameters of the heads.
      teacher: sequences with the target's logits and features.
      key: random key for the positions; consumed.
    """
    config = drafter.config
    params = drafter.with_target_params(drafter_params, teacher.params)
    network = drafter.network(drafter_params)
    batch, length = teacher.tokens.shape
    h = target_norm(drafter.target, params, teacher.features)
    if config.prefix_heads:
        positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
        size = config.width // config.prefix_heads
        causal = jnp.tril(jnp.ones((length, length), bool))
        mask = jnp.broadcast_to(causal, (batch, length, length))
        h, _ = network.prefix(h, angles_of(drafter.target, positions, size), mask)
    starts = sample_starts(teacher, key, drafter.target.prefix_length - 1)
    h = jnp.take_along_axis(h, starts[..., None], axis=1)
    logits, path = [], []
    for i in range(config.heads):
        ahead = jnp.minimum(starts + i + 1, length - 1)
        tokens = jnp.take_along_axis(teacher.tokens, ahead, axis=1)
        path.append(params["embedding"][tokens])
        embedded = jnp.concatenate(path, axis=-1) if config.sequential else None
        logits.append(drafter.scores(params, i, network.head(i, h, embedded)))
    positions, valid = predicted_positions(teacher, starts, config.heads)
    zero = jnp.zeros((), jnp.float32)
    return DrafterOutputs(jnp.stack(logits, axis=2), positions, valid, zero)
