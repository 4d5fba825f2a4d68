"""Next-scale generation: the same tokens however it is run."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.continuous_batching import Requests, idle_batch, run_queue
from jaxspec.core.generator import advance, generate
from jaxspec.core.logits import apply_cfg, process_logits
from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.models.next_scale.model import NextScale
from jaxspec.next_scale import (
    ScaleSampling,
    Stage,
    collaborative,
    coupled_scales,
    fewer_layers,
    one_model,
)
from jaxspec.next_scale.plans import spaced_layers
from jaxspec.speculative.prefix import Prefixed
from tests.next_scale.models import CONFIG, LENGTH, MODEL, SCALES, variables

VARIABLES = variables()
SMALL = NextScale(replace(CONFIG, layers=2, width=16, heads=2))
WIDE = NextScale(replace(CONFIG, vocab_size=15))
BOTH = variables(MODEL, SMALL)
CLASSES = jnp.array([1, 4, 0], jnp.int32)
PLAIN = one_model(MODEL, SCALES, record_log_probs=True)
GENERATORS = {
    "one model": (PLAIN, VARIABLES),
    "constant guidance": (
        one_model(MODEL, SCALES, sampling=ScaleSampling(4, guidance="constant")),
        VARIABLES,
    ),
    "two models": (collaborative(MODEL, SMALL, SCALES, 2), BOTH),
    "fewer layers": (fewer_layers(MODEL, SCALES, 2, 2), VARIABLES),
}

score = jax.jit(MODEL.score)


def options(batch=3, seed=0, **sampling):
    settings = {"cfg_scale": 2.5, "top_k": 8, "top_p": 0.95, **sampling}
    return {"sampling": Sampling.create(**settings), "keys": batch_keys(seed, batch)}


@partial(jax.jit, static_argnums=0)
def whole(generator, variables, prompt, options):
    return generate(generator, variables, prompt, **options)


@partial(jax.jit, static_argnums=0)
def stepwise(generator, variables, prompt, options):
    state = generator.init(variables, prompt, **options)
    return generator.result(advance(generator, variables, state))


@pytest.mark.variants(1)
@pytest.mark.parametrize("name", GENERATORS)
def test_the_loop_over_steps_gives_the_tokens_of_one_program(name):
    generator, values = GENERATORS[name]
    out = whole(generator, values, CLASSES, options())
    steps = stepwise(generator, values, CLASSES, options())
    np.testing.assert_array_equal(out.tokens, steps.tokens)
    assert (out.lengths == LENGTH).all() and out.finite.all()
    assert (out.stats.calls == 4).all() and (out.tokens >= 0).all()
    assert len(np.unique(out.tokens)) > 5


@pytest.mark.variants(1)
@pytest.mark.parametrize("name", GENERATORS)
def test_tokens_do_not_depend_on_the_batch(name):
    generator, values = GENERATORS[name]
    out = whole(generator, values, CLASSES, options())
    for i in range(3):
        alone = {**options(), "keys": batch_keys(0, 3)[i : i + 1]}
        one = whole(generator, values, CLASSES[i : i + 1], alone)
        np.testing.assert_array_equal(one.tokens[0], out.tokens[i])


def test_tokens_and_log_probabilities_are_those_of_one_pass_without_a_cache():
    """Teacher forcing of the generated tokens, with noise and filters by hand."""
    out = whole(PLAIN, VARIABLES, CLASSES, options())
    inputs = SCALES.inputs(VARIABLES.quantizer, out.tokens)
    params, none = VARIABLES.models[0], jnp.ones(3, bool)
    given = score(params, CLASSES, inputs)
    null = score(params, CLASSES, inputs, null=none)
    level = np.repeat(np.arange(4), np.array(CONFIG.scales) ** 2)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (3, LENGTH))
    strength = 1 + (2.5 - 1) * level[None, :, None] / 3
    logits = null + strength * (given - null)
    settings = Sampling.create(3, top_k=8, top_p=0.95)
    logits = process_logits(logits, settings, ("top_k", "top_p"))
    noise = position_noise(batch_keys(0, 3), positions, CONFIG.vocab_size)
    np.testing.assert_array_equal(jnp.argmax(logits + noise, axis=-1), out.tokens)
    log_p = jax.nn.log_softmax(logits)
    log_p = jnp.take_along_axis(log_p, out.tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(out.log_probs.tokens, log_p, atol=2e-5)
    # The control: without the ramp the tokens are others.
    flat = apply_cfg(
        jnp.concatenate([given, null]), Sampling.create(3, cfg_scale=2.5), positions
    )
    flat = process_logits(flat, settings, ("top_k", "top_p"))
    assert (jnp.argmax(flat + noise, axis=-1) != out.tokens).any()


@pytest.mark.slow
def test_smooth_maps_add_mixtures_of_codes():
    """Mixtures and features by hand, from the inputs that the loop has made."""
    smooth = replace(PLAIN, sampling=ScaleSampling(4, smooth=True))
    state = smooth.init(VARIABLES, CLASSES, **options(cfg_scale=1.0))
    state = advance(smooth, VARIABLES, state)
    book = VARIABLES.quantizer["codebook"]
    logits = score(VARIABLES.models[0], CLASSES, state.inputs)
    settings = Sampling.create(3, top_k=8, top_p=0.95)
    logits = process_logits(logits, settings, ("top_k", "top_p"))
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (3, LENGTH))
    noise = position_noise(batch_keys(0, 3), positions, CONFIG.vocab_size)
    total = 0.0
    for k, heat in enumerate((0.27, 0.1845, 0.099, 0.0135)):
        here = SCALES.tokens_of(k)
        sharper = logits[:, here] * (1 + k / 3) + noise[:, here]
        mixed = jax.nn.softmax(sharper / heat) @ book
        total = total + SCALES.spread(VARIABLES.quantizer, mixed, k)
    out = smooth.result(state)
    np.testing.assert_allclose(out.features, total, atol=1e-4)
    # The control: the sampled codes have other features.
    assert jnp.abs(SCALES.features(VARIABLES.quantizer, out.tokens) - total).max() > 0.1
    assert whole(PLAIN, VARIABLES, CLASSES, options()).features is None
    with pytest.raises(ConfigError, match="not verified; use smooth=False"):
        coupled_scales(MODEL, SMALL, SCALES, sampling=smooth.sampling)
    refined = NextScale(replace(CONFIG, attends="own", mask_layers=1))
    with pytest.raises(ConfigError, match="not refined; use smooth=False"):
        one_model(refined, SCALES, sampling=smooth.sampling)
    # A first map that is given is not mixed.
    given = replace(smooth, prefix=1)
    prompt = Prefixed(CLASSES, out.tokens[:, :1])
    state = given.make_scale(VARIABLES, given.init(VARIABLES, prompt, **options()), 0)
    first = SCALES.added(VARIABLES.quantizer, out.tokens[:, :1], 0)
    np.testing.assert_allclose(state.features, first, atol=1e-6)


@pytest.mark.variants(1)
@pytest.mark.parametrize("count", [9, 5, 1])
def test_given_tokens_are_continued_as_if_they_had_been_generated(count):
    """Also where they end within a scale."""
    out = whole(PLAIN, VARIABLES, CLASSES, options())
    generator = replace(PLAIN, prefix=count)
    prompt = Prefixed(CLASSES, out.tokens[:, :count])
    rest = whole(generator, VARIABLES, prompt, options())
    np.testing.assert_array_equal(rest.tokens, out.tokens[:, count:])
    np.testing.assert_allclose(
        rest.log_probs.tokens, out.log_probs.tokens[:, count:], atol=1e-5
    )


@pytest.mark.slow
def test_sequences_end_at_their_limits_and_stop_tokens():
    out = whole(PLAIN, VARIABLES, CLASSES, options())
    stop = int(out.tokens[1, 7])
    stopping = StoppingCriteria.create(
        max_new_tokens=np.array([3, LENGTH, LENGTH]),
        stop_tokens=np.array([[-1], [stop], [-1]]),
    )
    found = stepwise(PLAIN, VARIABLES, CLASSES, {**options(), "stopping": stopping})
    end = int(np.argmax(out.tokens[1] == stop)) + 1
    assert found.lengths.tolist() == [3, end, LENGTH]
    for row, length in enumerate(found.lengths):
        np.testing.assert_array_equal(
            found.tokens[row, :length], out.tokens[row, :length]
        )
        assert (found.tokens[row, length:] == -1).all()
    assert found.stats.calls[0] == 2 < found.stats.calls[2] == 4
    limited = whole(replace(PLAIN, limit=6), VARIABLES, CLASSES, options())
    np.testing.assert_array_equal(limited.tokens, out.tokens[:, :6])
    assert (limited.stats.calls == 3).all()


@pytest.mark.slow
def test_a_queue_gives_each_request_its_own_tokens():
    """Requests of different lengths join sequences that are at other scales."""
    count = 5
    classes, keys = jnp.arange(count) % 5, batch_keys(3, count)
    limits = np.array([LENGTH, 2, LENGTH, 14, LENGTH])
    requests = Requests(
        jnp.arange(count, dtype=jnp.int32),
        classes,
        Sampling.create(count, cfg_scale=2.0),
        keys,
        StoppingCriteria.create(count, max_new_tokens=limits),
    )

    @jax.jit
    def run(variables):
        batch = idle_batch(PLAIN, variables, jax.tree.map(lambda x: x[:2], requests))
        return run_queue(PLAIN, variables, batch, requests, True)[1]

    found = run(VARIABLES)
    settings = {"sampling": Sampling.create(cfg_scale=2.0), "keys": keys}
    out = whole(PLAIN, VARIABLES, classes, settings)
    for place, i in enumerate(found.ids[:count].tolist()):
        length = limits[i]
        assert found.result.lengths[place] == length
        np.testing.assert_array_equal(
            found.result.tokens[place, :length], out.tokens[i, :length]
        )


@pytest.mark.slow
def test_late_scales_without_guidance_follow_the_conditional_branch():
    """Tokens of unguided scales are those of the conditional logits alone."""
    generator = one_model(MODEL, SCALES, sampling=ScaleSampling(4, guided=2))
    out = whole(generator, VARIABLES, CLASSES, options())
    steps = stepwise(generator, VARIABLES, CLASSES, options())
    np.testing.assert_array_equal(out.tokens, steps.tokens)
    plain = whole(PLAIN, VARIABLES, CLASSES, options())
    np.testing.assert_array_equal(out.tokens[:, :5], plain.tokens[:, :5])
    assert (out.tokens[:, 5:] != plain.tokens[:, 5:]).any()
    inputs = SCALES.inputs(VARIABLES.quantizer, out.tokens)
    logits = score(VARIABLES.models[0], CLASSES, inputs)
    logits = process_logits(
        logits, Sampling.create(3, top_k=8, top_p=0.95), ("top_k", "top_p")
    )
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (3, LENGTH))
    noise = position_noise(batch_keys(0, 3), positions, CONFIG.vocab_size)
    alone = jnp.argmax(logits + noise, axis=-1)
    np.testing.assert_array_equal(alone[:, 5:], out.tokens[:, 5:])


def test_greedy_takes_the_likeliest_tokens_and_no_guidance_needs_one_branch():
    settings = options(temperature=0.0, cfg_scale=1.0)
    out = whole(PLAIN, VARIABLES, CLASSES, settings)
    alone = whole(replace(PLAIN, cfg=False), VARIABLES, CLASSES, settings)
    np.testing.assert_array_equal(out.tokens, alone.tokens)
    inputs = SCALES.inputs(VARIABLES.quantizer, out.tokens)
    logits = score(VARIABLES.models[0], CLASSES, inputs)
    np.testing.assert_array_equal(jnp.argmax(logits, axis=-1), out.tokens)


@pytest.mark.slow
def test_a_second_model_sees_what_the_first_has_made():
    """With equal models the change between them changes no token."""
    same = replace(BOTH, models=VARIABLES.models * 2)
    sampling = ScaleSampling(4)
    plain = whole(PLAIN, VARIABLES, CLASSES, options())
    for count in (1, 3):
        generator = collaborative(MODEL, MODEL, SCALES, count, sampling=sampling)
        out = whole(generator, same, CLASSES, options())
        np.testing.assert_array_equal(out.tokens, plain.tokens)
    other = whole(
        collaborative(MODEL, SMALL, SCALES, 2, sampling=sampling),
        BOTH,
        CLASSES,
        options(),
    )
    np.testing.assert_array_equal(other.tokens[:, :5], plain.tokens[:, :5])
    assert (other.tokens[:, 5:] != plain.tokens[:, 5:]).any()


@pytest.mark.slow
def test_all_layers_are_a_subset_too():
    plain = whole(PLAIN, VARIABLES, CLASSES, options())
    every = fewer_layers(MODEL, SCALES, 2, CONFIG.layers)
    out = whole(every, VARIABLES, CLASSES, options())
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    fewer = whole(fewer_layers(MODEL, SCALES, 2, 2), VARIABLES, CLASSES, options())
    np.testing.assert_array_equal(fewer.tokens[:, :5], plain.tokens[:, :5])
    assert (fewer.tokens[:, 5:] != plain.tokens[:, 5:]).any()
    assert spaced_layers(30, 4) == (0, 10, 19, 29)


def test_arguments_outlive_a_donated_state():
    given = options()
    state = PLAIN.init(VARIABLES, CLASSES, **given)
    for leaf in jax.tree.leaves(state):  # as donation does
        leaf.delete()
    assert not any(x.is_deleted() for x in jax.tree.leaves(given))
    assert int(CLASSES[0]) == 1


def test_nan_marks_its_sequences_alone():
    params = VARIABLES.models[0]
    table = params["classes"]["embedding"].at[4].set(jnp.nan)
    broken = {**params, "classes": {"embedding": table}}
    out = whole(PLAIN, replace(VARIABLES, models=(broken,)), CLASSES, options())
    assert out.finite.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: collaborative(MODEL, SMALL, SCALES, 4), "4 scales of the large model"),
        (lambda: fewer_layers(MODEL, SCALES, 2, 1), "1 layers of 3"),
        (lambda: one_model(MODEL, replace(SCALES, sides=(1, 2, 5))), "does not fit"),
        (lambda: one_model(MODEL, SCALES, prefix=LENGTH), "nothing to generate"),
        (lambda: collaborative(MODEL, WIDE, SCALES, 2), "the same vocabulary"),
        (lambda: replace(PLAIN, stages=(Stage(1),) * 4), "the model 1"),
        (lambda: replace(PLAIN, stages=(Stage(0, (2, 0)),) * 4), "ascending order"),
        (lambda: ScaleSampling(4, temperatures=(1.1,)), "one factor above 0"),
        (lambda: ScaleSampling(4, guided=9), "guided=9 scales"),
        (lambda: ScaleSampling(4, guidance="none"), "guidance='none'"),
        (lambda: replace(CONFIG, norm_eps=-1.0), "norm_eps=-1.0"),
        (lambda: PLAIN.init(VARIABLES, CLASSES, **options(2)), "prompt"),
        (
            lambda: replace(PLAIN, cfg=False).init(VARIABLES, CLASSES, **options()),
            "cfg=True",
        ),
        (lambda: PLAIN.init(BOTH, CLASSES, **options()), "2 models do not fit"),
        (lambda: replace(CONFIG, scales=(2, 4)), "the first of them 1"),
        (lambda: replace(CONFIG, heads=5), "must divide"),
        (
            lambda: PLAIN.init(VARIABLES, jnp.array([9]), **options(1)),
            "there is no class 9",
        ),
        (
            lambda: PLAIN.init(
                VARIABLES, Prefixed(CLASSES, jnp.zeros((3, 2), int)), **options()
            ),
            "2 given tokens do not fit",
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_error(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
