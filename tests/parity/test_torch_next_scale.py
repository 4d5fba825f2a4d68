# ruff: noqa: E402
"""The PyTorch baseline against the next-scale model in JAX."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxspec.bench.baselines.torch_next_scale import TorchNextScale, torch_maps
from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.next_scale import ScaleSampling, one_model
from tests.next_scale.models import CONFIG, LENGTH, MODEL, SCALES, variables

pytestmark = pytest.mark.parity

BATCH = 16


def test_the_same_noise_gives_the_same_tokens():
    """Up to near-ties; the control is guidance of another strength."""
    own, keys = variables(), batch_keys(0, BATCH)
    sampling = ScaleSampling(len(SCALES), order=("temperature",))
    generator = one_model(MODEL, SCALES, sampling=sampling)
    classes = np.arange(BATCH) % CONFIG.classes
    out = jax.jit(partial(generator.generate, own))(
        jnp.asarray(classes, jnp.int32),
        sampling=Sampling.create(cfg_scale=2.0),
        keys=keys,
    )
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (BATCH, LENGTH))
    noise = position_noise(keys, positions, CONFIG.vocab_size)
    found = {}
    for scale in (2.0, 1.5):
        arguments = own.models[0], SCALES, own.quantizer, BATCH, scale
        twin = TorchNextScale(CONFIG, *arguments)
        tokens = torch_maps(twin, twin, classes, np.asarray(noise))
        found[scale] = (tokens == np.asarray(out.tokens)).mean()
    assert found[2.0] > 0.99 > 0.95 > found[1.5]


def test_models_that_it_cannot_run_are_refused():
    own = variables()
    for options in ({"attends": "own"}, {"shared_modulation": True}):
        with pytest.raises(ConfigError, match="another model"):
            TorchNextScale(
                replace(CONFIG, **options), own.models[0], SCALES, own.quantizer, 1, 2.0
            )
