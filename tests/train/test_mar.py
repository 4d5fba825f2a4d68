"""Training of autoencoders with continuous latents, and of masked models over them."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.stats import truncnorm

from jaxspec.checkpoint import load_checkpoint
from jaxspec.cli import main
from jaxspec.config import KLTokenizerConfig
from jaxspec.core.diffusion import DiffusionSchedule
from jaxspec.errors import ConfigError
from jaxspec.mar.loss import LEAST_MASKED, head_loss, masked_loss
from jaxspec.models.mar.model import MAR
from jaxspec.pipeline.pipeline import load_pipeline
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


class Counted:
    """A model whose head errs by 1 where a token is masked; it records its input."""

    config = EXPERIMENT.prior

    def __init__(self):
        self.seen, self.draws = {}, 0

    def condition(self, params, classes, null):
        self.seen["null"] = null
        return jnp.zeros((len(classes), 1))

    def token_conditions(self, params, condition, tokens, order, masked, capacity):
        self.seen.update(masked=masked, capacity=capacity, order=order, tokens=tokens)
        rank = jnp.argsort(order, axis=1)
        return (rank < masked[:, None]).astype(jnp.float32)[..., None]

    def predict_noise(self, params, state, time, conditions):
        self.draws += 1
        oracle = Oracle(self.seen["tokens"], -1.0)
        # Wrong by 1 in masked places, by 1,000 in others, which do not count.
        return oracle.predict_noise(
            jnp.where(conditions > 0, 1.0, 1000.0), state, time, conditions
        )


def test_masked_tokens_alone_count_given_the_others():
    model, rows = Counted(), 400
    means = jnp.arange(rows * 16 * 4, dtype=jnp.float32).reshape(rows, 16, 4) / 1e3
    latents = jnp.concatenate([means, jnp.full_like(means, 0.01)], axis=-1)
    null = jnp.arange(rows) % 3 == 0
    loss = masked_loss(
        model, None, latents, jnp.zeros(rows, jnp.int32), null, jax.random.key(0)
    )
    squared = 1.0  # and the divergence of a mean that is wrong by it, above 0
    assert 1.0 <= loss < 50 * squared
    assert model.draws == 4
    np.testing.assert_array_equal(model.seen["null"], null)
    # Tokens are samples: means and deviations are those of the latents.
    score = (model.seen["tokens"] - means) / 0.01
    assert abs(score.mean()) < 0.05 and abs(score.std() - 1) < 0.05
    # Orders are permutations, of which every one is as likely.
    orders = np.asarray(model.seen["order"])
    assert (np.sort(orders, axis=1) == np.arange(16)).all()
    assert abs(orders[:, 0].mean() - 7.5) < 4 * 4.6 / rows**0.5
    # The law of the fraction: a half of a normal one, cut at 1.2 deviations.
    assert model.seen["capacity"] == 16 - np.ceil(LEAST_MASKED * 16)
    fraction = np.asarray(model.seen["masked"]) / 16
    assert fraction.min() >= LEAST_MASKED and fraction.max() == 1
    cut = truncnorm((LEAST_MASKED - 1) / 0.25, 0, loc=1, scale=0.25)
    exact = np.ceil(16 * cut.rvs(100_000, random_state=0)) / 16
    error = exact.std() / rows**0.5
    assert abs(fraction.mean() - exact.mean()) < 4 * error


def test_the_divergence_is_that_of_two_normal_distributions():
    """In closed form, at one interpolation and exact means."""
    tokens = jax.random.normal(jax.random.key(1), (1, 400, 4), jnp.float32)
    key, interpolation = jax.random.key(0), 0.4
    oracle = Oracle(tokens, interpolation)
    found = head_loss(oracle, jnp.float32(0), tokens, tokens, key)
    time = jax.random.randint(jax.random.split(key)[0], (1, 400), 0, STEPS)
    table = DiffusionSchedule(STEPS, STEPS).coefficients
    least, most = table["least"][time], table["most"][time]
    ratio = (least + (most - least) * (interpolation + 1) / 2) - least
    expected = (ratio + np.exp(-ratio) - 1) / 2 / np.log(2)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
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
def test_a_folder_of_images_becomes_a_masked_model(tmp_path, capsys):
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
    # Sizes that follow from images are for other models; the preset has to be named.
    alone = ["train", "prior", "--images", str(images), "--out", str(run)]
    assert main([*alone, "--steps", "1"]) == 2
    assert "name their preset with --config" in capsys.readouterr().err
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


def test_muon_and_the_decoder_alone_are_for_other_parts(tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(20):
        Image.new("RGB", (32, 32), (12 * i, 0, 0)).save(folder / f"{i}.png")
    command = ["train", "tokenizer", "--config", str(TINY), "--images", str(folder)]
    command += ["--out", str(tmp_path / "run"), "--steps", "1", "--set"]
    for setting, message in (
        ("train_tokenizer.optimizer=muon", "Muon is for transformers"),
        ("train_tokenizer.decoder_alone=true", "for tokenizers with codes"),
    ):
        assert main([*command, setting]) == 2
        assert message in capsys.readouterr().err
