"""Late maps whose tokens attend to tokens nearby (SparVAR's local attention)."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxspec.core.generator import advance, generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.models.next_scale.layers import CosineAttention
from jaxspec.models.next_scale.model import NextScale
from jaxspec.next_scale import (
    LocalAttention,
    ScaleSampling,
    TokenSkipping,
    collaborative,
    one_model,
)
from tests.next_scale.models import CONFIG, MODEL, SCALES, variables

CLASSES = jnp.array([1, 4, 0], jnp.int32)
LOCAL = LocalAttention(maps=2, whole=1, radius=0, block=2)
WIDE = LocalAttention(maps=3, whole=0, radius=5, block=2)
PLAIN = one_model(MODEL, SCALES)


def options():
    sampling = Sampling.create(cfg_scale=2.5, top_k=8, top_p=0.95)
    return {"sampling": sampling, "keys": batch_keys(0, 3)}


@partial(jax.jit, static_argnums=0)
def whole(generator, prompt, options, params):
    return generate(generator, params, prompt, **options)


def seen(sides, whole, radius, block):
    """Mask [T, S] of the last map, token by token, from the words of the docstring."""
    side = sides[-1]
    block = min(block, side)
    starts = sorted({min(i, side - block) for i in range(0, side, block)})

    def start_of(place):
        return next(s for s in starts if s <= place < s + block)

    def window(start, other):
        first = int(np.floor(start * other / side)) - radius
        last = int(np.ceil((start + block) * other / side)) + radius
        return first, last

    def inside(start, other):
        spans = [b - a for a, b in (window(s, other) for s in starts)]
        width = min(max(spans), other)
        first = max(window(start, other)[0], 0)
        while first + width > other:
            first -= 1
        return set(range(first, first + width))

    mask = []
    for r in range(side):
        for c in range(side):
            row = []
            for k, other in enumerate(sides):
                rows, columns = (inside(start_of(x), other) for x in (r, c))
                for y in range(other):
                    for x in range(other):
                        row.append(k < whole or (y in rows and x in columns))
            mask.append(row)
    return np.array(mask)


@pytest.mark.parametrize(
    ("sides", "whole", "radius", "block"),
    [
        ((1, 2, 3, 5), 1, 0, 2),  # blocks overlap
        ((1, 2, 3, 4, 6, 8), 2, 1, 4),
        ((2, 5, 7), 0, 0, 3),
        ((1, 3, 4), 1, 1, 9),  # one block
    ],
)
def test_blocks_attend_as_with_a_mask(sides, whole, radius, block):
    """Control: with one cell more, the outputs are others."""
    total, tokens = sum(side**2 for side in sides), sides[-1] ** 2
    attention = CosineAttention(heads=2)
    x = jax.random.normal(jax.random.key(0), (2, tokens, 8))
    old = jax.random.normal(jax.random.key(1), (2, 2, 2, total, 4))
    cache, start = (old[0], old[1]), total - tokens
    params = attention.init(jax.random.key(2), x, None, cache, start)

    def out(mask, nearby):
        return attention.apply(params, x, mask, cache, start, nearby)[0]

    mask = seen(sides, whole, radius, block)
    nearby = LocalAttention(1, whole, radius, block).nearby(sides, len(sides) - 1)
    assert nearby.keys.shape[1] == mask.sum(1).max() == mask.sum(1).min()
    assert_allclose(out(jnp.asarray(mask), None), out(None, nearby), atol=2e-6)
    more = jnp.asarray(seen(sides, whole, radius + 1, block))
    differs = np.abs(out(more, None) - out(None, nearby)).max() > 1e-3
    assert differs == bool((more != mask).any())


def test_with_windows_of_whole_maps_it_is_plain_generation():
    out = whole(one_model(MODEL, SCALES, local=WIDE), CLASSES, options(), variables())
    plain = whole(PLAIN, CLASSES, options(), variables())
    assert_array_equal(out.tokens, plain.tokens)


@pytest.mark.slow
@pytest.mark.variants(1)
@pytest.mark.parametrize("guided", [None, 2])
def test_steps_and_batches_change_no_token(guided):
    params = variables()
    sampling = ScaleSampling(4, guided=guided)
    generator = one_model(MODEL, SCALES, sampling=sampling, local=LOCAL)
    out = whole(generator, CLASSES, options(), params)
    single = {**options(), "keys": options()["keys"][1:2]}
    alone = whole(generator, CLASSES[1:2], single, params)
    assert_array_equal(out.tokens[1], alone.tokens[0])
    state = generator.init(params, CLASSES, **options())
    state = jax.jit(partial(advance, generator), static_argnames="steps")(
        params, state, steps=4
    )
    assert_array_equal(out.tokens, generator.result(state).tokens)
    plain = whole(replace(generator, local=None), CLASSES, options(), params)
    early = slice(0, 5)  # the first two maps attend to all
    assert_array_equal(out.tokens[:, early], plain.tokens[:, early])
    assert (out.tokens != plain.tokens).any()


@pytest.mark.slow
def test_two_models_attend_locally():
    """The pass in which the small model reads the large one's maps sees all."""
    params = variables(MODEL, MODEL)
    generator = collaborative(MODEL, MODEL, SCALES, 3, local=LOCAL)
    plain = replace(generator, local=None)
    out = whole(generator, CLASSES, options(), params)
    assert (out.tokens != whole(plain, CLASSES, options(), params).tokens).any()
    switch = replace(generator, local=LocalAttention(1, 0, 0, 1))
    same = whole(switch, CLASSES, options(), params)
    assert_array_equal(same.tokens, whole(plain, CLASSES, options(), params).tokens)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalAttention(0), "maps=0"),
        (lambda: LocalAttention(1, whole=-1), "whole=-1"),
        (lambda: LocalAttention(1, radius=-1), "radius=-1"),
        (lambda: LocalAttention(1, block=0), "block=0"),
        (
            lambda: one_model(MODEL, SCALES, local=LocalAttention(5)),
            "at most 4",
        ),
        (
            lambda: one_model(
                NextScale(replace(CONFIG, attends="own")), SCALES, local=LOCAL
            ),
            "own map alone",
        ),
        (
            lambda: one_model(
                MODEL, SCALES, local=LOCAL, skipping=TokenSkipping((0.5,))
            ),
            "skipping or local",
        ),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
