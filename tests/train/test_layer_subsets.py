"""Training of a next-scale model whose late maps few layers can make (VARiant)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.generator import generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.evaluate.scale_likelihood import log_probs, of_tokens
from jaxspec.next_scale import fewer_layers
from jaxspec.train.next_scale import make_step, subsets
from jaxspec.train.optimizer import init_train_state
from jaxspec.train.settings import PriorTrainingConfig
from tests.next_scale.models import CONFIG, MODEL, SCALES, random_params, variables
from tests.train.tiny import get_config as grid_config
from tests.train.tiny_scales import get_config

VARIABLES = variables()
CLASSES = jnp.array([1, 4, 0, 2])
TRAINING = PriorTrainingConfig(
    steps=60,
    batch=4,
    learning_rate=1e-2,
    warmup=1,
    objective="sorted",
    exits=(2,),
    full_scales=2,
)


@pytest.mark.slow
def test_the_loss_is_that_of_the_tokens_that_such_a_generator_makes():
    generator = fewer_layers(MODEL, SCALES, 2, 2, cfg=False, record_log_probs=True)
    sampling = Sampling.create(cfg_scale=1.0)
    out = jax.jit(
        lambda variables: generate(
            generator, variables, CLASSES, sampling=sampling, keys=batch_keys(0, 4)
        )
    )(VARIABLES)
    arguments = MODEL, SCALES, VARIABLES.models[0], VARIABLES.quantizer
    log_p = log_probs(*arguments, out.tokens, CLASSES, stages=generator.stages)
    np.testing.assert_allclose(
        out.log_probs.tokens, of_tokens(log_p, out.tokens), atol=2e-5
    )
    # The control: with all layers late maps have other probabilities, early ones not.
    full = of_tokens(log_probs(*arguments, out.tokens, CLASSES), out.tokens)
    apart = abs(full - out.log_probs.tokens).max(axis=0)
    late = SCALES.tokens_of(2).start
    assert apart[:late].max() < 2e-5 < 0.01 < apart[late:].max()


@pytest.mark.slow
def test_training_makes_the_subset_a_model_of_its_own():
    """The same steps without the objective leave the subset as bad as it was."""
    tokens = np.random.default_rng(0).integers(0, 11, (4, 39)).astype(np.int32)
    params = random_params(MODEL)
    (stages,) = subsets(CONFIG, SCALES, TRAINING)

    def loss_of(training):
        step = jax.jit(make_step(CONFIG, SCALES, training))
        state = init_train_state(training, params)
        for i in range(training.steps):
            data = jnp.asarray(tokens), CLASSES
            state, _ = step(state, VARIABLES.quantizer, jnp.int32(i), data)
        log_p = log_probs(
            MODEL,
            SCALES,
            state["params"],
            VARIABLES.quantizer,
            jnp.asarray(tokens),
            CLASSES,
            stages=stages,
        )
        return -float(of_tokens(log_p, tokens).mean())

    plain = replace(TRAINING, objective="next", exits=(), full_scales=None)
    assert loss_of(TRAINING) < 0.7 * loss_of(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exits": (1,)}, "subsets have 2 to 2 layers"),
        ({"exits": (3,)}, "subsets have 2 to 2 layers"),
        ({"full_scales": None}, "choose 1 to 2 first maps"),
        ({"full_scales": 3}, "choose 1 to 2 first maps"),
    ],
)
def test_impossible_subsets_are_refused(change, message):
    experiment = get_config()
    prior = replace(experiment.prior, layers=3)
    with pytest.raises(ConfigError, match=message):
        replace(experiment, prior=prior, train_prior=replace(TRAINING, **change))


def test_a_model_of_tokens_has_no_first_maps():
    experiment = grid_config()
    training = replace(experiment.train_prior, full_scales=2)
    with pytest.raises(ConfigError, match="full_scales is for next-scale models"):
        replace(experiment, train_prior=training)
