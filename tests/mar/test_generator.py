"""Generation of continuous tokens: the same however it is run."""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxspec.core.continuous_batching import Requests, idle_batch, run_queue
from jaxspec.core.diffusion import DiffusionSchedule
from jaxspec.core.generator import advance, generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.mar import MARGenerator, UnmaskingSchedule
from jaxspec.mar.head import head_noise, run_chains
from jaxspec.nn.quantize import quantized
from jaxspec.pipeline.bundle import cast_floats
from jaxspec.sharding import make_mesh, over_batch, placement
from tests.mar.models import HEAD, MODEL, SCHEDULE, variables

GENERATOR = MARGenerator(MODEL, SCHEDULE, HEAD, stages=2)
VARIABLES = variables()
CLASSES = jnp.array([1, 4, 0], jnp.int32)


def options(batch=3, **settings):
    settings = {"cfg_scale": 2.0, "temperature": 0.9, **settings}
    return {"sampling": Sampling.create(**settings), "keys": batch_keys(0, batch)}


@partial(jax.jit, static_argnums=0)
def whole(generator, prompt, options):
    return generate(generator, VARIABLES, prompt, **options)


@lru_cache
def expected():
    return whole(GENERATOR, CLASSES, options())


def assert_same(found, wanted):
    """Equal up to rounding; tokens of a random network have some 1e4."""
    size = np.abs(wanted).max()
    np.testing.assert_allclose(found / size, wanted / size, rtol=0, atol=1e-5)


def test_every_token_is_sampled_given_those_known_before():
    """Each step by hand, from the networks, without capacities and other tokens."""
    keys, total = options()["keys"], SCHEDULE.tokens
    out = np.asarray(expected().tokens)
    state = jax.jit(partial(GENERATOR.init, VARIABLES))(CLASSES, **options())
    order, condition = np.asarray(state.order), state.condition
    params = VARIABLES.params
    conditions_of = jax.jit(partial(MODEL.token_conditions, params))
    masked = SCHEDULE.masked
    for step in range(SCHEDULE.steps):
        known = np.argsort(order, axis=1) >= masked[step]
        latents = np.where(known[..., None], out, 1e3)  # what is masked is not read
        both = np.concatenate([latents, latents])
        conditions = conditions_of(
            condition,
            both,
            np.concatenate([order, order]),
            jnp.full(6, int(masked[step]), jnp.int32),
        )
        places = order[:, masked[step + 1] : masked[step]]
        chosen = np.concatenate([places, places])
        scale = 1 + 1.0 * (total - max(masked[step + 1], 1)) / total
        found = run_chains(
            MODEL,
            params,
            (HEAD,),
            jnp.zeros(3, jnp.int32),
            jnp.take_along_axis(conditions, chosen[..., None], axis=1),
            head_noise(keys, jnp.asarray(places), HEAD.count, 3),
            jnp.full(3, scale, jnp.float32),
            jnp.full(3, 0.9, jnp.float32),
        ).mean
        assert_same(np.take_along_axis(out, places[..., None], axis=1), found)
    stats = expected().stats
    assert stats.calls.tolist() == [6] * 3 and expected().lengths.tolist() == [16] * 3


def test_one_step_at_a_time_and_each_sequence_alone_give_the_same():
    state = jax.jit(partial(GENERATOR.init, VARIABLES))(CLASSES, **options())
    step = jax.jit(GENERATOR.step)
    for i in range(SCHEDULE.steps):
        found = GENERATOR.result(state)
        known = np.isfinite(found.tokens).all(-1)
        assert (known.sum(1) == 16 - SCHEDULE.masked[i]).all()
        if i:
            assert_same(found.tokens[known], expected().tokens[known])
        state = step(VARIABLES, state)
    assert_same(GENERATOR.result(state).tokens, expected().tokens)
    assert GENERATOR.done(state).all()
    after = GENERATOR.result(step(VARIABLES, state))  # nothing changes any more
    np.testing.assert_array_equal(after.tokens, GENERATOR.result(state).tokens)
    alone = {**options(), "keys": options()["keys"][1:2]}
    one = whole(GENERATOR, CLASSES[1:2], alone)
    assert_same(one.tokens[0], expected().tokens[1])


@pytest.mark.parametrize("stages", [1, pytest.param(16, marks=pytest.mark.slow)])
def test_capacities_of_the_encoder_change_nothing(stages):
    found = whole(replace(GENERATOR, stages=stages), CLASSES, options())
    assert_same(found.tokens, expected().tokens)


def placed_params(mesh):
    where = placement(mesh)
    return jax.tree.map_with_path(
        lambda path, x: jax.device_put(
            x, where(jax.tree_util.keystr(path, simple=True, separator="/"), x.shape)
        ),
        VARIABLES.params,
    )


