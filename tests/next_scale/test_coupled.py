"""Coupled scales: the target's tokens, in fewer of its passes."""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.continuous_batching import Requests, idle_batch, run_queue
from jaxspec.core.generator import generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.models.next_scale.model import NextScale
from jaxspec.next_scale import ScaleSampling, coupled_scales, one_model
from tests.next_scale.models import CONFIG, LENGTH, MODEL, SCALES, variables

OTHER = NextScale(replace(CONFIG, layers=1))
BATCH = 6
CLASSES = jnp.arange(BATCH, dtype=jnp.int32) % 5


@lru_cache
def near(amount):
    """Variables whose drafter is the target with noise added to its parameters."""
    values = variables()
    (params,) = values.models

    rng = np.random.default_rng(0)

    def changed(x):
        return x + np.float32(amount) * np.float32(rng.standard_normal(x.shape))

    return replace(values, models=(params, jax.tree.map(changed, params)))


OPTIONS = {
    "sampling": Sampling.create(cfg_scale=2.5, top_k=8),
    "keys": batch_keys(0, BATCH),
}


@partial(jax.jit, static_argnums=0)
def whole(generator, variables, prompt, options):
    return generate(generator, variables, prompt, **options)


@lru_cache
def plain():
    """Generation of the target alone."""
    values = near(0.0)
    values = replace(values, models=values.models[:1])
    return whole(one_model(MODEL, SCALES), values, CLASSES, OPTIONS)


@pytest.mark.variants(1)
@pytest.mark.parametrize("window", [2, 1, 4])
def test_tokens_are_those_of_the_target_alone(window):
    out = whole(
        coupled_scales(MODEL, MODEL, SCALES, window=window),
        near(0.02),
        CLASSES,
        OPTIONS,
    )
    np.testing.assert_array_equal(out.tokens, plain().tokens)
    np.testing.assert_array_equal(out.stats.accepted.sum(axis=1), out.stats.calls)
    if window > 1:  # some maps are kept and some are not, at other scales in each
        assert out.stats.calls.min() < 4 and len(set(out.stats.calls.tolist())) > 1
    else:
        assert (out.stats.calls == 4).all()


@pytest.mark.slow
def test_maps_after_the_end_of_a_sequence_are_not_counted():
    """Limits within a round; drafted tokens are those of the drafter's passes alone."""
    generator = coupled_scales(MODEL, MODEL, SCALES, window=2)
    limits = np.array([1, 5, LENGTH, 1, 5, LENGTH])
    stopping = StoppingCriteria.create(max_new_tokens=limits)
    out = whole(generator, near(0.0), CLASSES, {**OPTIONS, "stopping": stopping})
    assert out.lengths.tolist() == limits.tolist()
    assert out.stats.calls.tolist() == [1, 1, 2, 1, 1, 2]
    # Of maps of 1, 4, 9 and 25 tokens the first of each window is drafted.
    assert out.stats.proposed.tolist() == [1, 1, 10, 1, 1, 10]
    kept = (out.stats.accepted * jnp.arange(2)).sum(axis=1)
    assert kept.tolist() == [1, 1, 2, 1, 1, 2]


@pytest.mark.slow
def test_a_drafter_of_another_size_changes_no_token():
    values = variables(MODEL, OTHER)
    out = whole(coupled_scales(MODEL, OTHER, SCALES), values, CLASSES, OPTIONS)
    np.testing.assert_array_equal(out.tokens, plain().tokens)
    assert (out.lengths == LENGTH).all() and out.finite.all()


@pytest.mark.variants(1)
@pytest.mark.parametrize("window", [2, 4])
def test_the_target_itself_as_drafter_needs_the_fewest_passes(window):
    generator = coupled_scales(MODEL, MODEL, SCALES, window=window)
    out = whole(generator, near(0.0), CLASSES, OPTIONS)
    np.testing.assert_array_equal(out.tokens, plain().tokens)
    assert (out.stats.calls == 4 // window).all()


@pytest.mark.slow
def test_requests_in_a_queue_get_the_target_s_tokens():
    generator = coupled_scales(MODEL, MODEL, SCALES, window=3)
    requests = Requests(
        jnp.arange(BATCH, dtype=jnp.int32),
        CLASSES,
        OPTIONS["sampling"].for_batch(BATCH),
        OPTIONS["keys"],
        StoppingCriteria.create(BATCH, max_new_tokens=LENGTH),
    )

    @jax.jit
    def run(variables):
        batch = idle_batch(
            generator, variables, jax.tree.map(lambda x: x[:2], requests)
        )
        return run_queue(generator, variables, batch, requests, True)[1]

    found = run(near(0.01))
    order = np.asarray(found.ids[:BATCH])
    np.testing.assert_array_equal(found.result.tokens[:BATCH], plain().tokens[order])


@pytest.mark.slow
def test_with_a_radius_maps_are_kept_that_move_the_features_less():
    """Each map is the target's own after the maps before it, or within the radius."""
    radius, values = 0.3, near(0.05)
    generator = coupled_scales(MODEL, MODEL, SCALES, window=2, radius=radius)
    out = whole(generator, values, CLASSES, OPTIONS)
    exact = whole(replace(generator, radius=0.0), values, CLASSES, OPTIONS)
    assert out.stats.calls.sum() < exact.stats.calls.sum()
    # Each of the target's own maps after the maps that were made, by one pass.
    inputs, params = SCALES.inputs(values.quantizer, out.tokens), values.models[0]
    score = jax.jit(MODEL.score)
    given = score(params, CLASSES, inputs)
    null = score(params, CLASSES, inputs, null=jnp.ones(BATCH, bool))
    logits, moves = jnp.concatenate([given, null]), []
    settings = OPTIONS["sampling"].for_batch(BATCH)
    for scale in range(4):
        here = SCALES.tokens_of(scale)
        own, _, _ = ScaleSampling(4).sample(
            logits[:, here], settings, OPTIONS["keys"], scale, here.start
        )
        added = partial(SCALES.added, values.quantizer, scale=scale)
        moved = (added(out.tokens[:, here]) - added(own)) ** 2
        moves.append(np.sqrt(moved.mean(axis=(1, 2, 3))))
    assert np.max(moves) <= radius and np.max(moves) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 0}, "window=0; choose 1 to 4"),
        ({"window": 9}, "window=9"),
        ({"radius": -1.0}, "radius=-1.0 must be"),
        ({"radius": float("nan")}, "radius=nan"),
        ({"sampling": ScaleSampling(4, guided=2)}, "guided at every scale"),
    ],
)
def test_impossible_settings_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        coupled_scales(MODEL, MODEL, SCALES, **options)
