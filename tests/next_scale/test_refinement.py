"""Models without a cache whose maps are refined (HMAR)."""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.generator import advance, generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.models.next_scale.model import NextScale
from jaxspec.models.next_scale.presets import preset
from jaxspec.next_scale import (
    Refinement,
    collaborative,
    coupled_scales,
    fewer_layers,
    one_model,
)
from jaxspec.next_scale.refinement import published_counts
from jaxspec.speculative.prefix import Prefixed
from tests.next_scale.models import CONFIG, LENGTH, MODEL, SCALES
from tests.next_scale.models import variables as random_variables

REFINED = NextScale(replace(CONFIG, attends="own", mask_layers=1))
# Made outside of compiled functions, whichever test comes first.
VARIABLES = random_variables(REFINED)
COUNTS = ((1,), (1, 3), (1, 1, 2, 5), (25,))
CLASSES = jnp.array([1, 4, 0], jnp.int32)
SAMPLING = Sampling.create(cfg_scale=2.5, top_k=8)
OPTIONS = {"sampling": SAMPLING, "keys": batch_keys(0, 3)}


@lru_cache
def plain():
    """Generation with the published numbers of passes."""
    return whole(one_model(REFINED, SCALES), CLASSES, OPTIONS)


@partial(jax.jit, static_argnums=0)
def whole(generator, prompt, options):
    return generate(generator, VARIABLES, prompt, **options)


def test_a_map_depends_on_earlier_ones_through_its_input_alone():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((3, LENGTH, CONFIG.code_dim)).astype(np.float32)
    other = inputs.copy()
    other[:, :14] += 1  # maps before the last one
    for model, equal in ((REFINED, True), (MODEL, False)):
        score = jax.jit(partial(model.score, random_variables(model).models[0]))
        first, second = (np.asarray(score(CLASSES, x))[:, 14:] for x in (inputs, other))
        assert np.allclose(first, second, atol=1e-5) == equal


def test_nothing_is_kept_of_earlier_maps():
    generator = one_model(REFINED, SCALES)
    state = jax.eval_shape(partial(generator.init, VARIABLES), CLASSES, **OPTIONS)
    assert jax.tree.leaves(state.caches) == []


def test_a_masked_token_is_not_read():
    rng = np.random.default_rng(1)
    vectors, added = rng.standard_normal((2, 3, 9, CONFIG.code_dim)).astype(np.float32)
    masked = rng.random((3, 9)) < 0.5
    params = VARIABLES.models[0]
    condition = REFINED.condition(params, CLASSES, jnp.zeros(3, bool))
    run = jax.jit(lambda x: REFINED.refine(params, condition, vectors, x, masked, 2, 3))
    expected = run(added)
    np.testing.assert_array_equal(run(added + masked[..., None]), expected)
    assert np.abs(run(added + ~masked[..., None]) - expected).max() > 1e-2


@pytest.mark.slow
def test_the_least_certain_tokens_are_sampled_again():
    """Each pass of each map by hand, from logits of the network."""
    first = one_model(REFINED, SCALES, refinement=None, record_log_probs=True)
    values, sampler = VARIABLES, first.sampling
    out = whole(replace(first, refinement=Refinement(COUNTS)), CLASSES, OPTIONS)
    settings = SAMPLING.for_batch(3)
    unguided = replace(settings, cfg_scale=jnp.ones(3))
    state = jax.jit(partial(first.init, values))(CLASSES, **OPTIONS)
    make = jax.jit(partial(first.make_scale, values), static_argnums=1)
    added = jax.jit(partial(SCALES.added, values.quantizer), static_argnums=1)
    refine = jax.jit(partial(REFINED.refine, values.models[0]), static_argnums=(4, 5))
    advances = jnp.ones(3, bool)
    for scale, counts in enumerate(COUNTS):
        here = SCALES.tokens_of(scale)
        drawn = make(state, scale)
        tokens, log_probs = (
            np.array(x[:, here]) for x in (drawn.tokens, drawn.log_probs)
        )
        masked = np.ones(tokens.shape, bool)
        for step in range(1, len(counts)):
            certain = np.where(masked, log_probs, np.inf)
            masked = np.zeros_like(masked)
            for b in range(3):
                masked[b, np.argsort(certain[b])[: sum(counts[step:])]] = True
            features = added(tokens, scale)
            own = SCALES.reduced(features, scale)
            logits = refine(
                state.conditions[0][:3], state.inputs[:, here], own, masked, scale,
                scale + 1,
            )  # fmt: skip
            start = here.start + step * LENGTH
            new, log_p, _ = sampler.sample(
                logits, unguided, OPTIONS["keys"], scale, start
            )
            tokens = np.where(masked, new, tokens)
            log_probs = np.where(masked, log_p, log_probs)
        np.testing.assert_array_equal(tokens, out.tokens[:, here])
        found = out.log_probs.tokens[:, here]
        np.testing.assert_allclose(found, log_probs, atol=1e-4)
        state = first.accept(values, drawn, scale, jnp.asarray(tokens), advances)
        state = replace(state, features=_sum(values, state.tokens, scale + 1))
        if scale < 3:
            there = SCALES.tokens_of(scale + 1)
            fresh = SCALES.reduced(state.features, scale + 1)
            state = replace(state, inputs=state.inputs.at[:, there].set(fresh))
    assert out.stats.calls.tolist() == [8] * 3  # 1, 2, 4 and 1 passes


