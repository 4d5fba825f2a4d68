"""Drafted steps of unmasking: coupled, and by ratios of densities."""

from dataclasses import replace
from functools import partial

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
from jaxspec.mar import (
    CoupledMAR,
    DensityTest,
    MARGenerator,
    MARVariables,
    SpeculativeMAR,
    UnmaskingSchedule,
)
from jaxspec.mar.cells import step_cells
from jaxspec.models.mar.model import MAR
from jaxspec.sharding import make_mesh, over_batch
from tests.mar.models import CONFIG, HEAD, MODEL, SCHEDULE, variables
from tests.params import random_like

TARGET = MARGenerator(MODEL, SCHEDULE, HEAD, stages=1)
SMALL = MAR(replace(CONFIG, width=8, head_width=8))
DRAFTER = replace(TARGET, model=SMALL)
PARAMS = variables().params
VARIABLES = MARVariables(PARAMS, random_like(SMALL.init, spread=0.2, seed=1))
# Parameters that are nearly the target's.
NEAR = MARVariables(PARAMS, jax.tree.map(lambda x: x * 1.01, PARAMS))
CLASSES = jnp.array([1, 4, 0], jnp.int32)
COUPLED = CoupledMAR(TARGET, TARGET, window=2)
SPECULATIVE = SpeculativeMAR(TARGET, TARGET, window=2, prefill=0.3)


def options(batch=3, temperature=0.9):
    sampling = Sampling.create(cfg_scale=2.0, temperature=temperature)
    return {"sampling": sampling, "keys": batch_keys(0, batch)}


@partial(jax.jit, static_argnums=0)
def run(generator, variables, classes, options):
    return generate(generator, variables, classes, **options)


def plain():
    return run(TARGET, MARVariables(PARAMS), CLASSES, options())


def assert_same(found, wanted):
    """Equal up to rounding; tokens of a random network have some 1e4."""
    size = np.abs(wanted).max()
    np.testing.assert_allclose(found / size, wanted / size, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("window", "pair"), [(1, "unrelated"), (6, "near")])
def test_radius_0_is_plain_generation(window, pair):
    drafter, values = (DRAFTER, VARIABLES) if pair == "unrelated" else (TARGET, NEAR)
    out = run(CoupledMAR(TARGET, drafter, window), values, CLASSES, options())
    assert_same(out.tokens, plain().tokens)
    assert (out.stats.calls <= SCHEDULE.steps).all()
    assert out.stats.accepted.sum(1).tolist() == out.stats.calls.tolist()


@pytest.mark.slow
def test_every_token_is_within_the_radius_of_the_target_s_own():
    """The target samples each step again, given the tokens before it."""
    size = float(jnp.sqrt(jnp.mean(plain().tokens ** 2)))
    radius = 0.02 * size
    coupled = replace(COUPLED, window=3, radius=radius)
    out = run(coupled, NEAR, CLASSES, options())
    found = largest_distance(out.tokens)
    assert found < 1.001 * radius
    # Some tokens were kept though they differ, and calls were saved.
    assert found > 1e-3 * radius
    assert out.stats.calls.sum() < plain().stats.calls.sum()
    # The control: a larger radius keeps tokens beyond this one.
    far = run(replace(coupled, radius=20 * radius), NEAR, CLASSES, options())
    assert largest_distance(far.tokens) > 1.001 * radius


def largest_distance(tokens):
    """From what the target samples at any token, given the tokens before it."""
    state = jax.jit(partial(TARGET.init, MARVariables(PARAMS)))(CLASSES, **options())
    distances, sample = [], jax.jit(TARGET.sample)
    for step in range(SCHEDULE.steps):
        steps, limit = jnp.full(3, step, jnp.int32), jnp.full(3, 16, jnp.int32)
        places, taken = step_cells(SCHEDULE, state.order, steps, limit)
        own = sample(PARAMS, replace(state, latents=tokens, steps=steps), places).mean
        found = jnp.take_along_axis(tokens, places[..., None], axis=1)
        distance = jnp.sqrt(jnp.mean((found - own) ** 2, axis=-1))
        distances.append(jnp.where(taken, distance, 0.0).max())
    return float(max(distances))


