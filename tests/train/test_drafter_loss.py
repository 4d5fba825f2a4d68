"""Loss of drafters in a loop of one's own, and drafters of a model of one's own."""

import runpy
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.drafters import (
    PPD,
    DFlash,
    DFlashConfig,
    Eagle,
    FeatureTarget,
    Kangaroo,
    KangarooConfig,
    Medusa,
    PPDConfig,
)
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.parameters import head_of
from jaxspec.train.distillation import weighted_mean
from jaxspec.train.drafter import drafter_losses
from jaxspec.train.settings import DrafterTrainingConfig
from jaxspec.train.teacher import run_teacher
from tests.drafters.tiny import EAGLE, HEADS
from tests.drafters.tiny import TARGET as WIDE
from tests.models.tiny import random_params

TARGET = replace(WIDE, extra_tokens=0)
PARAMS = random_params(TARGET)
BLOCK = DFlashConfig(
    block_size=4,
    layers=1,
    width=32,
    heads=2,
    ffn_width=48,
    feature_layers=(0, 2),
    markov_rank=6,
)
KEY, BATCH = jax.random.key(3), 2
TOKENS = jax.random.randint(jax.random.key(1), (BATCH, 16), 0, TARGET.vocab_size)
LABELS = jnp.array([0, 2])


def own_arrays(params):
    return {
        "embedding": params["embedding"]["embedding"],
        "head": head_of(TARGET, params),
        "norm": params["norm"]["scale"],
    }


OWN = FeatureTarget(
    TARGET.vocab_size,
    TARGET.width,
    TARGET.layers,
    own_arrays,
    prefix_length=TARGET.prefix_length,
    norm_eps=TARGET.norm_eps,
    rope_base=TARGET.rope_base,
    grid=TARGET.grid,
)
DRAFTERS = {
    "dflash": (DFlash, BLOCK),
    "eagle": (Eagle, EAGLE),
    "medusa": (Medusa, HEADS),
}


def teacher_of(drafter, null=False):
    nulls = jnp.full(BATCH, null)
    layers = drafter.feature_layers
    return run_teacher(TARGET, PARAMS, layers, TOKENS, LABELS, nulls)


def loss_of(drafter, own, teachers, key, **options):
    features, logits = (
        jnp.concatenate([getattr(t, name) for t in teachers])
        for name in ("features", "logits")
    )
    return jaxspec.train.drafter_loss(
        drafter, own, PARAMS, features, teachers[0].tokens, logits, key, **options
    )


@pytest.mark.variants(1)
@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.slow
def test_loss_is_that_of_the_trainer_and_does_not_need_its_configuration(kind, guided):
    """The trainer runs its transformer; the loss gets features and logits."""
    make, config = DRAFTERS[kind]
    trained, own_model = make(config, TARGET), make(config, OWN)
    settings = DrafterTrainingConfig(
        1, BATCH, null_share=0.0, max_cfg_scale=3.0 if guided else 1.0
    )
    own = trained.init_params(jax.random.key(2))
    losses, overlaps, regression = drafter_losses(
        trained, settings, own, PARAMS, TOKENS, LABELS, KEY
    )
    expected = weighted_mean(losses, settings.decay) + 10.0 * regression
    branch_key, key = jax.random.split(KEY)
    teachers, scale = [teacher_of(trained)], None
    if guided:
        teachers.append(teacher_of(trained, null=True))
        scale = jax.random.uniform(branch_key, (BATCH,), minval=1.0, maxval=3.0)
    loss, metrics = loss_of(own_model, own, teachers, key, cfg_scale=scale)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    overlap = jnp.nanmean(overlaps, axis=(0, 1))
    np.testing.assert_allclose(metrics["overlap"], overlap, rtol=1e-5)
    # The control: features of the position before.
    late = [replace(t, features=jnp.roll(t.features, 1, axis=1)) for t in teachers]
    shifted, _ = loss_of(own_model, own, late, key, cfg_scale=scale)
    assert abs(shifted - expected) > 1e-4


@pytest.mark.slow
def test_gradient_reaches_the_drafter_alone():
    drafter = DFlash(BLOCK, OWN)
    own, teacher = drafter.init_params(jax.random.key(2)), teacher_of(drafter)

    def loss(own, features, logits):
        return jaxspec.train.drafter_loss(
            drafter, own, PARAMS, features, teacher.tokens, logits, KEY
        )[0]

    arguments = own, teacher.features, teacher.logits
    trained, *frozen = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments)
    norms = [float(jnp.abs(x).max()) for x in jax.tree.leaves(trained)]
    assert np.isfinite(norms).all() and max(norms) > 0
    assert all(not x.any() for x in frozen)


def test_arguments_that_do_not_fit_are_refused():
    drafter = DFlash(BLOCK, OWN)
    own, teacher = drafter.init_params(jax.random.key(2)), teacher_of(drafter)
    one_layer = replace(teacher, features=teacher.features[..., :32])
    with pytest.raises(ConfigError, match=r"features has shape .* need \(2, 17, 64\)"):
        loss_of(drafter, own, [one_layer], KEY)
    with pytest.raises(ConfigError, match=r"2 branch\(es\) .* need \(4, 17"):
        loss_of(drafter, own, [teacher], KEY, cfg_scale=jnp.ones(BATCH))
    with pytest.raises(ConfigError, match="trained through passes of its target"):
        loss_of(PPD(PPDConfig(4), TARGET), {}, [teacher], KEY)


def test_own_models_are_for_drafters_that_read_features():
    for make, config in ((PPD, PPDConfig(4)), (Kangaroo, KangarooConfig(2, 2))):
        with pytest.raises(ConfigError, match="needs a TransformerConfig"):
            make(config, OWN)
    with pytest.raises(ConfigError, match="not the target's 32"):
        DFlash(replace(BLOCK, width=16), OWN)
    wrong = replace(OWN, read_params=lambda p: {"embedding": p["head"]})
    with pytest.raises(ConfigError, match="read_params returned 'embedding' of shape"):
        DFlash(BLOCK, wrong).with_target_params({}, PARAMS)


def test_without_a_norm_features_are_read_as_they_are():
    """A model with another norm returns its last features after it."""

    def without_norm(params):
        return {k: v for k, v in own_arrays(params).items() if k != "norm"}

    plain, normed = (
        Medusa(HEADS, replace(OWN, read_params=read))
        for read in (without_norm, own_arrays)
    )
    own, teacher = plain.init_params(jax.random.key(2)), teacher_of(plain)
    h = teacher.features
    h = h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True) + OWN.norm_eps)
    after = replace(teacher, features=h * PARAMS["norm"]["scale"])
    expected, _ = loss_of(normed, own, [teacher], KEY)
    loss, _ = loss_of(plain, own, [after], KEY)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert abs(loss_of(plain, own, [teacher], KEY)[0] - expected) > 1e-4  # the control


EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "own_drafter.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sequences", "steps", "least"),
    [(32, 12, 1.0), (512, 250, 1.5)],
    ids=["short", "whole"],
)
def test_example_trains_a_drafter_for_a_transformer_of_its_own(sequences, steps, least):
    main = runpy.run_path(str(EXAMPLE))["main"]
    same_tokens, tokens_per_call, overlap = main(sequences, steps)
    assert same_tokens and tokens_per_call > least
    assert overlap[-1][0] > overlap[0][0]
