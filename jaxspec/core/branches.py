"""Batches with both branches of classifier-free guidance (CFG).

With guidance a model reads each sequence once per branch: `R = branches x B` sequences,
first all conditional ones, then all unconditional ones. Without guidance `R = B`.
"""

import jax.numpy as jnp

from jaxspec.typing import Array


def repeat_branches(x: Array, branches: int) -> Array:
    """Repeats a batch for each branch: `[B, ...]` to `[R, ...]`."""
    return jnp.concatenate([x] * branches)


def split_branches(x: Array, batch: int) -> Array:
    """Moves branches to an axis of their own: `[R, T, ...]` to `[B, T, branches, ...]`.

    Args:
      x: array [R, T, ...] of stacked branches.
      batch: number of sequences, `B`.
    """
    return jnp.moveaxis(x.reshape(len(x) // batch, batch, *x.shape[1:]), 0, 2)


def merge_branches(x: Array) -> Array:
    """Inverse of `split_branches`: `[B, T, branches, ...]` to `[R, T, ...]`."""
    x = jnp.moveaxis(x, 2, 0)
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
