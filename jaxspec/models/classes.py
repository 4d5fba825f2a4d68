"""Embeddings of classes, which are ids or weights."""

import jax.numpy as jnp

from jaxspec.typing import Array, Bool, Float


def mixed_classes(
    table: Float[Array, "M D"],
    classes: Array,
    null: Bool[Array, "R"],
    count: int,
) -> Float[Array, "R D"]:
    """Embeddings of classes, or mixtures of them.

    Args:
      table: embedding of each class, and behind them that of the null class.
      classes: ids int32 [R], or weights [R, classes] of the embeddings.
      null: rows that get the null class instead.
      count: number of classes.
    """
    if not jnp.issubdtype(classes.dtype, jnp.floating):
        ids = jnp.where(null, count, classes)
        # An id beyond the table gives NaN, see `prompts.known_classes`.
        return jnp.take(table, ids, axis=0, mode="fill", fill_value=jnp.nan)
    mixed = jnp.matmul(
        classes.astype(jnp.float32),
        table[:count].astype(jnp.float32),
        precision="highest",  # a weight of 1 gives the embedding itself
    ).astype(table.dtype)
    return jnp.where(null[:, None], table[count], mixed)