def _sum(values, tokens, count):
    return SCALES.features(values.quantizer, tokens, count)


@pytest.mark.slow
def test_tokens_are_the_same_however_they_are_generated():
    """Map by map, for each sequence alone, and after the first ones."""
    generator, out = one_model(REFINED, SCALES), plain()
    state = jax.jit(partial(generator.init, VARIABLES))(CLASSES, **OPTIONS)
    steps = generator.result(jax.jit(partial(advance, generator))(VARIABLES, state))
    np.testing.assert_array_equal(steps.tokens, out.tokens)
    one = whole(generator, CLASSES[1:2], {**OPTIONS, "keys": OPTIONS["keys"][1:2]})
    np.testing.assert_array_equal(one.tokens[0], out.tokens[1])
    prompt = Prefixed(CLASSES, out.tokens[:, :5])
    rest = whole(replace(generator, prefix=5), prompt, OPTIONS)
    np.testing.assert_array_equal(rest.tokens, out.tokens[:, 5:])


@pytest.mark.slow
def test_given_tokens_are_not_sampled_again():
    """Two of the four tokens of the second map are given."""
    generator = one_model(REFINED, SCALES, prefix=3)
    given = jnp.tile(jnp.array([[3, 7, 7]], jnp.int32), (3, 1))
    prompt = Prefixed(CLASSES, given)
    state = jax.jit(partial(generator.init, VARIABLES))(prompt, **OPTIONS)
    make = jax.jit(partial(generator.make_scale, VARIABLES), static_argnums=1)
    state = make(make(state, 0), 1)
    np.testing.assert_array_equal(state.tokens[:, :3], given)
    assert (np.asarray(state.tokens[:, 3:5]) >= 0).all() and state.finite.all()
    assert (np.asarray(plain().tokens[:, :3]) != given).any()  # others were sampled


def test_scales_that_can_be_refined_are_refined_as_published():
    """Not those of another model, nor those made with some of the layers."""
    late = ((1,), (4,), (1, 1, 2, 5), (25,))
    early = ((1,), (1, 3), (9,), (25,))
    assert collaborative(MODEL, REFINED, SCALES, 2).refinement.counts == late
    assert collaborative(REFINED, MODEL, SCALES, 2).refinement.counts == early
    assert fewer_layers(REFINED, SCALES, 2, 2).refinement.counts == early
    assert one_model(MODEL, SCALES).refinement is None


def test_published_numbers_of_passes():
    counts = published_counts(preset("hmar-d16").scales)
    assert counts[:4] == ((1,), (1, 3), (1, 1, 2, 5), (16,)) and counts[9] == (256,)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Refinement(((1,), (0, 4))), "positive"),
        (lambda: Refinement(((1, 1),)), "not refined"),
        (
            lambda: one_model(REFINED, SCALES, refinement=Refinement(((1,), (3,)))),
            "2 scales does not fit 4",
        ),
        (
            lambda: one_model(MODEL, SCALES, refinement=Refinement(COUNTS)),
            "scale 1 has further passes, which need a model with mask_layers",
        ),
        (
            lambda: fewer_layers(REFINED, SCALES, 1, 2, refinement=Refinement(COUNTS)),
            "all its layers; give it one pass",
        ),
        (
            lambda: one_model(
                REFINED, SCALES, refinement=Refinement(((1,), (3,), (9,), (25,)))
            ),
            "scale 1 leaves 3 tokens.*sum up to its 4",
        ),
        (lambda: Refinement(([1],)), "tuple of positive numbers"),
        (lambda: Refinement((1, (1, 3))), "tuple of positive numbers"),
        (lambda: Refinement(((True,),)), "tuple of positive numbers"),
        (lambda: Refinement(((1.5,),)), "tuple of positive numbers"),
        (lambda: replace(CONFIG, mask_layers=1), "mask_layers=1 needs attends='own'"),
        (lambda: coupled_scales(REFINED, MODEL, SCALES), "not verified"),
        (lambda: replace(CONFIG, attends="all"), "choose 'earlier' or 'own'"),
        (lambda: replace(CONFIG, mask_layers=9), "mask_layers=9"),
    ],
)
def test_impossible_settings_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
