"""PPD training: prompt tokens after sampled positions (arXiv 2405.18628)."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.drafters.common.training import (
    DrafterOutputs,
    TeacherOutputs,
    predicted_positions,
)
from jaxspec.drafters.ppd.drafter import PPD
from jaxspec.models.transformer.model import Transformer
from jaxspec.typing import Array, Params

# Positions followed by prompt tokens; the same in all sequences of a batch.
STARTS = 16


def ppd_outputs(
    drafter: PPD, drafter_params: Params, teacher: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """Runs the target on each sequence with prompt tokens appended.

    A prompt token attends to the sequence up to its start position and to the prompt
    tokens before it in the same block.

    Args:
      drafter: static functions of the drafter.
      drafter_params: embeddings of the prompt tokens.
      teacher: sequences with the target's logits.
      key: random key for the start positions; consumed.
    """
    config, count = drafter.extended_target, drafter.config.count
    prefix, (batch, length) = config.prefix_length, teacher.tokens.shape
    starts = jax.random.randint(
        key, (STARTS,), max(prefix - 1, 0), length - 2, jnp.int32
    )
    ids = np.tile(config.vocab_size + np.arange(count), STARTS)
    block, offset = np.divmod(np.arange(STARTS * count), count)
    order = jnp.arange(length)
    same_block = (block[:, None] == block) & (offset[:, None] >= offset)
    past = order[None] <= starts[block][:, None]
    mask = jnp.block(
        [
            [
                jnp.tril(jnp.ones((length, length), bool)),
                jnp.zeros((length, len(ids)), bool),
            ],
            [past, jnp.asarray(same_block)],
        ]
    )
    inputs = jnp.concatenate(
        [
            teacher.tokens[:, prefix:],
            jnp.broadcast_to(jnp.asarray(ids), (batch, len(ids))),
        ],
        axis=1,
    )
    logits, _ = Transformer(config).score(
        drafter.extend_params(drafter_params, teacher.params),
        teacher.prompts,
        inputs,
        null=teacher.null,
        causal=mask,
        positions=jnp.concatenate([order, starts[block] + 1 + jnp.asarray(offset)]),
    )
    starts = jnp.broadcast_to(starts, (batch, STARTS))
    positions, valid = predicted_positions(teacher, starts, count)
    logits = logits[:, length:].reshape(batch, STARTS, count, -1)
    return DrafterOutputs(logits, positions, valid, jnp.zeros((), jnp.float32))
