"""Training of a next-scale model whose maps are refined (HMAR)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.models.next_scale.model import NextScale
from jaxspec.train.next_scale import make_step, refinement_loss
from jaxspec.train.optimizer import init_train_state
from jaxspec.train.settings import PriorTrainingConfig
from tests.next_scale.models import CONFIG, LENGTH, SCALES, random_params, variables

SIZES = replace(CONFIG, attends="own", mask_layers=1, layers=2)
MODEL = NextScale(SIZES)
QUANTIZER = variables().quantizer
CLASSES, NULL = jnp.array([1, 4, 0, 2]), jnp.array([False, True, False, False])


@pytest.fixture(scope="module")
def loss():
    """Loss of masked tokens, of tokens and log-probabilities of the first pass."""
    params = random_params(MODEL)

    def of(tokens, log_p, key):
        images, prompts = (tokens, log_p), (CLASSES, NULL)
        return refinement_loss(
            MODEL, SCALES, params, QUANTIZER, images, prompts, jax.random.key(key)
        )

    return jax.jit(of)


def certain(tokens):
    """Log-probabilities of a first pass that samples these tokens."""
    return jnp.log(jax.nn.one_hot(tokens, CONFIG.vocab_size) + 1e-30)


def test_the_loss_is_that_of_the_masked_tokens_among_samples(loss):
    """By hand, map by map, from the network, the masks and what stands in them."""
    rng, params = np.random.default_rng(0), random_params(MODEL)
    tokens, drawn = rng.integers(0, CONFIG.vocab_size, (2, 4, LENGTH)).astype(np.int32)
    share_key, mask_key, _ = jax.random.split(jax.random.key(5), 3)
    share = jax.random.uniform(share_key, (4, 1))
    masked = np.array(jax.random.uniform(mask_key, (4, LENGTH)) < share)
    shown = np.where(masked, drawn, tokens)
    inputs = SCALES.inputs(QUANTIZER, jnp.asarray(tokens))
    condition = MODEL.condition(params, CLASSES, NULL)
    total, count = 0.0, 0
    for scale in range(1, 4):
        here = SCALES.tokens_of(scale)
        logits = MODEL.refine(
            params,
            condition,
            inputs[:, here],
            SCALES.own(QUANTIZER, jnp.asarray(shown[:, here]), scale),
            jnp.asarray(masked[:, here]),
            scale,
            scale + 1,
        )
        log_p = np.asarray(jax.nn.log_softmax(logits))
        right = np.take_along_axis(log_p, tokens[:, here, None], axis=-1)[..., 0]
        total -= (right * masked[:, here]).sum()
        count += masked[:, here].sum()
    found = loss(tokens, certain(drawn), 5)
    np.testing.assert_allclose(found, total / count, rtol=1e-4)
    # What is sampled in the places of masked tokens matters.
    assert abs(loss(tokens, certain(tokens), 5) - found) > 1e-3


@pytest.mark.slow
def test_both_passes_learn():
    """Images of one token, which the inputs of all maps but the first show."""
    config = PriorTrainingConfig(steps=60, batch=16, warmup=20, learning_rate=1e-2)
    step = jax.jit(make_step(SIZES, SCALES, config))
    state = init_train_state(config, jax.jit(MODEL.init)(jax.random.key(0)))
    rng, found = np.random.default_rng(0), []
    for i in range(60):
        ids = rng.integers(0, CONFIG.vocab_size, 16)
        tokens = jnp.asarray(np.repeat(ids[:, None], LENGTH, axis=1), jnp.int32)
        classes = jnp.zeros(16, jnp.int32)
        state, metrics = step(state, QUANTIZER, i, (tokens, classes))
        found.append([metrics["first_loss"], metrics["masked_loss"]])
        assert abs(sum(found[-1]) - metrics["loss"]) < 1e-4
    chance = np.log(CONFIG.vocab_size)
    assert (np.abs(np.array(found[0]) - chance) < 0.1).all()
    assert (np.mean(found[-5:], axis=0) < 0.7 * chance).all()
