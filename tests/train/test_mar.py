"""Training of autoencoders with continuous latents, and of masked models over them."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxspec.checkpoint import load_checkpoint
from jaxspec.cli import main
from jaxspec.config import KLTokenizerConfig
from jaxspec.core.diffusion import DiffusionSchedule
from jaxspec.errors import ConfigError
from jaxspec.models.mar.model import MAR
from jaxspec.pipeline.pipeline import load_pipeline
from jaxspec.train.mar import LEAST_MASKED, head_loss, masked_loss
from tests.params import random_like
from tests.train.tiny_mar import get_config

TINY = Path(__file__).parent / "tiny_mar.py"
EXPERIMENT = get_config()
MODEL = MAR(EXPERIMENT.prior)
STEPS = EXPERIMENT.prior.diffusion_steps


class Oracle:
    """A head that knows the tokens: it finds their noise, and adds `error` to it."""

    config = EXPERIMENT.prior

    def __init__(self, tokens, interpolation):
        self.tokens, self.interpolation = tokens, interpolation

    def predict_noise(self, error, state, time, conditions):
        kept = jnp.float32(DiffusionSchedule(STEPS, STEPS).kept)[time][..., None]
        noise = (state - jnp.sqrt(kept) * self.tokens) / jnp.sqrt(1 - kept)
        interpolation = jnp.full_like(noise, self.interpolation)
        return jnp.concatenate([noise + error, interpolation], axis=-1)


def test_the_loss_of_exact_predictions_is_0_and_errors_are_squared():
    tokens = jax.random.normal(jax.random.key(1), (2, 300, 4), jnp.float32)

    def loss(error, interpolation):
        oracle = Oracle(tokens, interpolation)
        return head_loss(oracle, error, tokens, tokens, jax.random.key(0))

    # The variance of the posterior, and a larger one.
    np.testing.assert_allclose(loss(0.0, -1.0), 0, atol=1e-4)
    assert loss(0.0, 1.0).mean() > 1e-2
    # The divergence trains the variance alone: what is left of a gradient is 2 error.
    gradient = jax.grad(lambda error: loss(error, 1.0).mean())(jnp.float32(0.3))
    np.testing.assert_allclose(gradient, 0.6, rtol=1e-4)


def test_known_tokens_are_read_and_only_masked_ones_are_predicted():
    params = random_like(MODEL.init, spread=0.3)
    latents = jax.random.normal(jax.random.key(2), (64, 16, 8), jnp.float32) * 0.1
    classes, null = jnp.zeros(64, jnp.int32), jnp.zeros(64, bool)
    seen = {}

    class Recorder:
        """The model, and what it is asked."""

        config = MODEL.config
        condition = staticmethod(MODEL.condition)

        @staticmethod
        def token_conditions(params, condition, tokens, order, masked, capacity):
            seen.update(masked=masked, capacity=capacity, order=order)
            return MODEL.token_conditions(
                params, condition, tokens, order, masked, capacity
            )

        predict_noise = staticmethod(MODEL.predict_noise)

    loss = masked_loss(Recorder, params, latents, classes, null, jax.random.key(0))
    assert np.isfinite(loss)
    assert seen["masked"].min() >= np.ceil(LEAST_MASKED * 16)
    assert seen["masked"].max() <= 16 and len(set(seen["masked"].tolist())) > 2
    assert seen["capacity"] == 16 - np.ceil(LEAST_MASKED * 16)
    assert (jnp.sort(seen["order"], axis=1) == jnp.arange(16)).all()
    assert len({tuple(row) for row in np.asarray(seen["order"]).tolist()}) > 60


def test_steps_lower_the_loss():
    params = random_like(MODEL.init, spread=0.1)
    rng = np.random.default_rng(0)
    means = np.tile(rng.normal(size=(1, 16, 4)), (8, 1, 1)).astype(np.float32)
    latents = np.concatenate([means, np.full_like(means, 0.05)], axis=-1)
    classes, null = np.zeros(8, np.int32), np.zeros(8, bool)
    loss_of = partial(masked_loss, MODEL)

    @jax.jit
    def step(params, i):
        key = jax.random.fold_in(jax.random.key(0), i)
        arguments = jnp.asarray(latents), classes, null, key
        gradient = jax.grad(loss_of)(params, *arguments)
        return jax.tree.map(lambda p, g: p - 0.02 * g, params, gradient)

    measured = [jax.random.key(i) for i in range(1000, 1020)]
    measure = jax.jit(lambda params, key: loss_of(params, latents, classes, null, key))
    before = np.mean([measure(params, key) for key in measured])
    for i in range(100):
        params = step(params, i)
    assert np.mean([measure(params, key) for key in measured]) < 0.9 * before


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_masked_model(tmp_path):
    rng = np.random.default_rng(0)
    images = tmp_path / "halves"
    for name in ("left", "right"):
        (images / name).mkdir(parents=True)
        for i in range(40):
            image = np.full((32, 32, 3), 230, np.uint8)
            image[:, slice(0, 16) if name == "left" else slice(16, 32)] = rng.integers(
                0, 255, 3
            )
            Image.fromarray(image).save(images / name / f"{i}.png")
    run = tmp_path / "run"
    command = ["--config", str(TINY), "--images", str(images), "--out", str(run)]
    assert main(["train", "tokenizer", *command, "--steps", "60"]) == 0
    tokenizer = load_checkpoint(run / "checkpoint" / "tokenizer", "kl_tokenizer")
    found = tokenizer.metadata["metrics"]["deviation"]
    assert tokenizer.config.scale == pytest.approx(1 / found)
    assert main(["train", "prior", *command, "--steps", "40"]) == 0
    prior = load_checkpoint(run / "checkpoint" / "prior", "mar")
    assert list((run / "prior" / "samples").glob("*.png"))
    assert "diffusion head" in (run / "checkpoint" / "prior" / "README.md").read_text()
    pipe = load_pipeline(run)
    out = pipe(class_labels=["left", "right"], seed=0, steps=4, head_steps=(10, 5))
    assert out.tokens.shape == (2, 16, 4) and prior.metadata["metrics"]["heldout_loss"]
    # It starts from what was trained.
    other = ["--out", str(tmp_path / "more"), "--checkpoint", str(run)]
    for part in ("tokenizer", "prior"):
        again = ["train", part, *command[:-2], *other, "--start", str(run)]
        assert main([*again, "--steps", "1"]) == 0


def test_models_of_other_tokens_do_not_go_together():
    narrow = replace(EXPERIMENT.prior, channels=3)
    with pytest.raises(ConfigError, match="vectors of 3 channels"):
        replace(EXPERIMENT, prior=narrow)
    networks = EXPERIMENT.tokenizer.networks
    with pytest.raises(ConfigError, match="16 tokens on a grid of 4"):
        base = replace(networks, codebook_size=16)
        replace(EXPERIMENT, tokenizer=base)
    with pytest.raises(ConfigError, match="above 0"):
        KLTokenizerConfig(networks, scale=0.0)
