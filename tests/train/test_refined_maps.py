"""Training of a next-scale model whose maps are refined (HMAR)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.models.next_scale.model import NextScale
from jaxspec.train.experiment import TrainingConfig
from jaxspec.train.next_scale import make_step
from jaxspec.train.optimizer import init_train_state
from tests.next_scale.models import CONFIG, LENGTH, SCALES, variables


def test_both_passes_learn():
    """Images of one token, which the inputs of all maps but the first show."""
    sizes = replace(CONFIG, attends="own", mask_layers=1, layers=2)
    model = NextScale(sizes)
    config = TrainingConfig(steps=60, batch=16, warmup=20, learning_rate=1e-2)
    step = jax.jit(make_step(sizes, SCALES, config))
    state = init_train_state(config, jax.jit(model.init)(jax.random.key(0)))
    rng, losses, masked = np.random.default_rng(0), [], []
    for i in range(60):
        ids = rng.integers(0, CONFIG.vocab_size, 16)
        tokens = jnp.asarray(np.repeat(ids[:, None], LENGTH, axis=1), jnp.int32)
        classes = jnp.zeros(16, jnp.int32)
        state, metrics = step(state, variables().quantizer, i, (tokens, classes))
        losses.append(metrics["loss"])
        masked.append(metrics["masked_loss"])
    chance = np.log(CONFIG.vocab_size)
    assert abs(losses[0] - chance) < 0.1 and abs(masked[0] - chance) < 0.1
    for found in (losses, masked):
        assert np.mean(found[-5:]) < 0.7 * chance
