"""Training of multi-scale tokenizers and next-scale models."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import load_checkpoint
from jaxspec.cli import main
from jaxspec.errors import ConfigError
from jaxspec.nn.vq import kmeans
from jaxspec.pipeline.pipeline import load_pipeline
from jaxspec.tokenizers.multi_scale.model import MultiScaleTokenizer
from jaxspec.train.multi_scale_tokenizer import first_params, init_state, make_step
from tests.train.halves import batch_of, write_images
from tests.train.tiny_scales import get_config

TINY = Path(__file__).parent / "tiny_scales.py"
EXPERIMENT = get_config()
TOKENIZER = MultiScaleTokenizer(EXPERIMENT.tokenizer)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "halves")


def test_clusters_have_their_centers():
    centers = np.array([[0.0, 0], [5, 5], [0, 5]], np.float32)
    rng = np.random.default_rng(1)
    vectors = np.repeat(centers, 50, axis=0) + rng.normal(0, 0.1, (150, 2))
    found = kmeans(jax.random.key(3), jnp.float32(vectors), 8, iterations=20)
    near = np.linalg.norm(np.asarray(found)[:, None] - centers, axis=-1)
    assert (near.min(axis=0) < 0.2).all() and (near.min(axis=1) < 0.5).all()
    # Weights decide between one far vector and many near ones.
    weights = np.r_[np.ones(150), 1e6].astype(np.float32)
    far = np.r_[vectors, [[9.0, 9]]].astype(np.float32)
    one = kmeans(jax.random.key(0), jnp.asarray(far), 1, weights=jnp.asarray(weights))
    np.testing.assert_allclose(one[0], [9, 9], atol=0.01)


@pytest.mark.slow
def test_steps_improve_reconstructions_and_move_codes_that_nothing_uses(images):
    config = EXPERIMENT.train_tokenizer
    x = batch_of(images)
    unit = jnp.float32(x) / 127.5 - 1
    params = first_params(TOKENIZER, jax.random.key(0), unit)
    far = params["codebook"].at[3].set(1e3)  # a code that no vector is near to
    state = init_state(config, {**params, "codebook": far})
    state = {**state, "counts": state["counts"].at[3].set(0.0)}
    step = jax.jit(make_step(TOKENIZER, config))
    first = None
    for i in range(12):
        state, metrics = step(state, jnp.int32(i), x)
        first = metrics["psnr_of_mean"] if first is None else first
    assert metrics["psnr_of_mean"] > first + 0.5
    assert abs(state["params"]["codebook"][3]).max() < 100


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_next_scale_model(images, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["--config", str(TINY), "--images", str(images), "--out", str(run)]
    few = ["--set", "train_tokenizer.batch=16"]
    assert main(["train", "tokenizer", *command, "--steps", "60", *few]) == 0
    lines = (run / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line) for line in lines if "psnr_4" in line]
    assert measured[-1]["psnr_4"] > measured[0]["psnr_4"]
    assert measured[-1]["psnr_4"] > measured[-1]["psnr_1"]
    assert measured[-1]["codes_1"] >= 1
    assert main(["train", "prior", *command, "--steps", "40"]) == 0
    lines = (run / "prior" / "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line) for line in lines if "nll_4" in line]
    assert measured[-1]["heldout_loss"] < measured[0]["heldout_loss"]
    assert load_checkpoint(run / "checkpoint" / "prior").kind == "next_scale"
    assert list((run / "prior" / "samples").glob("*.png"))
    card = (run / "checkpoint" / "prior" / "README.md").read_text()
    assert "scale" in card
    pipe = load_pipeline(run)
    out = pipe(class_labels=["left", "right"], seed=0)
    assert out.tokens.shape == (2, 21) and pipe.class_names == ["left", "right"]
    # It starts from what was trained.
    other = ["--out", str(tmp_path / "more"), "--checkpoint", str(run)]
    again = ["train", "prior", *command[:-2], *other, "--start", str(run)]
    assert main([*again, "--steps", "1"]) == 0


def test_models_of_other_scales_do_not_go_together():
    narrow = replace(EXPERIMENT.prior, scales=(1, 4))
    with pytest.raises(ConfigError, match=r"maps of \(1, 4\), the tokenizer makes"):
        replace(EXPERIMENT, prior=narrow)
    with pytest.raises(ConfigError, match="codes of width 5"):
        replace(EXPERIMENT, prior=replace(EXPERIMENT.prior, code_dim=5))
