"""Acceptance by ratios of densities, on Gaussian chains whose law is known."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm

from jaxspec.core.noise import batch_keys
from jaxspec.errors import ConfigError
from jaxspec.mar import RELEASED, DensityTest
from jaxspec.mar.density import accept_or_redraw
from jaxspec.mar.head import ChainEnd

SAMPLES, STEPS = 40000, 4
# The largest difference of an empirical distribution function from its own law is above
# the first number once in 1,000 times.
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


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
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


def distance(values):
    """Kolmogorov-Smirnov distance of samples from the law of the target's chain."""
    return kstest(np.asarray(values), "norm", law(TARGET)).statistic


@pytest.mark.variants(2)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("drafter", ["same", "other", "target"])
def test_samples_have_the_law_of_the_target(drafter, channels):
    tokens, accepted = samples(DensityTest(), 0, drafter, channels)
    mean, deviation = law(TARGET)
    error = deviation / SAMPLES**0.5
    for values in tokens.T:
        assert abs(values.mean() - mean) < 4 * error
        assert abs(values.std() - deviation) < 4 * error
        assert distance(values) < CRITICAL
    assert (
        np.abs(np.atleast_2d(np.corrcoef(tokens.T)) - np.eye(channels)).max()
        < 4 / SAMPLES**0.5
    )
    kept = float(accepted.mean())
    assert kept > 0.999 if drafter == "target" else 0.1 < kept < 0.9


def test_a_law_that_differs_by_a_20th_of_a_deviation_would_be_found():
    """The power: in each of ten repetitions."""
    mean, deviation = law(TARGET)
    rng = np.random.default_rng(0)
    for _ in range(10):
        shifted = rng.normal(mean + deviation / 20, deviation, SAMPLES)
        assert distance(shifted) > CRITICAL


@pytest.mark.variants(3)
@pytest.mark.parametrize(
    ("test", "drafter"),
    [
        (DensityTest("paper"), "other"),
        (DensityTest("code"), "other"),
        (RELEASED, "other"),
        (RELEASED, "same"),
        (DensityTest(flattening=2.0), "same"),
    ],
)
def test_other_rules_do_not(test, drafter):
    assert distance(samples(test, 0, drafter)[0][:, 0]) > FOUND


def test_the_product_of_the_paper_is_harmless_if_deviations_are_equal():
    ours, _ = samples(DensityTest(), 1, "same")
    papers, _ = samples(DensityTest("paper"), 1, "same")
    np.testing.assert_array_equal(ours, papers)


@pytest.mark.slow
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


def unit(mean, count, log_deviations=0.0):
    """Last steps of chains with variance 1, one channel."""
    ones = jnp.ones((1, count, 1), jnp.float32)
    return ChainEnd(mean * ones, ones, jnp.full((1, count), log_deviations))


@pytest.mark.parametrize("unresolved", ["target", "zero"])
def test_the_bound_on_tries_has_a_defined_outcome(unresolved):
    """With a product of nearly 0 every draft is rejected, and nothing is kept."""
    test = DensityTest("paper", tries=2, unresolved=unresolved)
    p, q = unit(1.0, 200), unit(1.0, 200, -20.0)
    places, wanted = jnp.arange(200, dtype=jnp.int32)[None], jnp.ones((1, 200), bool)
    tokens, accepted = accept_or_redraw(
        test, batch_keys(0, 1), places, p.mean, q, p, wanted
    )
    assert not accepted.any()
    if unresolved == "zero":
        assert (tokens == 0).all()
    else:  # draws from the target
        assert kstest(np.asarray(tokens).ravel(), "norm", (1, 1)).pvalue > 1e-3


def test_without_densities_the_target_s_own_token_is_taken():
    """At temperature 0; tokens beside it are as before."""
    places, wanted = jnp.arange(2, dtype=jnp.int32)[None], jnp.ones((1, 2), bool)
    p, q = unit(1.0, 2), unit(3.0, 2, -jnp.inf)
    flat = replace(p, deviation=p.deviation.at[0, 0].set(0.0))
    tokens, accepted = accept_or_redraw(
        DensityTest("paper"), batch_keys(0, 1), places, q.mean, q, flat, wanted
    )
    assert tokens[0, 0, 0] == 1.0 and not accepted[0, 0]
    assert np.isfinite(tokens).all()


@pytest.mark.slow
def test_the_error_of_few_tries_is_as_stated():
    """Distance of total variation from the target, by bins: `d (1 - d)^2` at most."""
    count, shift = 400_000, 0.5
    p, q = unit(0.0, count), unit(shift, count)
    drafts = q.mean + jax.random.normal(jax.random.key(0), p.mean.shape, jnp.float32)
    places, wanted = jnp.arange(count, dtype=jnp.int32)[None], p.mean[..., 0] == 0
    run = partial(accept_or_redraw, DensityTest(tries=1), batch_keys(0, 1), places)
    tokens, accepted = run(drafts, q, p, wanted)
    d = 2 * norm.cdf(shift / 2) - 1
    assert abs(float(accepted.mean()) - (1 - d)) < 4 / count**0.5
    bins = np.linspace(-4, 4, 41)
    exact = np.diff(norm.cdf(bins))
    found = np.histogram(tokens, bins)[0] / count
    error = np.abs(found - exact).sum() / 2
    assert 0.02 < error < d * (1 - d) ** 2 + 0.01
    # With more tries it is gone.
    more = partial(accept_or_redraw, DensityTest(), batch_keys(0, 1), places)
    found = np.histogram(more(drafts, q, p, wanted)[0], bins)[0] / count
    assert np.abs(found - exact).sum() / 2 < 0.005


@pytest.mark.parametrize(
    "change",
    [
        {"product": "both"},
        {"flattening": 0.0},
        {"tries": 0},
        {"tries": 2.5},
        {"unresolved": "draft"},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        DensityTest(**change)
