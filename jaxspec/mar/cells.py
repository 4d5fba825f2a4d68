"""Tokens of a step of unmasking, and what it reads and writes."""

import jax.numpy as jnp

from jaxspec.mar.schedule import UnmaskingSchedule
from jaxspec.typing import Array, Bool, Float, Int


def masked_tokens(
    schedule: UnmaskingSchedule, steps: Int[Array, "..."]
) -> Int[Array, "..."]:
    """Number of masked tokens after some steps; beyond the last step none."""
    return jnp.asarray(schedule.masked)[jnp.minimum(steps, schedule.steps)]


def step_cells(
    schedule: UnmaskingSchedule,
    order: Int[Array, "B T"],
    steps: Int[Array, "B"],
    limit: Int[Array, "B"],
    count: int = 1,
) -> tuple[Int[Array, "B n"], Bool[Array, "B n"]]:
    """Tokens that the next steps make known.

    Args:
      schedule: steps of the generation.
      order: permutation of the tokens, of which the last become known first.
      steps: number of steps before.
      limit: number of tokens that are wanted; further ones are left out.
      count: number of steps.

    Returns:
      Places [B, n] of tokens, the last to become known first, and a mask of those that
      belong to the steps; `n` is the largest number of tokens of `count` steps.
    """
    total = schedule.tokens
    after = masked_tokens(schedule, steps + count)
    most = schedule.most_of(count)
    index = after[:, None] + jnp.arange(most, dtype=jnp.int32)[None]
    taken = index < masked_tokens(schedule, steps)[:, None]
    taken &= index >= total - limit[:, None]
    places = jnp.take_along_axis(order, jnp.minimum(index, total - 1), axis=1)
    return places, taken


def with_tokens(
    latents: Float[Array, "B T C"],
    places: Int[Array, "B n"],
    taken: Bool[Array, "B n"],
    tokens: Float[Array, "B n C"],
) -> Float[Array, "B T C"]:
    """Latents with some tokens replaced.

    Args:
      latents: tokens of whole images.
      places: places of the tokens.
      taken: tokens that are replaced; others are left as they are.
      tokens: new values.
    """
    row = jnp.arange(len(places))[:, None]
    places = jnp.where(taken, places, latents.shape[1])  # beyond the end: dropped
    return latents.at[row, places].set(tokens, mode="drop")


def of_places(x: Float[Array, "B T D"], places: Int[Array, "B n"]):
    """Entries `[B, n, D]` of some tokens."""
    return jnp.take_along_axis(x, places[..., None], axis=1)
