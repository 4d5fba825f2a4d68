"""Training of tokenizers with a flow, and of models over their tokens."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import Checkpoint, load_checkpoint
from jaxspec.cli import main
from jaxspec.config import KLTokenizerConfig, TokenizerConfig
from jaxspec.errors import ConfigError
from jaxspec.pipeline.pipeline import load_pipeline
from jaxspec.speculative.trees.tree import Tree
from jaxspec.tokenizers.flow.model import FlowTokenizer
from jaxspec.train.flow_tokenizer import flow_job, flow_loss
from tests.params import random_like
from tests.train.halves import batch_of, write_images
from tests.train.tiny_flow import TOKENIZER, get_config

TINY = Path(__file__).parent / "tiny_flow.py"
EXPERIMENT = get_config()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "halves")


def test_the_loss_is_the_error_of_the_velocity_by_hand():
    """Of a network of zeros, as at first, noise minus image is left."""
    tokenizer = FlowTokenizer(TOKENIZER)
    params = tokenizer.init(jax.random.key(0))
    pixels = np.full((400, 32, 32, 3), 255, np.uint8)
    loss = jax.jit(lambda *args: flow_loss(tokenizer, *args))
    found = float(loss(params, pixels, jax.random.key(1)))
    assert found == pytest.approx(2.0, rel=0.02)  # variance 1 of noise, and 1 of white
    gradient = jax.jit(jax.grad(lambda p, *args: flow_loss(tokenizer, p, *args)))
    # The straight-through gradient reaches the encoder, once the flow reads tokens.
    params = {**random_like(tokenizer.init, 0.3), "codebook": params["codebook"]}
    change = gradient(params, pixels[:4], jax.random.key(1))["encoder"]
    assert abs(change["out"]["kernel"]).max() > 0


@pytest.mark.slow
def test_steps_improve_images(images):
    x = batch_of(images)

    class Images:
        def __len__(self):
            return len(x)

        def take(self, indices):
            return x[np.asarray(indices)]

    training = replace(
        EXPERIMENT.train_tokenizer, learning_rate=3e-3, steps=400, ema=0.9
    )
    experiment = replace(EXPERIMENT, train_tokenizer=training)
    job = flow_job(experiment, Images(), Images())
    step, state = jax.jit(job.training.step_fn), job.state
    before = job.training.evaluate(state)
    for i in range(400):
        state, _ = step(state, jnp.int32(i), job.training.batch_fn(i))
    after = job.training.evaluate(state)
    assert after["psnr"] > before["psnr"] + 2
    assert {"psnr_1", "psnr_4", "psnr_6", "codes_used"} <= set(after)
    # Images depend on their tokens: those of others are worse.
    params, tokenizer = job.training.result(state), FlowTokenizer(TOKENIZER)
    pixels = jnp.float32(x) / 127.5 - 1
    codes = tokenizer.encode(params, pixels)
    decode = jax.jit(tokenizer.decode)
    own = jnp.mean((decode(params, codes) - pixels) ** 2)
    others = jnp.mean((decode(params, jnp.roll(codes, 1, axis=0)) - pixels) ** 2)
    assert own < 0.95 * others


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_model_of_tokens_of_a_flow(images, tmp_path):
    run = tmp_path / "run"
    command = ["--config", str(TINY), "--images", str(images), "--out", str(run)]
    assert main(["train", "tokenizer", *command, "--steps", "30"]) == 0
    assert main(["train", "prior", *command, "--steps", "20"]) == 0
    assert main(["train", "drafter", *command, "--steps", "8"]) == 0
    assert load_checkpoint(run / "checkpoint" / "tokenizer").kind == "flow_tokenizer"
    pipe = load_pipeline(run)
    settings = {"class_labels": ["left", "right"], "seed": 0}
    out = pipe(**settings, tree=Tree.named("chain-1"))
    plain = pipe(**settings, tree=Tree.root())
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    assert out.images[0].size == (32, 32)
    streamed = list(pipe.stream(**settings, rounds=2))
    assert len(streamed) > 1


def test_impossible_settings_are_refused():
    def job(start=None, sizes=TOKENIZER, **settings):
        training = replace(EXPERIMENT.train_tokenizer, **settings)
        experiment = replace(EXPERIMENT, tokenizer=sizes, train_tokenizer=training)
        return flow_job(experiment, None, None, start)

    networks = TokenizerConfig(
        image_size=32, channels=32, multipliers=(1, 1), latent_channels=4,
        codebook_size=1, code_dim=4, normalized="none",
    )  # fmt: skip
    latents = replace(TOKENIZER, latents=KLTokenizerConfig(networks))
    with pytest.raises(ConfigError, match="latents=None"):
        job(sizes=latents)
    with pytest.raises(ConfigError, match="learned codes"):
        job(decoder_alone=True)
    other = replace(TOKENIZER, length=4)
    params = FlowTokenizer(other).init(jax.random.key(0))
    with pytest.raises(ConfigError, match="to start from has the configuration"):
        job(Checkpoint("flow_tokenizer", other, params))
