"""Training of one-dimensional tokenizers, and of models over their tokens."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import Checkpoint, load_checkpoint, save
from jaxspec.cli import main
from jaxspec.config.one_d import MaskGITTokenizerConfig
from jaxspec.errors import CheckpointError, ConfigError, DataError
from jaxspec.pipeline.pipeline import load_pipeline
from jaxspec.speculative.trees.tree import Tree
from jaxspec.tokenizers.one_d.model import OneDTokenizer
from jaxspec.train.run import train_part
from jaxspec.train.tokenizer import init_state, make_step, tokenizer_job
from jaxspec.train.training_run import TrainingRun
from tests.params import random_like
from tests.train.halves import batch_of, write_images
from tests.train.tiny_row import TOKENIZER, get_config

TINY = Path(__file__).parent / "tiny_row.py"
EXPERIMENT = get_config()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "halves")


@pytest.mark.slow
def test_steps_improve_images_of_few_and_of_all_tokens(images):
    tokenizer = OneDTokenizer(TOKENIZER)
    x = batch_of(images)
    config = replace(EXPERIMENT.train_tokenizer, learning_rate=3e-3, steps=60)
    state = init_state(tokenizer, config)
    step = jax.jit(make_step(tokenizer, config))

    @jax.jit
    def error(state, count):
        params = {**state["networks"], "codebook": state["codebook"]}
        images = jnp.float32(x) / 127.5 - 1
        codes = tokenizer.encode(params, images)
        known = jnp.where(jnp.arange(6)[None] < count, codes, -1)
        return jnp.mean((tokenizer.decode_partial(params, known) - images) ** 2)

    before = [error(state, n) for n in (1, 6)]
    for i in range(60):
        state, _ = step(state, jnp.int32(i), x)
    after = [error(state, n) for n in (1, 6)]
    assert np.all(np.array(after) < 0.5 * np.array(before))


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_model_of_tokens_in_a_row(images, tmp_path):
    run = tmp_path / "run"
    command = ["--config", str(TINY), "--images", str(images), "--out", str(run)]
    assert main(["train", "tokenizer", *command, "--steps", "60"]) == 0
    lines = (run / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line) for line in lines if "psnr_6" in line]
    assert {"psnr_1", "psnr_2", "psnr_4", "codes_6"} <= set(measured[-1])
    assert measured[-1]["psnr_6"] > measured[0]["psnr_6"]
    assert main(["train", "prior", *command, "--steps", "20"]) == 0
    assert main(["train", "drafter", *command, "--steps", "8"]) == 0
    assert load_checkpoint(run / "checkpoint" / "tokenizer").neighbors is not None
    pipe = load_pipeline(run)
    settings = {"class_labels": ["left", "right"], "seed": 0}
    out = pipe(**settings, tree=Tree.named("chain-1"))
    assert out.tokens.shape == (2, 6) and out.stats.calls.min() < 6
    plain = pipe(**settings, tree=Tree.root())
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    rest = pipe(**settings, prefix=plain.tokens, prefix_rows=2)
    np.testing.assert_array_equal(rest.tokens, plain.tokens)


@pytest.mark.parametrize(
    "change",
    [
        {"mixed_order": True},
        {"normalized": False},
        {"pixels": MaskGITTokenizerConfig(32, 8, (1, 1, 1, 1), groups=4)},
    ],
)
def test_forms_that_are_not_trained_are_refused(change):
    tokenizer = replace(TOKENIZER, **change)
    with pytest.raises(ConfigError, match="are trained with pixels=None"):
        tokenizer_job(replace(EXPERIMENT, tokenizer=tokenizer), None, None)


def test_models_of_a_grid_do_not_fit_tokens_in_a_row():
    grid = replace(EXPERIMENT.prior, rope="grid")
    with pytest.raises(ConfigError, match="a grid of 4, the tokenizer makes"):
        replace(EXPERIMENT, prior=grid)


def test_a_prior_is_not_put_beside_the_tokenizer_of_other_tokens(tmp_path):
    for name, seed in (("own", 1), ("other", 2)):
        params = random_like(OneDTokenizer(TOKENIZER).init, seed=seed)
        checkpoint = Checkpoint("one_d_tokenizer", TOKENIZER, params)
        save(tmp_path / name / "checkpoint" / "tokenizer", checkpoint)
    run = TrainingRun(tmp_path / "own", bundle=tmp_path / "other")
    with pytest.raises(CheckpointError, match="is another tokenizer than"):
        train_part(EXPERIMENT, "prior", run)
    shutil.rmtree(tmp_path / "other")
    shutil.copytree(tmp_path / "own", tmp_path / "other")
    with pytest.raises(DataError):  # the next thing that is missing
        train_part(EXPERIMENT, "prior", run)
