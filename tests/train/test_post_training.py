"""Training of a decoder on tokens that a model generates."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jaxspec.checkpoint import Checkpoint, load_checkpoint
from jaxspec.cli import main
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.post_training import post_training_job, sampled_tokens
from tests.params import random_like
from tests.train.commands import TINY
from tests.train.halves import batch_of, write_images
from tests.train.tiny import get_config

EXPERIMENT = get_config()
SETTINGS = replace(
    EXPERIMENT.train_tokenizer,
    decoder_alone=True,
    generated_tokens=0.5,
    learning_rate=3e-3,
    steps=60,
)
EXPERIMENT = replace(EXPERIMENT, train_tokenizer=SETTINGS)
MODEL = Transformer(EXPERIMENT.prior)
PRIOR = random_like(MODEL.init, spread=0.4, seed=3)
START = Checkpoint(
    "tokenizer",
    EXPERIMENT.tokenizer,
    random_like(Tokenizer(EXPERIMENT.tokenizer).init, seed=2),
    {},
)
CHECKPOINT = Checkpoint("prior", EXPERIMENT.prior, PRIOR, {})


def test_sampled_tokens_have_the_law_of_the_model_given_real_ones():
    tokens = jnp.broadcast_to(jnp.arange(16) % 16, (4000, 16))
    labels = jnp.full(4000, 1)
    sample = jax.jit(sampled_tokens, static_argnums=1)
    found = sample(jax.random.key(0), MODEL, PRIOR, labels, tokens, jnp.float32(0.5))
    logits = MODEL.score(PRIOR, labels[:1], tokens[:1, :-1])[0][0]
    p = np.float64(jax.nn.softmax(logits))
    for t in (0, 7, 15):
        right = 0.5 * p[t] + 0.5 * (np.arange(16) == tokens[0, t])
        share = np.bincount(np.asarray(found[:, t]), minlength=16) / 4000
        assert np.abs(share - right).sum() / 2 < 0.04
    assert np.abs(p[0] - p[7]).sum() / 2 > 0.1  # laws that differ by place


def test_steps_improve_images_of_sampled_tokens_and_keep_the_real_ones(tmp_path):
    images = batch_of(write_images(tmp_path / "halves"))

    class Images:
        labels = np.arange(len(images)) % 3

        def __len__(self):
            return len(images)

        def take(self, indices):
            return images[np.asarray(indices)]

    job = post_training_job(EXPERIMENT, Images(), Images(), CHECKPOINT, START)
    step = jax.jit(job.training.step_fn)
    state, losses = job.state, []
    for i in range(60):
        batch = job.training.batch_fn(i)
        state, metrics = step(state, *job.training.frozen, jnp.int32(i), batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    after = job.training.result(state)
    tokenizer, x = Tokenizer(EXPERIMENT.tokenizer), jnp.float32(images) / 127.5 - 1
    codes = tokenizer.encode(START.params, x)
    assert_array_equal(tokenizer.encode(after, x), codes)


def test_impossible_settings_are_refused():
    def job(start=START, prior=CHECKPOINT, **settings):
        training = replace(SETTINGS, **settings)
        experiment = replace(EXPERIMENT, train_tokenizer=training)
        return post_training_job(experiment, None, None, prior, start)

    with pytest.raises(ConfigError, match="decoder_alone=true"):
        job(decoder_alone=False)
    masked = replace(CHECKPOINT, metadata={"objective": "maskgit"})
    with pytest.raises(ConfigError, match="one by one"):
        job(prior=masked)
    with pytest.raises(ConfigError, match="of the 3 classes"):
        labelled = SimpleNamespace(labels=np.array([0, 3]))
        post_training_job(EXPERIMENT, labelled, labelled, CHECKPOINT, START)
    with pytest.raises(ConfigError, match="exclude each other"):
        job(swapped_images=0.5)
    with pytest.raises(ConfigError, match="--start"):
        job(start=None)
    other = replace(CHECKPOINT, config=replace(EXPERIMENT.prior, vocab_size=8))
    with pytest.raises(ConfigError, match="one by one"):
        job(prior=other)
    with pytest.raises(ConfigError, match="generated_tokens=-1"):
        job(generated_tokens=-1.0)


@pytest.mark.slow
def test_the_command_trains_a_decoder_for_a_model(tmp_path):
    images = write_images(tmp_path / "halves")
    run, out = tmp_path / "run", tmp_path / "out"
    command = ["--config", str(TINY), "--images", str(images)]
    for part in ("tokenizer", "prior"):
        train = ["train", part, *command, "--out", str(run), "--steps", "10"]
        assert main(train) == 0
    options = ["--checkpoint", str(run), "--start", str(run), "--out", str(out)]
    options += ["--set", "train_tokenizer.decoder_alone=true", "--steps", "5"]
    options += ["--set", "train_tokenizer.generated_tokens=0.3"]
    assert main(["train", "tokenizer", *command, *options]) == 0
    before, after = (
        load_checkpoint(folder / "checkpoint" / "tokenizer") for folder in (run, out)
    )
    assert_array_equal(after.params["codebook"], before.params["codebook"])
    assert (after.neighbors.ids == before.neighbors.ids).all()