@pytest.mark.slow
def test_a_queue_and_a_mesh_give_the_same():
    count = 5
    classes = jnp.arange(count, dtype=jnp.int32)
    alone = whole(GENERATOR, classes, options(count))
    queue = Requests(
        jnp.arange(count),
        classes,
        **{**options(count), "sampling": options()["sampling"].for_batch(count)},
        stopping=None,
    )
    first = jax.tree.map(lambda x: x[:2], queue)
    batch = idle_batch(GENERATOR, VARIABLES, first)
    run = jax.jit(partial(run_queue, GENERATOR))
    _, finished = run(VARIABLES, batch, queue, True)
    order = np.argsort(np.asarray(finished.ids)[:count])
    assert_same(np.asarray(finished.result.tokens)[order], alone.tokens)
    mesh = make_mesh(4, 2)
    eight = jnp.arange(8, dtype=jnp.int32) % 5
    placed = replace(VARIABLES, params=placed_params(mesh))
    qkv = placed.params["encoder_0"]["qkv"]["kernel"]
    assert qkv.sharding.spec == PartitionSpec(None, None, "model")
    state = jax.jit(over_batch(mesh, GENERATOR.init))(placed, eight, **options(8))
    state = jax.jit(over_batch(mesh, partial(advance, GENERATOR)))(placed, state)
    found = GENERATOR.result(state).tokens
    assert_same(found, whole(GENERATOR, eight, options(8)).tokens)


def test_without_guidance_one_branch_is_enough():
    plain = replace(GENERATOR, cfg=False)
    found = whole(plain, CLASSES, options(cfg_scale=1.0))
    guided = whole(GENERATOR, CLASSES, options(cfg_scale=1.0))
    assert_same(found.tokens, guided.tokens)
    assert np.abs(found.tokens - expected().tokens).max() > 1e-2


def test_temperature_0_and_ddim_add_no_noise():
    """Equal first states give equal samples, whatever the noise of the steps is."""
    conditions = jnp.ones((3, 2, 16), jnp.float32)

    def run(schedule, noise, factor):
        zeros = jnp.zeros(3, jnp.int32)
        settings = conditions, noise, factor, factor
        return run_chains(MODEL, VARIABLES.params, (schedule,), zeros, *settings).mean

    ddim = replace(GENERATOR, head=replace(HEAD, solver="ddim"))
    for generator, settings in ((ddim, {}), (GENERATOR, {"temperature": 0.0})):
        schedule = generator.head
        noise = head_noise(options()["keys"], jnp.zeros((3, 2), int), 4, 3)
        other = noise.at[:, :, 1:].add(1.0)
        factor = jnp.full(3, settings.get("temperature", 0.9), jnp.float32)
        found = [run(schedule, x, factor) for x in (noise, other)]
        np.testing.assert_array_equal(*found)
    # The control: at a temperature, ancestral steps add it.
    found = [run(HEAD, x, factor + 1) for x in (noise, other)]
    assert np.abs(found[0] - found[1]).max() > 1e-2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(GENERATOR, schedule=UnmaskingSchedule(9, 3)), "9 tokens"),
        (lambda: replace(GENERATOR, head=DiffusionSchedule(500, 4)), "500 steps"),
        (lambda: replace(GENERATOR, stages=0), "stages=0"),
        (lambda: DiffusionSchedule(1000, 1), "1 steps.*choose 2"),
        (
            lambda: GENERATOR.init(VARIABLES, CLASSES, **options(cfg_interval=1)),
            "cfg_interval",
        ),
        (
            lambda: GENERATOR.init(VARIABLES.params, CLASSES, **options()),
            "MARVariables",
        ),
        (lambda: GENERATOR.init(VARIABLES, CLASSES, **options(4)), "4.*3|3.*4"),
        (lambda: DiffusionSchedule(1000, 10, "euler"), "solver='euler'"),
        (lambda: whole(GENERATOR, CLASSES + 0.5, options()), "class prompts"),
        (
            lambda: GENERATOR.init(
                VARIABLES,
                CLASSES,
                **options(),
                stopping=StoppingCriteria.create(max_new_tokens=16, stop_tokens=3),
            ),
            "leave out stop_tokens",
        ),
        (
            lambda: GENERATOR.init(VARIABLES, CLASSES, **options(top_k=3)),
            "no vocabulary",
        ),
        (
            lambda: replace(GENERATOR, cfg=False).init(VARIABLES, CLASSES, **options()),
            "cfg=True",
        ),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_settings_may_be_constants_of_a_program():
    run = jax.jit(partial(generate, GENERATOR, **options()))
    assert_same(run(VARIABLES, CLASSES).tokens, expected().tokens)


def test_a_limit_leaves_out_the_tokens_beyond_it():
    """The second step makes two tokens known, of which one is wanted."""
    stopping = StoppingCriteria.create(max_new_tokens=2)
    out = whole(GENERATOR, CLASSES, {**options(), "stopping": stopping})
    known = np.isfinite(out.tokens).all(-1)
    assert SCHEDULE.masked[2] < 14
    assert known.sum(1).tolist() == out.lengths.tolist() == [2] * 3
    assert_same(out.tokens[known], expected().tokens[known])


def test_an_unknown_class_is_marked():
    out = whole(GENERATOR, jnp.array([1, 77, 0]), options())
    assert out.finite.tolist() == [True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("change", [quantized, partial(cast_floats, dtype="bfloat16")])
def test_rounded_parameters_stay_near(change):
    """A chain multiplies what the last layer of the head rounds, which is float32."""
    ddim = replace(GENERATOR, head=replace(HEAD, solver="ddim"))
    run = jax.jit(partial(generate, ddim))
    exact = run(VARIABLES, CLASSES, **options()).tokens
    rounded = replace(VARIABLES, params=change(VARIABLES.params))
    found = run(rounded, CLASSES, **options()).tokens
    assert found.dtype == jnp.float32 and np.isfinite(found).all()
    error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < 0.05
