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
from jaxspec.train.flow_tokenizer import NULL_SHARE, flow_job, flow_loss
from tests.params import random_like
from tests.train.halves import batch_of, write_images
from tests.train.tiny_flow import TOKENIZER, get_config

TINY = Path(__file__).parent / "tiny_flow.py"
EXPERIMENT = get_config()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "halves")


@pytest.mark.variants(1)
@pytest.mark.parametrize("groups", [1, 3])
def test_the_loss_is_the_error_of_the_velocity_by_hand(groups):
    """The velocity goes from an image to noise; it reads tokens as at generation."""
    tokenizer = FlowTokenizer(replace(TOKENIZER, groups=groups))
    book = tokenizer.init(jax.random.key(0))["codebook"]
    params = {**random_like(tokenizer.init, 0.3), "codebook": book}
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
    key = jax.random.key(1)
    loss = jax.jit(lambda p, x: flow_loss(tokenizer, p, x, key))
    times, noises, counts, nulls = jax.random.split(key, 4)
    pixels = np.float32(images) / 127.5 - 1
    time = 1 / (1 + np.exp(-np.float32(jax.random.normal(times, (32,), jnp.float32))))
    noise = np.asarray(jax.random.normal(noises, images.shape, jnp.float32))
    if groups == 1:  # nested dropout
        count = np.asarray(jax.random.randint(counts, (32,), 1, 7))
    else:  # of the groups that are read by the time, from noise at 1 to the image at 0
        count = 2 * np.minimum(np.floor((1 - time) * 3) + 1, 3)
    assert len(set(count.tolist())) > 2
    codes = jax.jit(tokenizer.encode)(params, jnp.asarray(pixels))
    share = time[:, None, None, None]
    speed = tokenizer.velocity(
        params,
        share * noise + (1 - share) * pixels,
        time,
        np.asarray(book)[codes],
        np.arange(6) < count[:, None],
        np.asarray(jax.random.bernoulli(nulls, jnp.float32(NULL_SHARE), (32,))),
    )
    expected = np.mean((np.asarray(speed) - (noise - pixels)) ** 2)
    assert float(loss(params, images)) == pytest.approx(expected, rel=1e-4)
    # The straight-through gradient reaches the encoder.
    change = jax.jit(jax.grad(loss))(params, images[:4])["encoder"]
    assert abs(change["out"]["kernel"]).max() > 0


def test_products_are_in_the_dtype_of_the_training():
    tokenizer = FlowTokenizer(TOKENIZER)
    params = tokenizer.init(jax.random.key(0))
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    images = np.zeros((2, 32, 32, 3), np.uint8)
    program = str(
        jax.make_jaxpr(lambda p: flow_loss(tokenizer, p, images, jax.random.key(0)))(
            low
        )
    )
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert sum("bf16" in line.split("=")[0] for line in products) > len(products) / 2


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
