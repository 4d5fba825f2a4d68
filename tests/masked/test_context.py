"""Passes that take keys and values of some tokens from a cache (ReCAP, FreeCache)."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxspec.core.generator import generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.masked import (
    Confidence,
    ContextCache,
    FixedOrder,
    MaskedGenerator,
    MaskedVariables,
    MaskingSchedule,
    RandomOrder,
    Revision,
    Window,
)
from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.models.masked_lm.partial import empty_layers, partial_pass
from jaxspec.models.transformer.model import Transformer
from tests.masked.models import CLASSES, CONFIG
from tests.models.tiny import random_params

LENGTH, STEPS = CONFIG.sequence_length, 6
TEXT = replace(CONFIG, condition="none", rope="sequence", max_length=24, classes=1000)
PROMPTS = jnp.array([[3, 1, -1, -1], [2, 2, 5, 7], [9, -1, -1, -1]])


def parts(config, layers, kept="known"):
    """Generator, variables and prompts; in raster order if the left is kept."""
    config = replace(config, layers=layers)
    model = MaskedDiffusion(Transformer(config))
    schedule = MaskingSchedule(LENGTH, STEPS)
    cfg = config.condition != "none"
    raster = FixedOrder(tuple(range(LENGTH)))
    policy = raster if kept == "left" else RandomOrder()
    generator = MaskedGenerator(model, schedule, policy, cfg=cfg)
    variables = MaskedVariables(random_params(config))
    return generator, variables, CLASSES if cfg else PROMPTS


@partial(jax.jit, static_argnums=0)
def run(generator, variables, prompt, options):
    return generate(generator, variables, prompt, **options)


@partial(jax.jit, static_argnums=0)
def log_p(generator, variables, prompt, options):
    """Log-probabilities of all tokens in the steps that sampled them, and kept ones."""
    state, kept = generator.init(variables, prompt, **options), []
    for _ in range(STEPS):
        if generator.context is not None:
            whole, _ = generator.context.window(state.known, state.steps, state.reach)
            computed = generator.context.computed(state.known, state.read, whole)
            kept.append(jnp.sum(~computed))
        state = generator.step(variables, state)
    return state.log_p, kept


def options(generator, batch=3):
    scale = 2.0 if generator.cfg else 1.0
    return {"sampling": Sampling.create(cfg_scale=scale), "keys": batch_keys(0, batch)}


KINDS = [
    ContextCache(stages=2),
    ContextCache(every=None, stages=1),
    ContextCache(every=3, stages=4),
    ContextCache(every=None, kept="left", block=2, stages=2),
]


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    ("config", "context"),
    [(CONFIG, KINDS[0]), (TEXT, KINDS[-1])]
    + [*((CONFIG, kind) for kind in KINDS[1:]), (TEXT, KINDS[0])],
    ids=str,
)
def test_one_layer_gives_the_tokens_of_plain_passes(config, context):
    """Keys and values of its tokens depend on nothing else.

    Control: with two layers tokens are kept and predictions are others.
    """
    generator, variables, prompt = parts(config, 1, context.kept)
    plain = run(generator, variables, prompt, options(generator))
    cached = replace(generator, context=context)
    out = run(cached, variables, prompt, options(generator))
    assert_array_equal(out.tokens, plain.tokens)
    deep, variables, prompt = parts(config, 2, context.kept)
    plain, _ = log_p(deep, variables, prompt, options(deep))
    cached = replace(deep, context=context)
    found, kept = log_p(cached, variables, prompt, options(deep))
    assert abs(found - plain).max() > 1e-3 and sum(kept) > 2


@pytest.mark.variants(1)
@pytest.mark.parametrize("config", [CONFIG, TEXT], ids=["classes", "texts"])
def test_computing_all_tokens_in_each_pass_is_plain(config):
    generator, variables, prompt = parts(config, 2)
    plain = run(generator, variables, prompt, options(generator))
    cached = replace(generator, context=ContextCache(every=1, stages=1))
    out = run(cached, variables, prompt, options(generator))
    assert_array_equal(out.tokens, plain.tokens)


def test_tokens_do_not_depend_on_the_batch():
    generator, variables, prompt = parts(TEXT, 2)
    generator = replace(generator, context=ContextCache(stages=3))
    out = run(generator, variables, prompt, options(generator))
    for i in range(3):
        alone = {**options(generator), "keys": batch_keys(0, jnp.array([i]))}
        one = run(generator, variables, prompt[i : i + 1], alone)
        assert_array_equal(one.tokens[0], out.tokens[i])


def test_tokens_that_stay_keep_their_old_keys():
    """A pass by hand: two layers, in which the second reads what the first cached."""
    model = Transformer(replace(CONFIG, layers=2))
    params = random_params(model.config)
    before = jnp.array([[1, 11, 3, 11, 11, 2] + [11] * 10])
    after = before.at[0, 1].set(4)
    null = jnp.zeros(1, bool)
    rows = jnp.array(
        [[False] * 2 + [True] + [False] + [True] * 2 + [False] + [True] * 10]
    )
    places = jnp.broadcast_to(jnp.arange(17), (1, 17))
    every = jnp.ones((1, 17), bool)
    first = partial(partial_pass, model, params, positions=places, exists=every)
    x = model.embed(params, jnp.array([1]), before, null)
    layers = empty_layers(model, 1, 17, jnp.float32)
    whole, layers = first(x, layers=layers, computed=every, capacity=17)
    right, _ = model.score(params, jnp.array([1]), before, causal=False)
    assert_allclose(whole, right, atol=2e-5)
    x = model.embed(params, jnp.array([1]), after, null)
    found, new = first(x, layers=layers, computed=rows, capacity=14)
    # Rows of the first layer read the same keys either way; those of the second read
    # the old ones of every token that was not computed.
    exact, exact_layers = first(x, layers=layers, computed=every, capacity=17)
    kept = np.asarray(~rows[0])
    for pair, old in zip(new, layers, strict=True):
        for x, y in zip(pair, old, strict=True):
            assert_array_equal(x[:, :, :17][:, :, kept], y[:, :, :17][:, :, kept])
    assert_allclose(new[0][0][:, :, :17], exact_layers[0][0][:, :, :17], atol=1e-5)
    assert not found[0][kept].any()
    difference = np.abs(np.asarray(found - exact))[0][~kept].max()
    assert 1e-4 < difference


def test_fewer_tokens_are_computed():
    known = jnp.array([[True, True, False, True, True, False]])
    read = jnp.array([[True, True, False, False, True, False]])
    one = jnp.array([False])
    found = ContextCache().computed(known, read, one)
    assert_array_equal(found, [[False, False, True, True, False, True]])
    found = ContextCache(kept="left", block=2).computed(known, read, one)
    assert_array_equal(found, [[False, False, True, True, True, True]])
    assert ContextCache().computed(known, read, jnp.array([True])).all()
    steps, reach = jnp.arange(6), jnp.full(6, 6)
    rows = jnp.broadcast_to(known, (6, 6))
    whole, found = ContextCache(every=4).window(rows, steps, reach)
    assert_array_equal(whole, [True, False, False, False, True, False])
    assert (found == 6).all()
    whole, _ = ContextCache(every=None).window(rows, steps, reach)
    assert_array_equal(whole, [True] + 5 * [False])


def test_windows_end_after_a_number_of_masked_tokens():
    known = jnp.array([[True, False, True, False, False, True, False, False]])
    cache = ContextCache(every=4, active=2, outer=3)
    step, far = jnp.array([1]), jnp.array([6])
    whole, reach = cache.window(known, step, far)
    assert not whole[0] and reach[0] == 6
    whole, reach = cache.window(known, step - 1, far)
    assert whole[0] and reach[0] == 6  # up to the fourth masked token
    whole, reach = cache.window(known, step, jnp.array([3]))
    assert whole[0] and reach[0] == 6  # fewer masked tokens than are active
    found = cache.computed(known, known, jnp.array([False]))
    assert_array_equal(found[0, :6], [False, True, False, True, False, False])


@pytest.mark.slow
@pytest.mark.variants(1)
@pytest.mark.parametrize("config", [TEXT, CONFIG], ids=["texts", "classes"])
def test_windows_read_no_token_behind_them(config):
    """With one layer, passes over the tokens of the window alone."""
    generator, variables, prompt = parts(config, 1)
    schedule = MaskingSchedule(LENGTH, 8, "linear")
    context = ContextCache(every=3, active=3, outer=5, stages=3)
    policy = Window(Confidence("sampled", 0.0), 3)
    generator = replace(generator, schedule=schedule, policy=policy, context=context)
    settings = options(generator)
    plain = replace(generator, context=None)
    state, step = generator.init(variables, prompt, **settings), 0
    short = []
    run_step, look = jax.jit(generator.step), jax.jit(generator.look)
    while not state.done.all():
        view, _, after = look(variables, state)
        known = np.asarray(state.known)
        for row in range(3):
            reach = int(after.reach[row])
            active = np.flatnonzero(~known[row])[:3]
            assert (active < reach).all()
            one = slice(row, row + 1)
            seen = prompt[one], state.tokens[one, :reach]
            scale = Sampling.create(1, cfg_scale=2.0)
            right = generator.model(variables.params, *seen, scale)[0, active]
            assert_allclose(view.logits[row, active], right, atol=1e-4)
            short.append(reach < LENGTH)
        state, step = run_step(variables, state), step + 1
    assert step == 8 and any(short)
    assert (state.tokens < config.vocab_size).all()
    out = run(plain, variables, prompt, settings)
    assert (out.tokens != state.tokens).any()


def test_texts_end_at_a_stop_token_as_before():
    """No pass is spent on what follows it; the tokens stay the same."""
    generator, variables, prompt = parts(TEXT, 2)
    schedule = MaskingSchedule(LENGTH, LENGTH, "linear")
    generator = replace(generator, schedule=schedule)
    whole = run(generator, variables, prompt, options(generator))
    stop = int(whole.tokens[0, 4])
    stopping = StoppingCriteria.create(max_new_tokens=LENGTH, stop_tokens=[stop])
    cut = run(
        generator, variables, prompt, {**options(generator), "stopping": stopping}
    )
    end = int(np.argmax(np.asarray(whole.tokens[0]) == stop)) + 1
    assert_array_equal(cut.tokens[0, :end], whole.tokens[0, :end])
    assert (cut.tokens[0, end:] == -1).all()
    assert cut.stats.calls.min() < LENGTH == whole.stats.calls.max()
    # Policies that may mask a token again take all steps.
    again = replace(generator, policy=Revision(Confidence(), 0.1))
    settings = {**options(generator), "stopping": stopping}
    assert (run(again, variables, prompt, settings).stats.calls == LENGTH).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContextCache(every=0), "every=0"),
        (lambda: ContextCache(block=0), "block=0"),
        (lambda: ContextCache(stages=0), "stages=0"),
        (lambda: ContextCache(kept="right"), "kept='right'"),
        (lambda: ContextCache(active=4), "belong together"),
        (lambda: ContextCache(active=4, outer=2), "active=4 is above outer=2"),
        (
            lambda: replace(
                parts(TEXT, 1)[0],
                model=MaskedDiffusion(Transformer(TEXT), shifted=True),
                context=ContextCache(),
            ),
            "their own token",
        ),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
