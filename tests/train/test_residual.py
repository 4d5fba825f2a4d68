"""Tokenizers with several tokens a cell (RQ-VAE), and their training."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxspec.checkpoint import load_checkpoint
from jaxspec.cli import main
from jaxspec.config.residual import ResidualTokenizerConfig
from jaxspec.config.token_kinds import row_ends
from jaxspec.errors import ConfigError, DataError
from jaxspec.pipeline.pipeline import load_pipeline
from jaxspec.pipeline.verifiers import similar_tokens
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.neighbors import neighbor_table
from jaxspec.tokenizers.residual.model import ResidualTokenizer
from jaxspec.train.tokenizer import init_state, make_step
from tests.params import random_like
from tests.train.halves import batch_of, write_images
from tests.train.tiny_residual import get_config

TINY = Path(__file__).parent / "tiny_residual.py"
EXPERIMENT = get_config()
TOKENIZER = ResidualTokenizer(EXPERIMENT.tokenizer)
DEPTH, SIZE = 3, 8


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "halves")


def test_each_depth_quantizes_what_those_before_left():
    """By hand, cell by cell; an image is that of the sum of its entries."""
    params = random_like(TOKENIZER.init, seed=1)
    x = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1)
    features = np.asarray(TOKENIZER.embed(params, x), np.float64).reshape(2, 16, -1)
    book = np.asarray(params["codebook"], np.float64).reshape(DEPTH, SIZE, -1)
    total = np.zeros_like(features)
    codes = []
    for depth in range(DEPTH):
        rest = (features - total)[:, :, None] - book[depth]
        nearest = np.square(rest).sum(-1).argmin(-1)
        codes.append(nearest + depth * SIZE)
        total += book[depth][nearest]
    found = jax.jit(TOKENIZER.encode)(params, x)
    assert_array_equal(found, np.stack(codes, -1).reshape(2, -1))
    image = jax.jit(TOKENIZER.decode)(params, found)
    right = TOKENIZER.decode_vectors(params, jnp.float32(total.reshape(2, 4, 4, -1)))
    assert_allclose(image, right, atol=1e-5)
    partial = jax.jit(TOKENIZER.decode_partial)
    assert_allclose(partial(params, found), image, atol=1e-5)
    coarse = np.where(np.arange(48) % DEPTH == 0, found, -1)
    coarse = partial(params, jnp.asarray(coarse))
    first = jnp.float32(book[0][codes[0]].reshape(2, 4, 4, -1))
    assert_allclose(coarse, TOKENIZER.decode_vectors(params, first), atol=1e-5)
    fine = np.where(np.arange(48) % DEPTH == 1, found, -1)
    assert not partial(params, jnp.asarray(fine)).any()


@pytest.mark.slow
def test_steps_improve_images_of_each_number_of_depths(images):
    x = batch_of(images)
    config = replace(EXPERIMENT.train_tokenizer, learning_rate=3e-3, steps=80)
    state = init_state(TOKENIZER, config)
    step = jax.jit(make_step(TOKENIZER, config))

    @jax.jit
    def errors(state):
        params = {**state["networks"], "codebook": state["codebook"]}
        images = jnp.float32(x) / 127.5 - 1
        codes = TOKENIZER.encode(params, images)
        depth = jnp.arange(48)[None] % DEPTH
        shown = [
            TOKENIZER.decode_partial(params, jnp.where(depth < n, codes, -1))
            for n in (1, 2, 3)
        ]
        return jnp.stack([jnp.mean((image - images) ** 2) for image in shown])

    before = np.asarray(errors(state))
    for i in range(80):
        state, _ = step(state, jnp.int32(i), x)
    after = np.asarray(errors(state))
    assert (after < 0.5 * before).all() and after[2] < after[0]
    used = TOKENIZER.encode(
        {**state["networks"], "codebook": state["codebook"]},
        jnp.float32(x) / 127.5 - 1,
    )
    assert len(np.unique(used)) > SIZE


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_model_of_several_tokens_a_cell(images, tmp_path):
    run = tmp_path / "run"
    command = ["--config", str(TINY), "--images", str(images), "--out", str(run)]
    assert main(["train", "tokenizer", *command, "--steps", "60"]) == 0
    assert main(["train", "prior", *command, "--steps", "20"]) == 0
    saved = load_checkpoint(run / "checkpoint" / "tokenizer")
    assert saved.kind == "residual_tokenizer" and saved.neighbors is not None
    pipe = load_pipeline(run, drafter="jacobi")
    settings = {"class_labels": ["left", "right"], "seed": 0}
    out = pipe(**settings, tree=Tree.named("chain-3"))
    assert out.tokens.shape == (2, 48) and out.stats.calls.max() < 48
    plain = pipe(**settings, tree=Tree.root())
    assert_array_equal(out.tokens, plain.tokens)
    rest = pipe(**settings, prefix=plain.tokens, prefix_rows=2)
    assert_array_equal(rest.tokens, plain.tokens)


def test_similar_tokens_are_of_the_same_depth():
    book = jax.random.normal(jax.random.key(0), (DEPTH * SIZE, 4))
    table = similar_tokens(EXPERIMENT.tokenizer, book, 3)
    token = np.arange(DEPTH * SIZE)[:, None]
    assert_array_equal(table.ids // SIZE, np.broadcast_to(token // SIZE, (24, 4)))
    own = neighbor_table(book[SIZE : 2 * SIZE], 3)
    assert_array_equal(table.ids[SIZE : 2 * SIZE], own.ids + SIZE)


def test_rows_hold_all_depths():
    assert row_ends(EXPERIMENT.tokenizer) == (12, 24, 36, 48)


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match="depth=0"):
        replace(EXPERIMENT.tokenizer, depth=0)
    networks = replace(EXPERIMENT.tokenizer.networks, normalized="both")
    with pytest.raises(ConfigError, match="normalized='none'"):
        ResidualTokenizerConfig(networks)
    with pytest.raises(DataError, match=r"\[B, 48\] \(4 x 4 in raster order, 3 each"):
        TOKENIZER.decode({}, jnp.zeros((1, 16), jnp.int32))
