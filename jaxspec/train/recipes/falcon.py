"""Falcon's recipe: two blocks behind each start, the second on the first's features."""

import jax.numpy as jnp

from jaxspec.drafters.falcon import Falcon, windows_of
from jaxspec.drafters.shared import target_norm
from jaxspec.train.recipes.lesson import (
    DrafterOutputs,
    TeacherOutputs,
    guesses_from,
    smooth_l1,
    some_starts,
)
from jaxspec.typing import Array, Params


def falcon_guesses(
    drafter: Falcon, own: Params, lesson: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """A block of guesses from true features, and one more from guessed ones.

    Unrolling takes the place of the paper's glancing (a second pass in which some wrong
    guesses are put right): both let the drafter meet its own outputs. Features learn to
    meet the target's. `key` draws the starts and is consumed.
    """
    params, size = drafter.with_target_params(own, lesson.params), drafter.config.block
    rows, length = lesson.tokens.shape
    before = 2 * (size - 1)
    pad = ((0, 0), (before, 0))
    features = jnp.pad(lesson.features, (*pad, (0, 0)))
    tokens = jnp.pad(jnp.roll(lesson.tokens, -1, axis=1), pad, constant_values=-1)
    pairs = drafter.pairs(params, features, tokens)

    starts = some_starts(lesson, key, max(drafter.target.prefix_length - 1, 0))
    many = starts.shape[1]
    count = many * size
    capacity = length + 2 * count
    config = drafter.config
    shape = (rows, config.heads, capacity, config.head_size)
    cache = jnp.zeros(shape, pairs.dtype), jnp.zeros(shape, pairs.dtype)

    # Keys and values of all true pairs.
    causal = jnp.tril(jnp.ones((length, length), bool))
    causal = jnp.pad(causal, ((0, 0), (0, 2 * count)))
    order = jnp.broadcast_to(jnp.arange(length), (rows, length))
    _, cache = drafter.layer(
        params,
        windows_of(pairs[:, size - 1 :], size),
        order,
        jnp.broadcast_to(causal, (rows, length, capacity)),
        cache,
        jnp.zeros(rows, jnp.int32),
    )

    def block(run, first, seen, cache, slot):
        """`run` [B, M, 2 G - 1, P]; positions from `first` on."""
        flat = run.reshape(rows * many, *run.shape[2:])
        windows = windows_of(flat, size).reshape(rows, count, size, -1)
        places = first[..., None] + jnp.arange(size)[None, None]
        h, cache = drafter.layer(
            params,
            windows,
            places.reshape(rows, count),
            jnp.repeat(seen, size, axis=1),
            cache,
            jnp.full(rows, slot),
        )
        return h.reshape(rows, many, size, -1), cache

    past = jnp.arange(capacity)[None, None] <= starts[..., None]
    steps = jnp.arange(2 * size - 1)[None, None]
    place = starts[..., None] + steps  # the last is the start's pair
    near = jnp.take_along_axis(
        pairs, place.reshape(rows, -1)[..., None], axis=1
    ).reshape(rows, many, 2 * size - 1, -1)
    first, cache = block(near, starts - size + 1, past, cache, length)

    ahead = jnp.minimum(
        starts[..., None] + 2 + jnp.arange(size)[None, None], length - 1
    )
    said = jnp.take_along_axis(lesson.tokens, ahead.reshape(rows, -1), axis=1)
    said = params["embedding"][said.reshape(ahead.shape)]
    guessed = jnp.concatenate([said, first], axis=-1)
    run = jnp.concatenate([near[:, :, size:], guessed], axis=2)
    mine = jnp.arange(capacity)[None] - (length + count)
    own_block = mine // size == jnp.arange(many)[:, None]
    seen = past | (own_block & (mine >= 0))[None]
    second, _ = block(run, starts + 1, seen, cache, length + count)

    h = jnp.concatenate([first, second], axis=2)
    places, present = guesses_from(lesson, starts, 2 * size)
    wanted = target_norm(drafter.target, params, lesson.features)
    wanted = jnp.take_along_axis(
        wanted, places.reshape(rows, -1)[..., None] - 1, axis=1
    ).reshape(h.shape)
    regression = smooth_l1(h, wanted, present)
    return DrafterOutputs(drafter.scores(params, h), places, present, regression)
