"""Generation by a masked network."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.generator import generate
from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.masked import (
    Confidence,
    MaskedGenerator,
    MaskedVariables,
    MaskingSchedule,
    Threshold,
)
from tests.masked.models import CLASSES, CONFIG, MODEL, VARIABLES

LENGTH = CONFIG.sequence_length
GENERATOR = MaskedGenerator(MODEL, MaskingSchedule(LENGTH, 5))


@partial(jax.jit, static_argnums=0)
def run(generator, classes, options):
    return generate(generator, VARIABLES, classes, **options)


def options(batch=3, seed=0, **settings):
    sampling = Sampling.create(**{"cfg_scale": 2.0, **settings})
    return {"sampling": sampling, "keys": batch_keys(seed, batch)}


def test_steps_are_maskgit_s_by_hand():
    """Samples of all masked tokens, of which the most certain stay."""
    policy = Confidence(temperature=0.0)
    out = run(replace(GENERATOR, policy=policy), CLASSES, options(top_k=6))
    tokens = np.full((3, LENGTH), MODEL.mask_token)
    settings = Sampling.create(3, cfg_scale=2.0)
    call = jax.jit(MODEL)
    for step in range(5):
        logits = call(VARIABLES.params, CLASSES, jnp.int32(tokens), settings)
        logits = np.array(logits)
        logits[logits < np.sort(logits)[..., -6:-5]] = -np.inf
        positions = jnp.arange(LENGTH) + step * LENGTH
        positions = jnp.broadcast_to(positions, (3, LENGTH))
        noise = position_noise(batch_keys(0, 3), positions, CONFIG.vocab_size)
        sampled = np.argmax(logits + np.asarray(noise), axis=-1)
        log_p = np.asarray(jax.nn.log_softmax(logits))
        log_p = np.take_along_axis(log_p, sampled[..., None], -1)[..., 0]
        masked = tokens == MODEL.mask_token
        count = int(
            GENERATOR.schedule.masked[step] - GENERATOR.schedule.masked[step + 1]
        )
        for row in range(3):
            order = np.argsort(np.where(masked[row], -log_p[row], np.inf))[:count]
            tokens[row, order] = sampled[row, order]
    np.testing.assert_array_equal(out.tokens, tokens)
    assert (out.stats.calls == 5).all()


def test_tokens_do_not_depend_on_the_batch():
    out = run(GENERATOR, CLASSES, options())
    for i in range(3):
        alone = {**options(), "keys": batch_keys(0, jnp.array([i]))}
        one = run(GENERATOR, CLASSES[i : i + 1], alone)
        np.testing.assert_array_equal(one.tokens[0], out.tokens[i])
    other = run(GENERATOR, CLASSES, options(seed=1))
    assert (other.tokens != out.tokens).any()


def test_without_guidance_no_unconditional_branch_is_needed():
    one = run(replace(GENERATOR, cfg=False), CLASSES, options(cfg_scale=1.0))
    two = run(GENERATOR, CLASSES, options(cfg_scale=1.0))
    np.testing.assert_array_equal(one.tokens, two.tokens)
    with pytest.raises(ConfigError, match="cfg=True"):
        generate(replace(GENERATOR, cfg=False), VARIABLES, CLASSES, **options())


def test_a_threshold_ends_each_sequence_when_all_is_known():
    schedule = MaskingSchedule(LENGTH, LENGTH, "linear")
    generator = MaskedGenerator(MODEL, schedule, Threshold(0.1))
    out = run(generator, CLASSES, options())
    assert (out.tokens >= 0).all() and (out.stats.calls < LENGTH).all()
    strict = run(replace(generator, policy=Threshold(1.0)), CLASSES, options())
    assert (strict.stats.calls == LENGTH).all()


def test_sequences_end_at_stop_tokens_and_limits():
    out = run(GENERATOR, CLASSES, options())
    stop = int(out.tokens[1, 6])
    stopping = StoppingCriteria.create(max_new_tokens=LENGTH, stop_tokens=[stop])
    cut = run(GENERATOR, CLASSES, {**options(), "stopping": stopping})
    end = int(np.argmax(np.asarray(out.tokens[1]) == stop)) + 1
    np.testing.assert_array_equal(cut.tokens[1, :end], out.tokens[1, :end])
    assert (cut.tokens[1, end:] == -1).all() and cut.lengths[1] == end
    few = StoppingCriteria.create(max_new_tokens=4)
    short = run(GENERATOR, CLASSES, {**options(), "stopping": few})
    assert (short.stats.calls < 5).all() and (short.lengths == 4).all()
    known = short.tokens >= 0
    np.testing.assert_array_equal(short.tokens[known], out.tokens[known])


def test_a_network_that_is_not_finite_is_reported():
    params = {**VARIABLES.params, "head": VARIABLES.params["head"] * jnp.nan}
    out = generate(GENERATOR, MaskedVariables(params), CLASSES, **options())
    assert not out.finite.any()


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match="schedule of 9 tokens"):
        MaskedGenerator(MODEL, MaskingSchedule(9, 3))
    with pytest.raises(ConfigError, match="MaskedVariables"):
        generate(GENERATOR, VARIABLES.params, CLASSES, **options())
    with pytest.raises(ConfigError):
        generate(GENERATOR, VARIABLES, CLASSES, **options(batch=2))
    with pytest.raises(ConfigError, match="no class 99"):
        generate(GENERATOR, VARIABLES, jnp.array([0, 1, 99]), **options())
    with pytest.raises(ConfigError, match="cfg_interval"):
        generate(GENERATOR, VARIABLES, CLASSES, **options(cfg_interval=3))
