"""Prompt tokens behind random places of a sequence (PPD, arXiv 2405.18628)."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.drafters.prompt_tokens import PPD
from jaxspec.models.transformer import Transformer
from jaxspec.train.recipes.lesson import DrafterOutputs, TeacherOutputs, guesses_from
from jaxspec.typing import Array, Params

# Places of a batch behind which prompt tokens stand; the same in all its sequences.
PLACES = 16


def prompt_token_guesses(
    drafter: PPD, own: Params, lesson: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """Prompt tokens see the sequence up to their place, and those before them.

    `key` draws the places and is consumed.
    """
    config, count = drafter.widened, drafter.config.count
    prefix, (rows, length) = config.prefix_length, lesson.tokens.shape
    starts = jax.random.randint(
        key, (PLACES,), max(prefix - 1, 0), length - 2, jnp.int32
    )
    ids = np.tile(config.vocab_size + np.arange(count), PLACES)
    block, row = np.divmod(np.arange(PLACES * count), count)
    order = jnp.arange(length)
    own_rows = (block[:, None] == block) & (row[:, None] >= row)
    seen = order[None] <= starts[block][:, None]
    table = jnp.block(
        [
            [
                jnp.tril(jnp.ones((length, length), bool)),
                jnp.zeros((length, len(ids)), bool),
            ],
            [seen, jnp.asarray(own_rows)],
        ]
    )
    codes = jnp.concatenate(
        [
            lesson.tokens[:, prefix:],
            jnp.broadcast_to(jnp.asarray(ids), (rows, len(ids))),
        ],
        axis=1,
    )
    logits, _ = Transformer(config).score(
        drafter.target_params(own, lesson.params),
        lesson.labels,
        codes,
        null=lesson.null,
        causal=table,
        positions=jnp.concatenate([order, starts[block] + 1 + jnp.asarray(row)]),
    )
    starts = jnp.broadcast_to(starts, (rows, PLACES))
    places, present = guesses_from(lesson, starts, count)
    guessed = logits[:, length:].reshape(rows, PLACES, count, -1)
    return DrafterOutputs(guessed, places, present, jnp.zeros((), jnp.float32))
