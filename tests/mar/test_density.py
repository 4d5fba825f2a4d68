"""Acceptance by ratios of densities, on Gaussian chains whose law is known."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from jaxspec.core.noise import batch_keys
from jaxspec.errors import ConfigError
from jaxspec.mar import RELEASED, DensityTest
from jaxspec.mar.density import accept_or_redraw
from jaxspec.mar.head import ChainEnd

SAMPLES, STEPS = 40000, 4
# A difference of .02 between distribution functions is found nearly always: the largest
# difference of an empirical one from its own law is above .0097 once in 1,000 times.
CRITICAL, FOUND = 0.0097, 0.02
# Factor, shift and standard deviations of the steps, the last one last.
TARGET = 0.9, 0.3, np.array([0.9, 0.6, 0.5, 0.4])
SAME_DEVIATIONS = 0.8, 0.1, TARGET[2]
OTHER_DEVIATIONS = 0.8, 0.1, np.array([0.7, 0.5, 0.55, 0.5])


def law(chain):
    """Mean and standard deviation of the end of a chain that begins at N(0, 1)."""
    factor, shift, deviations = chain
    mean, variance = 0.0, 1.0
    for deviation in deviations:
        mean = factor * mean + shift
        variance = factor**2 * variance + deviation**2
    return mean, variance**0.5


def run_chain(chain, noise):
    """Last step of chains with given first states and noise [n, STEPS, C]."""
    factor, shift, deviations = chain
    state = noise[:, 0]
    for i in range(STEPS - 1):
        state = factor * state + shift + deviations[i] * noise[:, i + 1]
    end = factor * state + shift
    logs = state.shape[1] * np.log(deviations[:-1]).sum()
    return ChainEnd(
        end[None],
        jnp.full_like(end, deviations[-1])[None],
        jnp.full((1, len(end)), logs),
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def samples(test, seed, drafter, channels=1):
    chains = {"same": SAME_DEVIATIONS, "other": OTHER_DEVIATIONS, "target": TARGET}
    first, last = jax.random.split(jax.random.key(seed))
    noise = jax.random.normal(first, (SAMPLES, STEPS, channels), jnp.float32)
    p, q = run_chain(TARGET, noise), run_chain(chains[drafter], noise)
    drafts = q.mean
    if test.noisy_end:
        drafts += q.deviation * jax.random.normal(last, drafts.shape, jnp.float32)
    places = jnp.arange(SAMPLES, dtype=jnp.int32)[None]
    wanted = jnp.ones((1, SAMPLES), bool)
    tokens, accepted = accept_or_redraw(
        test, batch_keys(seed, 1), places, drafts, q, p, wanted
    )
    return tokens[0], accepted[0]


def distance(test, drafter, seed=0):
    """Kolmogorov-Smirnov distance of samples from the law of the target's chain."""
    tokens, _ = samples(test, seed, drafter)
    return kstest(np.asarray(tokens)[:, 0], "norm", law(TARGET)).statistic


@pytest.mark.parametrize("drafter", ["same", "other", "target"])
def test_samples_have_the_law_of_the_target(drafter):
    tokens, accepted = samples(DensityTest(), 0, drafter)
    mean, deviation = law(TARGET)
    error = deviation / SAMPLES**0.5
    assert abs(tokens.mean() - mean) < 4 * error
    assert abs(tokens.std() - deviation) < 4 * error
    assert distance(DensityTest(), drafter) < CRITICAL
    kept = float(accepted.mean())
    assert kept == 1 if drafter == "target" else 0.3 < kept < 0.9


@pytest.mark.parametrize(
    ("test", "drafter"),
    [
        (DensityTest("paper"), "other"),
        (DensityTest("code"), "other"),
        (RELEASED, "other"),
        (RELEASED, "same"),
        # The control of the power: a law that is shifted by a 20th of its deviation.
        (DensityTest(flattening=2.0), "same"),
    ],
)
def test_other_rules_do_not(test, drafter):
    assert distance(test, drafter) > FOUND


def test_the_product_of_the_paper_is_harmless_if_deviations_are_equal():
    assert distance(DensityTest("paper"), "same") < CRITICAL
    ours, _ = samples(DensityTest(), 1, "same")
    papers, _ = samples(DensityTest("paper"), 1, "same")
    np.testing.assert_array_equal(ours, papers)


def test_what_is_redrawn_depends_on_its_place_alone():
    """The last tokens of many are the same as alone."""
    key, few = batch_keys(0, 1), 5
    places = jnp.arange(40, dtype=jnp.int32)[None]
    noise = jax.random.normal(jax.random.key(1), (40, STEPS, 1), jnp.float32)
    p, q = run_chain(TARGET, noise), run_chain(OTHER_DEVIATIONS, noise)
    drafts, wanted = q.mean + 3.0, jnp.ones((1, 40), bool)
    run = partial(accept_or_redraw, DensityTest(), key)
    all_tokens, accepted = run(places, drafts, q, p, wanted)
    assert not accepted.all()
    last = jax.tree.map(lambda x: x[:, -few:], (places, drafts, q, p, wanted))
    tokens, _ = run(*last)
    np.testing.assert_allclose(tokens, all_tokens[:, -few:], rtol=1e-6)


@pytest.mark.parametrize("unresolved", ["target", "zero"])
def test_the_bound_on_tries_has_a_defined_outcome(unresolved):
    """Chains that end far apart: nearly every draft is rejected, and with the inverse
    product of very different deviations nothing that is drawn is kept."""
    test = DensityTest("paper", tries=2, unresolved=unresolved)
    places, wanted = jnp.arange(200, dtype=jnp.int32)[None], jnp.ones((1, 200), bool)
    p = ChainEnd(jnp.ones((1, 200, 1)), jnp.ones((1, 200, 1)), jnp.zeros((1, 200)))
    q = replace(p, log_deviations=p.log_deviations - 20)  # `S` is nearly 0
    tokens, accepted = accept_or_redraw(
        test, batch_keys(0, 1), places, p.mean, q, p, wanted
    )
    assert not accepted.any()
    if unresolved == "zero":
        assert (tokens == 0).all()
    else:  # draws from the target
        assert kstest(np.asarray(tokens).ravel(), "norm", (1, 1)).pvalue > 1e-3


@pytest.mark.parametrize(
    "change",
    [{"product": "both"}, {"flattening": 0.0}, {"tries": 0}, {"unresolved": "draft"}],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        DensityTest(**change)
