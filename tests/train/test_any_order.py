"""Models of any order (RAR), trained and generated from the command line."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxspec.checkpoint import Checkpoint
from jaxspec.cli import main
from jaxspec.config.orders import cells_of
from jaxspec.core.sampling import Sampling
from jaxspec.data.image_tokens import TokenSource, encode_source
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.model_drafters import load_model_drafter
from jaxspec.pipeline.orders import with_order
from jaxspec.pipeline.pipeline import Pipeline, load_pipeline
from jaxspec.speculative.trees.tree import Tree
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.prior import prior_job
from tests.params import random_like
from tests.train.commands import TINY
from tests.train.halves import write_images
from tests.train.tiny import get_config

EXPERIMENT = get_config()


@pytest.fixture(scope="module")
def bundle():
    """Random models, the prior with the record of any order."""
    config = replace(EXPERIMENT.prior, next_cell=True)
    prior = random_like(Transformer(config).init, spread=0.3, seed=1)
    tokenizer = random_like(Tokenizer(EXPERIMENT.tokenizer).init, seed=2)
    return Bundle(
        "random",
        Checkpoint("tokenizer", EXPERIMENT.tokenizer, tokenizer, {}),
        Checkpoint("prior", config, prior, {"objective": "any_order"}),
        None,
        trained=config,
    )


@pytest.mark.slow
def test_one_model_generates_in_several_orders(bundle):
    """Continued images keep whole levels, and previews are of the whole."""
    settings = {"class_labels": [0, 2], "seed": 0, "tree": Tree.root()}
    coarse = Pipeline(with_order(bundle, "coarse"), None)
    out, plain = coarse(**settings), Pipeline(bundle, None)(**settings)
    assert not np.array_equal(out.tokens, plain.tokens)
    rest = coarse(**settings, prefix=out.tokens, prefix_rows=2)
    assert_array_equal(rest.tokens, out.tokens)
    spread = Pipeline(with_order(bundle, "halton"), None)
    with pytest.raises(ConfigError, match="no first rows"):
        spread(**settings, prefix=out.tokens, prefix_rows=2)
    first = next(coarse.stream(**settings, rounds=3))
    assert first.fraction == 0.25
    assert not (first.images == first.images[:, :1, :1]).all()
    assert not (first.images[:, -8:] == 128).all()


def test_a_model_of_one_order_keeps_it(bundle):
    prior = replace(bundle.prior, metadata={})
    with pytest.raises(ConfigError, match="trained in one order"):
        with_order(replace(bundle, prior=prior), "coarse")
    assert with_order(replace(bundle, prior=prior), "raster").prior is prior
    with pytest.raises(ConfigError, match="order='spiral'"):
        with_order(bundle, "spiral")
    with pytest.raises(ConfigError, match="random_share=2"):
        replace(EXPERIMENT.train_prior, random_share=2)
    masked = replace(EXPERIMENT.train_prior, objective="maskgit")
    prior = replace(EXPERIMENT.prior, order="halton", extra_tokens=1)
    tokenizer = replace(EXPERIMENT.tokenizer, order="halton")
    parts = {"tokenizer": tokenizer, "prior": prior, "drafter": None}
    with pytest.raises(ConfigError, match="predict the next token"):
        replace(EXPERIMENT, train_prior=masked, **parts)
    training = replace(EXPERIMENT.train_prior, objective="any_order")
    with pytest.raises(ConfigError, match="next_cell"):
        replace(EXPERIMENT, train_prior=training)


def test_tokens_of_another_order_are_encoded_again(tmp_path):
    class Images:
        labels = np.zeros(4, np.int32)

        def __len__(self):
            return 4

        def take(self, indices):
            rng = np.random.default_rng(0)
            return rng.integers(0, 255, (4, 32, 32, 3), np.uint8)[np.asarray(indices)]

    raster = Tokenizer(EXPERIMENT.tokenizer)
    coarse = Tokenizer(replace(EXPERIMENT.tokenizer, order="coarse"))
    params = random_like(raster.init, seed=2)
    settings = {"name": "x", "flips": False, "cache_dir": tmp_path, "batch": 4}
    first, second = (
        encode_source(tokenizer, params, Images(), **settings).tokens
        for tokenizer in (raster, coarse)
    )
    assert_array_equal(second, first[..., list(cells_of("coarse", 4))])


def test_a_draft_model_of_any_order_follows_its_target(bundle):
    loaded = load_model_drafter("small", bundle.prior, with_order(bundle, "halton"))
    assert loaded.drafter.model.for_drafter.model.config.order == "halton"


def test_a_masked_model_drafts_in_the_order_of_its_target(bundle):
    """It scores each cell as in its own order; the control takes the orders as one."""
    config = replace(EXPERIMENT.prior, extra_tokens=1)
    params = random_like(Transformer(config).init, spread=0.5, seed=5)
    masked = Checkpoint("prior", config, params, {"objective": "maskgit"})
    loaded = load_model_drafter("masked", masked, with_order(bundle, "halton"))
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, config.vocab_size + 1)
    classes, cells = jnp.array([0, 2]), np.array(cells_of("halton", 4))
    raster = MaskedDiffusion(Transformer(config)).score(params, classes, tokens)
    denoise, plain = loaded.drafter.denoise, Sampling.create(2)
    found = denoise(loaded.params["model"], classes, tokens[:, cells], plain)
    assert_allclose(found, raster[:, cells], atol=1e-4)
    wrong = denoise(loaded.params["model"], classes, tokens, plain)
    assert np.abs(wrong - raster).max() > 0.01
    row = replace(config, rope="sequence", max_length=16)
    masked = Checkpoint("prior", row, params, {"objective": "maskgit"})
    with pytest.raises(CheckpointError, match="has rope sequence, the prior grid"):
        load_model_drafter("row", masked, with_order(bundle, "halton"))


def test_a_model_of_one_order_starts_one_of_any_order(bundle):
    """The first prediction is that of the model it starts from."""
    plain = replace(bundle.prior.config, next_cell=False, order="raster")
    params = {k: x for k, x in bundle.prior.params.items() if k != "next_cell"}
    start = Checkpoint("prior", plain, params, {"objective": "next"})
    config = replace(bundle.prior.config, order="coarse")
    training = replace(EXPERIMENT.train_prior, objective="any_order")
    tokenizer = replace(EXPERIMENT.tokenizer, order="coarse")
    parts = {"tokenizer": tokenizer, "prior": config, "drafter": None}
    experiment = replace(EXPERIMENT, train_prior=training, **parts)
    tokens = np.random.default_rng(0).integers(0, 16, (1, 40, 16)).astype(np.uint16)
    source = TokenSource(tokens, np.arange(40) % 3, "digest")
    state = prior_job(experiment, source, source, start).state
    logits, expected = (
        Transformer(c).score(p, jnp.arange(3), jnp.asarray(tokens[0, :3], jnp.int32))[0]
        for c, p in (
            (replace(config, order="raster"), state["params"]),
            (plain, params),
        )
    )
    assert_array_equal(logits, expected)
    with pytest.raises(ConfigError, match="another configuration"):
        prior_job(replace(EXPERIMENT, drafter=None), source, source, bundle.prior)


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_model_of_any_order(tmp_path):
    images = write_images(tmp_path / "halves")
    run = tmp_path / "run"
    command = ["--config", str(TINY), "--images", str(images), "--out", str(run)]
    assert main(["train", "tokenizer", *command, "--steps", "30"]) == 0
    options = ["--set", "prior.next_cell=true"]
    options += ["--set", "train_prior.objective=any_order"]
    assert main(["train", "prior", *command, *options, "--steps", "20"]) == 0
    file = tmp_path / "x.png"
    generate = ["generate", "--checkpoint", str(run), "--num", "2", "--out", str(file)]
    for order in ("raster", "coarse", "halton"):
        assert main([*generate, "--order", order, "--compare"]) == 0
    # A model of one order starts from it, over the same codes in that order.
    one = ["--set", "prior.next_cell=true", "--set", "prior.order=halton"]
    one += ["--set", "tokenizer.order=halton", "--steps", "5"]
    one += ["--checkpoint", str(run), "--start", str(run)]
    spread = tmp_path / "spread"
    again = ["train", "prior", "--config", str(TINY), "--images", str(images)]
    assert main([*again, *one, "--out", str(spread)]) == 0
    assert main([*generate[:2], str(spread), *generate[3:], "--compare"]) == 0
    bundles = [load_pipeline(folder).bundle for folder in (run, spread)]
    assert bundles[1].tokenizer.config.order == "halton"
    jax.tree.map(assert_array_equal, *(b.tokenizer.params for b in bundles))
    # The tokenizer beside a prior is not used in two orders.
    assert main([*again, *one, "--out", str(run)]) == 2
    pipe = load_pipeline(run, order="halton", drafter="jacobi")
    settings = {"class_labels": ["left", "right"], "seed": 0}
    out = pipe(**settings, tree=Tree.named("chain-3"))
    assert_array_equal(out.tokens, pipe(**settings, tree=Tree.root()).tokens)
