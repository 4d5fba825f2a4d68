# ruff: noqa: E402
"""MAR against a PyTorch twin, by files of the released layout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxspec.core.diffusion import DiffusionSchedule
from jaxspec.core.generator import generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.unmasking import random_order
from jaxspec.mar import MARGenerator, MARVariables, UnmaskingSchedule
from jaxspec.mar.head import head_noise, run_chains
from jaxspec.models.mar.model import MAR as Ours
from jaxspec.models.mar.presets import PRESETS
from tests.parity import mar_twin
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity

CHANNELS, GRID, LAYERS, WIDTH, HEADS, BUFFER, CLASSES = 4, 4, 2, 48, 4, 3, 7
LENGTH, HEAD, COUNT = GRID * GRID, (2, 32), 25


@pytest.fixture(scope="module")
def twin():
    sizes = CHANNELS, GRID, LAYERS, WIDTH, HEADS, BUFFER, CLASSES, HEAD
    return randomized(mar_twin.MAR(*sizes), seed=0)


@pytest.fixture(scope="module")
def ours(twin):
    return converted(twin.state_dict(), heads=HEADS)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def known():
    """Latents, an order, and the mask of its first tokens."""
    latents = torch.randn(2, LENGTH, CHANNELS, generator=generator(1))
    order = torch.stack(
        [torch.randperm(LENGTH, generator=generator(i)) for i in (2, 3)]
    )
    mask = torch.zeros(2, LENGTH, dtype=torch.bool)
    return latents, order, mask.scatter(1, order[:, :11], True)


def embeddings(twin):
    return torch.cat([twin.class_emb(torch.tensor([4])), twin.fake_latent])


def conditions(ours, known, capacity):
    latents, order, _ = known
    model: Ours = ours.model
    classes, null = jnp.array([4, 0]), jnp.array([False, True])
    condition = model.condition(ours.params, classes, null)
    run = jax.jit(model.token_conditions, static_argnames="capacity")
    masked = jnp.full(2, 11, jnp.int32)
    arguments = as_jax(latents), as_jax(order), masked
    return run(ours.params, condition, *arguments, capacity=capacity)


def test_sizes_are_read_from_the_file(ours):
    config = ours.config
    assert (config.channels, config.grid, config.buffer) == (CHANNELS, GRID, BUFFER)
    assert (config.encoder_layers, config.decoder_layers) == (LAYERS, LAYERS)
    assert (config.head_layers, config.head_width, config.classes) == (*HEAD, CLASSES)
    released = {"mar-b": 768, "mar-l": 1024, "mar-h": 1280}
    assert {name: preset.width for name, preset in PRESETS.items()} == released


@pytest.mark.parametrize("capacity", [5, 9, LENGTH])
@pytest.mark.parametrize("fault", ["", "tanh", "kept"])
def test_hidden_tokens_are_as_good_as_dropped_ones(twin, ours, known, capacity, fault):
    latents, _, mask = known
    faults = mar_twin.Faults(**({fault: True} if fault else {}))
    expected = twin.conditions(latents, mask, embeddings(twin), faults).numpy()
    found = np.asarray(conditions(ours, known, capacity))
    if fault:
        assert np.abs(found - expected).max() > 3e-4
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fault", ["", "sines"])
def test_predictions_of_the_head_are_equal(twin, ours, fault):
    state = torch.randn(6, CHANNELS, generator=generator(4))
    z = torch.randn(6, WIDTH, generator=generator(5))
    time = torch.tensor([0, 1, 10, 500, 998, 999])
    faults = mar_twin.Faults(**({fault: True} if fault else {}))
    expected = twin.diffloss.net(state, time.float(), z, faults)
    arguments = as_jax(state), as_jax(time), as_jax(z)
    found = jax.jit(ours.model.predict_noise)(ours.params, *arguments)
    if fault:
        assert np.abs(np.asarray(found) - expected.numpy()).max() > 1e-3
    else:
        assert_close(found, expected, 1e-4)


@pytest.mark.parametrize("fault", ["", "shared"])
def test_a_guided_chain_is_that_of_the_published_sampler(twin, ours, fault):
    """The same first state and noise of each step, guidance 3, temperature .9."""
    rows, scale, temperature = 3, 3.0, 0.9
    z = torch.randn(2 * rows, WIDTH, generator=generator(6))
    start = torch.randn(rows, CHANNELS, generator=generator(7))
    noises = torch.randn(COUNT, rows, CHANNELS, generator=generator(8))
    faults = mar_twin.Faults(**({fault: True} if fault else {}))
    expected = mar_twin.sample(
        twin.diffloss.net, z, COUNT, start, noises, scale, faults, temperature
    )
    # Entry 0 is the first state; step 0 is the last.
    entries = torch.cat([start[None], noises]).transpose(0, 1)[:, None]
    run = jax.jit(partial(run_chains, ours.model), static_argnames="schedules")
    found = run(
        ours.params,
        schedules=(DiffusionSchedule(1000, COUNT),),
        which=jnp.zeros(rows, jnp.int32),
        conditions=as_jax(z[:, None]),
        noise=as_jax(entries),
        scale=jnp.full(rows, scale),
        temperature=jnp.full(rows, temperature),
    ).mean[:, 0]
    # Chains of random networks grow to some 1e4.
    size = expected.abs().max()
    if fault:
        assert np.abs(np.asarray(found) - expected.numpy()).max() > 2e-4 * size
    else:
        assert_close(found / float(size), expected / size, 1e-4)


def test_a_whole_generation_is_that_of_the_published_sampler(twin, ours):
    """The same order of tokens and the same noise; guidance grows, temperature .9."""
    schedule, head = UnmaskingSchedule(LENGTH, 5), DiffusionSchedule(count=10)
    generator = MARGenerator(ours.model, schedule, head)
    keys, classes = batch_keys(0, 2), jnp.array([4, 1], jnp.int32)
    sampling = Sampling.create(cfg_scale=2.0, temperature=0.9)
    run = jax.jit(partial(generate, generator))
    out = run(MARVariables(ours.params), classes, sampling=sampling, keys=keys)
    order = torch.tensor(np.asarray(random_order(keys, LENGTH))).long()

    def noise_of(places):
        found = head_noise(keys, as_jax(places), head.count, CHANNELS)
        return torch.tensor(np.asarray(found))

    def scale_of(step):
        return 1 + (LENGTH - max(schedule.masked[step + 1], 1)) / LENGTH

    expected = twin.generate(
        torch.tensor([4, 1]), order, noise_of, schedule.masked, 10, scale_of, 0.9
    )
    size = expected.abs().max()
    assert_close(out.tokens / float(size), expected / size, 1e-4)
    assert out.lengths.tolist() == [LENGTH] * 2