def test_a_drafter_of_nan_changes_nothing_with_radius_0():
    broken = replace(VARIABLES, drafter=jax.tree.map(lambda x: x * jnp.nan, PARAMS))
    out = run(replace(COUPLED, window=3), broken, CLASSES, options())
    assert_same(out.tokens, plain().tokens)
    assert out.finite.all()


def test_shorter_chains_of_the_drafter_change_nothing_with_radius_0():
    short = replace(TARGET, head=replace(HEAD, count=3), last_count=2)
    out = run(replace(COUPLED, drafter=short), NEAR, CLASSES, options())
    assert_same(out.tokens, plain().tokens)


def test_a_drafter_that_is_the_target_saves_all_calls_but_one_a_round():
    same, wide = MARVariables(PARAMS, PARAMS), replace(COUPLED, radius=1e9)
    out = run(wide, same, CLASSES, options())
    assert_same(out.tokens, plain().tokens)
    assert out.stats.calls.tolist() == [2] * 3  # 6 steps, 3 in a round
    assert out.stats.accepted.sum(1).tolist() == [2] * 3
    kept = out.stats.accepted @ jnp.arange(out.stats.accepted.shape[1])
    assert kept.tolist() == out.stats.proposed.tolist()


def test_equal_densities_accept_everything():
    """One step a round: the conditions of the target and of the drafter are equal."""
    test = DensityTest(noisy_end=False)
    generator = SpeculativeMAR(TARGET, TARGET, window=1, test=test, prefill=0.0)
    out = run(generator, MARVariables(PARAMS, PARAMS), CLASSES, options())
    assert_same(out.tokens, plain().tokens)
    assert out.stats.proposed.tolist() == [16] * 3
    kept = (out.stats.accepted * jnp.arange(out.stats.accepted.shape[1])).sum(1)
    assert kept.tolist() == [16] * 3


@pytest.mark.slow
def test_rejected_tokens_are_drawn_from_the_target_that_saw_no_draft():
    generator = SpeculativeMAR(TARGET, DRAFTER, window=6, prefill=0.0)
    state = jax.jit(partial(generator.init, VARIABLES))(CLASSES, **options())
    after = jax.jit(generator.step)(VARIABLES, state)
    assert after.done.all() and after.stats.calls.tolist() == [1] * 3
    places = jnp.broadcast_to(jnp.arange(16, dtype=jnp.int32), (3, 16))
    last = jnp.full(3, SCHEDULE.steps - 1, jnp.int32)
    own = jax.jit(TARGET.sample)(PARAMS, state, places, last)
    score = jnp.abs(after.latents - own.mean) / own.deviation
    assert score.max() < 5
    # The control: the drafter's tokens are elsewhere.
    drafts = run(DRAFTER, MARVariables(VARIABLES.drafter), CLASSES, options()).tokens
    assert (jnp.abs(drafts - own.mean) / own.deviation).max() > 10


def test_the_target_begins_alone():
    generator = replace(SPECULATIVE, test=DensityTest(noisy_end=False))
    state = jax.jit(partial(generator.init, NEAR))(CLASSES, **options())
    state = jax.jit(generator.step)(NEAR, state)
    assert state.steps.tolist() == [1] * 3 and (state.stats.proposed == 0).all()
    known = np.isfinite(np.asarray(generator.result(state).tokens)).all(-1)
    assert_same(generator.result(state).tokens[known], plain().tokens[known])


