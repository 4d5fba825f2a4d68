"""Embedded model: equal tokens for all trees and batches, and rounding differences."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.core.kv_cache import tree_mask
from jaxspec.errors import CheckpointError
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.embedded import (
    DEFAULT,
    embedded_folder,
    embedded_names,
    find_folder,
)
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.prompts import Prompts
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.trees.parsing import default_tree
from jaxspec.speculative.trees.tree import Tree


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {"cfg_scale": 2.0}),  # whole images; the others stop after some rows
        pytest.param(
            1,
            {
                "cfg_scale": 4.0,
                "cfg_interval": 60,
                "top_k": 200,
                "top_p": 0.95,
                "max_new_tokens": 96,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            2,
            {"cfg_scale": 1.0, "temperature": 0.0, "max_new_tokens": 96},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["default", "filters", "greedy"],
)
def test_trees_and_batches_do_not_change_the_tokens(seed, settings):
    bundle = load_bundle("fruits64")
    classes = tuple(range(seed, 67, 23))
    prompts = Prompts.from_classes(classes)
    several = GenerationConfig(seed=seed, batch_size=3, **settings)
    plain = generate(bundle, prompts, several, Tree.root())
    fast = generate(bundle, prompts, several, default_tree())
    np.testing.assert_array_equal(fast.tokens, plain.tokens)
    # The same images in another batch, with another tree.
    fewer = GenerationConfig(seed=seed, batch_size=2, **settings)
    prompts = Prompts.from_classes(classes[:2])
    again = generate(bundle, prompts, fewer, Tree.named("mc_sim_7b_63"))
    np.testing.assert_array_equal(again.tokens, plain.tokens[:2])


def test_the_default_model_makes_eight_tokens_a_call_without_a_trained_drafter():
    """Guided, at temperature 1, without filters, with the tokens of plain decoding."""
    pipe = jaxspec.load_pipeline()
    settings = {"seed": 0, "cfg_scale": 2.0, "temperature": 1.0, "top_k": 0}
    labels = pipe.bundle.class_names[::17]
    fast, plain = (
        pipe(class_labels=labels, **settings, tree=tree)
        for tree in (Tree.chain(32), Tree.root())
    )
    np.testing.assert_array_equal(fast.tokens, plain.tokens)
    assert fast.stats.tokens_per_call > 8
    # The tree that is chosen for accelerators is as deep as acceptance was measured.
    assert pipe.loaded.name == "grid-jacobi"
    assert pipe.loaded.tree("optimal-33").depth > 16


@pytest.mark.slow
def test_speculation_emits_two_and_a_half_tokens_per_call():
    """Lower bound of the published number, on fewer images."""
    prompts = Prompts.from_classes([0, 16, 32, 48])
    config = GenerationConfig(batch_size=4)
    fast = generate(
        load_bundle("fruits64"), prompts, config, Tree.named("naive_extend_57")
    )
    assert fast.tokens_per_call >= 2.5


@pytest.mark.slow
def test_passes_of_different_width_differ_by_far_less_than_the_margin():
    """Logits of a tree pass against those of the pass of fixed shape."""
    prior = load_bundle("fruits64").prior
    target = Transformer(prior.config).as_target(cfg=True)
    rng = np.random.default_rng(0)
    tree, length = Tree.named("naive_extend_57"), 120
    prompt = jnp.array([5, 40])
    tokens = jnp.asarray(rng.integers(1024, size=(2, 256)), jnp.int32)
    nodes = jnp.asarray(rng.integers(1024, size=(2, tree.size)), jnp.int32)
    _, _, cache = target.prefill(prior.params, prompt, 256 + tree.size)

    def read(cache, tokens, positions, mask):
        rows = jnp.concatenate([tokens] * 2)
        positions = jnp.broadcast_to(positions, rows.shape)
        mask = jnp.broadcast_to(mask, (4, *mask.shape[-2:]))
        return jax.jit(target.forward)(prior.params, cache, rows, positions, mask)

    causal = jnp.arange(cache.capacity) <= 1 + jnp.arange(length)[:, None]
    _, _, cache = read(cache, tokens[:, :length], 1 + jnp.arange(length), causal)
    cache = type(cache)(cache.layers, cache.lengths + length, cache.visible)
    depths = jnp.asarray(tree.depths)
    mask = tree_mask(cache, jnp.asarray(tree.ancestors))
    wide, _, _ = read(cache, nodes, 1 + length + depths, mask[0])

    worst = 0.0
    rescore = jax.jit(partial(target.rescore, prior.params))
    for n in (0, 7, 40, 57):
        path = tree.paths[n][: tree.depths[n] + 1]
        stream = tokens.at[:, length : length + len(path)].set(nodes[:, path])
        for row in range(2):
            alone = rescore(
                prompt[row : row + 1],
                stream[row : row + 1],
                jnp.array([length + len(path)]),
            )
            difference = jnp.abs(alone - wide[row::2, n])
            worst = max(worst, float(difference.max()))
    assert 0 < worst < Engine(target, 1).tie_margin / 20


def test_the_embedded_drafter_is_mixed_with_the_last_logits_of_the_target():
    own = jaxspec.load_pipeline("fruits64").loaded
    alone = jaxspec.load_pipeline("fruits64", drafter="unmixed").loaded
    assert own.drafter.drafter == alone.drafter and own.drafter.weight == 0.4
    jax.tree.map(np.testing.assert_array_equal, own.params, alone.params)


def test_embedded_bundles_are_found_by_name_and_folders_by_path(tmp_path, monkeypatch):
    assert find_folder() == embedded_folder() / DEFAULT
    assert {DEFAULT, "fruits64"} <= set(embedded_names())
    monkeypatch.chdir(tmp_path)
    assert find_folder("fruits64") == embedded_folder() / "fruits64"
    (tmp_path / "fruits64").mkdir()
    assert find_folder("fruits64") == Path("fruits64")  # a folder comes first
    for wrong in ("fruits", tmp_path / "nothing", "../fruits64"):
        with pytest.raises(CheckpointError, match="no checkpoint folder.*fruits64"):
            find_folder(wrong)


@pytest.mark.slow
def test_images_of_the_embedded_model_of_captions_have_the_color_of_their_words():
    """Nine images each, of things that have one color."""
    pipe = jaxspec.load_pipeline("emoji64", drafter=None)
    prompts = ["red apple, 3d", "green tree, flat"]
    out = pipe(prompts=[p for p in prompts for _ in range(9)], seed=0, batch_size=9)
    red, green = np.stack(out.images).reshape(2, -1, 3).mean(1)
    assert red[0] - red[1] > green[0] - green[1] + 10
