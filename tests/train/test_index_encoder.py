"""Training of an encoder that finds the tokens of decoded images again."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jaxspec.checkpoint import Checkpoint, load_checkpoint, save
from jaxspec.cli import main
from jaxspec.errors import ConfigError
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.index_encoder import (
    _decoded,
    index_encoder_job,
    recovery_metrics,
)
from tests.params import random_like
from tests.train import tiny_residual
from tests.train.commands import TINY
from tests.train.halves import batch_of, write_images
from tests.train.tiny import get_config

EXPERIMENT = get_config()
SETTINGS = replace(
    EXPERIMENT.train_tokenizer, encoder_alone=True, learning_rate=3e-3, steps=80
)
EXPERIMENT = replace(EXPERIMENT, train_tokenizer=SETTINGS)
TOKENIZER = Tokenizer(EXPERIMENT.tokenizer)
START = Checkpoint("tokenizer", EXPERIMENT.tokenizer, random_like(TOKENIZER.init))


class Images:
    """Images as a source."""

    captions = ()

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def take(self, indices):
        return self.images[np.asarray(indices)]


@pytest.mark.slow
def test_more_tokens_are_found_again_and_images_of_tokens_stay(tmp_path):
    images = Images(batch_of(write_images(tmp_path / "halves")))
    job = index_encoder_job(EXPERIMENT, images, images, START)
    step, state = jax.jit(job.training.step_fn), job.state
    for i in range(SETTINGS.steps):
        batch = job.training.batch_fn(i)
        state, _ = step(state, *job.training.frozen, jnp.int32(i), batch)
    after = job.training.result(state)
    before = recovery_metrics(TOKENIZER, START.params, START.params, images)
    found = job.training.evaluate(state, *job.training.frozen)
    assert found["found_again"] > before["found_again"] + 0.1
    assert found["found_in_noise"] > before["found_in_noise"]
    tokens = jnp.arange(32, dtype=jnp.int32).reshape(2, 16) % 16
    assert_array_equal(
        TOKENIZER.decode(after, tokens), TOKENIZER.decode(START.params, tokens)
    )
    # The measure is what a user sees: tokens, image, tokens.
    x = jnp.float32(images.images) / 127.5 - 1
    codes = TOKENIZER.encode(START.params, x)
    shown = jnp.clip(TOKENIZER.decode(START.params, codes), -1, 1)
    shown = jnp.round((shown + 1) * 127.5) / 127.5 - 1
    again = TOKENIZER.encode(after, shown)
    share = float(jnp.mean(again == codes))
    assert found["found_again"] == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("normalized", ["both", "decoding", "none"])
def test_vectors_without_an_error_give_their_codes_back(normalized):
    """The target of the loss is what encoding compares with."""
    sizes = replace(EXPERIMENT.tokenizer, normalized=normalized)
    tokenizer = Tokenizer(sizes)
    params = random_like(tokenizer.init, seed=4)
    scale = jnp.linspace(0.2, 3.0, sizes.codebook_size)[:, None]
    params["codebook"] = params["codebook"] * scale
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1.0)
    codes, vectors, shown = _decoded(tokenizer, params, images)
    found = tokenizer.quantize(params["codebook"], vectors).reshape(codes.shape)
    assert_array_equal(found, codes)
    levels = np.asarray((shown + 1) * 127.5)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)


@pytest.mark.slow
def test_what_is_not_trained_is_not_rounded(tmp_path):
    """The codebook and the decoder of the start, bit by bit, and its images."""
    images = write_images(tmp_path / "halves")
    save(tmp_path / "start" / "tokenizer", START)
    settings = ["encoder_alone=true", "rounded=true", "steps=2"]
    command = ["train", "tokenizer", "--config", str(TINY), "--images", str(images)]
    command += ["--start", str(tmp_path / "start"), "--out", str(tmp_path / "run")]
    for setting in settings:
        command += ["--set", f"train_tokenizer.{setting}"]
    assert main(command) == 0
    found = load_checkpoint(tmp_path / "run" / "checkpoint" / "tokenizer").params
    for name, own in START.params.items():
        same = jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), own, found[name]))
        assert same == (name not in ("encoder", "quant_conv"))


def test_impossible_settings_are_refused():
    def job(experiment=EXPERIMENT, start=START, **settings):
        training = replace(SETTINGS, **settings)
        experiment = replace(experiment, train_tokenizer=training)
        return index_encoder_job(experiment, None, None, start)

    with pytest.raises(ConfigError, match="--start DIR"):
        job(start=None)
    with pytest.raises(ConfigError, match="excludes decoder_alone"):
        job(decoder_alone=True)
    with pytest.raises(ConfigError, match="a grid of learned codes"):
        job(tiny_residual.get_config())
    other = replace(START, config=replace(START.config, channels=64))
    with pytest.raises(ConfigError, match="to start from has the configuration"):
        job(start=other)