@pytest.mark.slow
@pytest.mark.parametrize("generator", [replace(COUPLED, radius=300.0), SPECULATIVE])
def test_a_queue_and_a_limit_change_nothing(generator):
    count = 5
    classes = jnp.arange(count, dtype=jnp.int32)
    alone = run(generator, NEAR, classes, options(count))
    settings = {"sampling": options()["sampling"].for_batch(count), "stopping": None}
    queue = Requests(jnp.arange(count), classes, keys=batch_keys(0, count), **settings)
    batch = idle_batch(generator, NEAR, jax.tree.map(lambda x: x[:2], queue))
    _, finished = jax.jit(partial(run_queue, generator))(NEAR, batch, queue, True)
    order = np.argsort(np.asarray(finished.ids)[:count])
    assert_same(np.asarray(finished.result.tokens)[order], alone.tokens)
    few = {**options(count), "stopping": StoppingCriteria.create(max_new_tokens=3)}
    out = run(generator, NEAR, classes, few)
    known = np.isfinite(out.tokens).all(-1)
    assert known.sum(1).tolist() == out.lengths.tolist() == [3] * count
    assert_same(out.tokens[known], alone.tokens[known])


@pytest.mark.slow
@pytest.mark.parametrize("generator", [COUPLED, SPECULATIVE])
def test_bfloat16_runs(generator):
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), NEAR)
    out = run(generator, halves, CLASSES, options())
    assert out.tokens.dtype == jnp.float32 and np.isfinite(out.tokens).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 2), (4, 1)])
@pytest.mark.parametrize("generator", [replace(COUPLED, radius=300.0), SPECULATIVE])
def test_a_mesh_of_smaller_batches_changes_nothing(generator, shape):
    classes = jnp.arange(8, dtype=jnp.int32) % 5
    whole = run(generator, NEAR, classes, options(8))
    make = over_batch(make_mesh(*shape), partial(generate, generator))
    spread = jax.jit(make)(NEAR, classes, **options(8))
    assert_same(spread.tokens, whole.tokens)
    assert whole.finite.all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(COUPLED, window=0), "window=0"),
        (lambda: replace(COUPLED, radius=-1.0), "radius=-1"),
        (
            lambda: replace(COUPLED, drafter=replace(TARGET, cfg=False)),
            "same schedule and cfg",
        ),
        (
            lambda: replace(
                COUPLED, drafter=replace(TARGET, model=MAR(replace(CONFIG, classes=7)))
            ),
            "classes=7",
        ),
        (
            lambda: COUPLED.init(MARVariables(PARAMS), CLASSES, **options()),
            "no drafter",
        ),
        (lambda: replace(SPECULATIVE, prefill=1.5), "prefill"),
        (lambda: replace(COUPLED, window=2.5), "window"),
        (lambda: replace(COUPLED, radius="x"), "radius"),
        (lambda: replace(TARGET, last_count=2.5), "last_count"),
        (
            lambda: replace(
                SPECULATIVE,
                target=replace(TARGET, last_count=2),
                drafter=replace(TARGET, last_count=2),
                test=DensityTest("paper"),
            ),
            "product='none'",
        ),
        (
            lambda: replace(
                SPECULATIVE, drafter=replace(TARGET, head=replace(HEAD, count=3))
            ),
            "same steps",
        ),
        (
            lambda: SPECULATIVE.init(
                NEAR,
                CLASSES,
                **{**options(), "sampling": Sampling.create(temperature=0.0)},
            ),
            "temperature=0",
        ),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.slow
def test_fewer_steps_of_late_chains_are_those_of_shorter_schedules():
    """DiSA: each step by a chain of its own number of steps."""
    schedule = UnmaskingSchedule(16, steps=3)
    annealed = MARGenerator(MODEL, schedule, replace(HEAD, count=6), last_count=2)
    schedules, which = annealed.chains
    assert [schedules[i].count for i in which] == [6, 4, 2]
    values = MARVariables(PARAMS)
    state = jax.jit(partial(annealed.init, values))(CLASSES, **options())
    for count in (6, 4, 2):
        short = MARGenerator(MODEL, schedule, replace(HEAD, count=count))
        found = jax.jit(annealed.step)(values, state)
        assert_same(found.latents, jax.jit(short.step)(values, state).latents)
        state = found
