"""Chains of Gaussian diffusion against laws that are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.diffusion import (
    DiffusionSchedule,
    cosine_betas,
    noised,
    posterior,
    spaced_steps,
    step_coefficients,
)

MEAN, DEVIATION = 1.5, 0.4


def test_all_steps_of_a_diffusion_are_those_of_training():
    assert spaced_steps(1000, 1000) == tuple(range(1000))
    few = spaced_steps(1000, 100)
    assert (few[0], few[1], few[-1]) == (0, 10, 999) and len(set(few)) == 100
    kept = np.cumprod(1 - cosine_betas(1000))
    assert kept[0] > 0.9999 and kept[-1] < 1e-8 and (np.diff(kept) < 0).all()


def exact_outputs(schedule, state, index):
    """Noise that is expected of a state if signals are normal; the exact posterior."""
    kept = jnp.asarray(schedule.kept, jnp.float32)[index]
    gain = jnp.sqrt(kept) * DEVIATION**2 / (kept * DEVIATION**2 + 1 - kept)
    signal = MEAN + gain * (state - jnp.sqrt(kept) * MEAN)
    noise = (state - jnp.sqrt(kept) * signal) / jnp.sqrt(1 - kept)
    return jnp.concatenate([noise, jnp.full_like(noise, -1.0)], axis=-1)


@partial(jax.jit, static_argnums=(0, 1))
def samples(schedule, count, key):
    first, noise_key = jax.random.split(key)
    state = jax.random.normal(first, (count, 1))

    def step(i, state):
        index = schedule.count - 1 - i
        noise = jax.random.normal(jax.random.fold_in(noise_key, i), state.shape)
        outputs = exact_outputs(schedule, state, index)
        at = step_coefficients([schedule], jnp.zeros(count, int), index)
        mean, deviation = posterior(at, state, outputs, schedule.solver)
        return mean + jnp.where(index > 0, deviation * noise, 0.0)

    return jax.lax.fori_loop(0, schedule.count, step, state)[:, 0]


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_a_chain_with_the_exact_noise_samples_the_law_of_the_signals(solver):
    """Up to the standard error of 20,000 samples and the length of the chain."""
    found = samples(DiffusionSchedule(1000, 250, solver), 20000, jax.random.key(0))
    assert abs(found.mean() - MEAN) < 4 * DEVIATION / 20000**0.5 + 0.01
    assert abs(found.std() - DEVIATION) < 0.03
    # The control: a chain of 3 steps with variances that are too small.
    short = samples(DiffusionSchedule(1000, 3, "ancestral"), 20000, jax.random.key(0))
    assert abs(short.std() - DEVIATION) > 0.05


def test_a_step_is_the_posterior_of_the_step_before():
    """Mean and variance by Bayes' rule, from the laws of two noised signals."""
    schedule, index = DiffusionSchedule(1000, 10), jnp.int32(4)
    kept, before = schedule.kept[index], schedule.kept[index - 1]
    signal, noise = 0.7, -0.3
    state = np.sqrt(kept) * signal + np.sqrt(1 - kept) * noise
    outputs = jnp.array([[noise, -1.0]], jnp.float32)
    # The second of two schedules, of which the first is shorter.
    at = step_coefficients(
        [DiffusionSchedule(1000, 4), schedule], jnp.ones(1, int), index
    )
    assert at["time"].tolist() == [schedule.times[4]]
    mean, deviation = posterior(at, jnp.full((1, 1), state), outputs)
    # x_before ~ N(sqrt(before) signal, 1 - before), x = sqrt(a) x_before + noise.
    a = kept / before
    precision = 1 / (1 - before) + a / (1 - a)
    right = np.sqrt(before) * signal / (1 - before) + np.sqrt(a) * state / (1 - a)
    np.testing.assert_allclose(mean[0, 0], right / precision, rtol=1e-5)
    np.testing.assert_allclose(deviation[0, 0], precision**-0.5, rtol=1e-5)
    most = posterior(at, jnp.full((1, 1), state), outputs.at[0, 1].set(1.0))[1]
    np.testing.assert_allclose(most[0, 0], np.sqrt(1 - a), rtol=1e-5)


def test_noised_latents_have_the_signal_s_share():
    schedule = DiffusionSchedule(1000, 10)
    latents, noise = jnp.full((2, 3), 2.0), jnp.full((2, 3), 5.0)
    found = noised(schedule, latents, jnp.array([0, 9]), noise)
    kept = schedule.kept[[0, 9]]
    right = np.sqrt(kept) * 2 + np.sqrt(1 - kept) * 5
    np.testing.assert_allclose(found[:, 0], right, rtol=1e-5)


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_a_bound_cuts_the_signal_that_a_step_assumes(solver):
    """As if the noise had been predicted that leaves the bound as the signal."""
    schedule = DiffusionSchedule(1000, 10, solver)
    at = step_coefficients([schedule], jnp.zeros(1, int), jnp.int32(9))
    state = jnp.full((1, 1), 0.5)
    wrong = jnp.array([[0.4, 0.3]], jnp.float32)  # a signal of some 1e3
    kept = schedule.kept[9]
    noise = (0.5 - np.sqrt(kept) * 2.0) / np.sqrt(1 - kept)
    exact = jnp.array([[noise, 0.3]], jnp.float32)
    found = posterior(at, state, wrong, solver, bound=2.0)
    wanted = posterior(at, state, exact, solver)
    # Rounding of the exact noise is multiplied by the step, too.
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-2)
    np.testing.assert_allclose(found[1], wanted[1])
    assert abs(posterior(at, state, wrong, solver)[0] - wanted[0]).max() > 1
