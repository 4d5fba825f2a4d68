"""Orders of the tokens of a grid, and models of any order (RAR)."""

from dataclasses import replace
from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxspec.config import TokenizerConfig, TransformerConfig
from jaxspec.config.orders import cells_of, levels_of
from jaxspec.config.residual import ResidualTokenizerConfig
from jaxspec.config.token_kinds import row_ends, same_tokens
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing import assert_same_tokens
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.objectives import any_order_loss, next_loss
from tests.models.tiny import random_params
from tests.params import random_like

ORDERS = ("raster", "coarse", "halton")
CONFIG = TransformerConfig(
    vocab_size=9,
    layers=2,
    width=32,
    heads=2,
    grid=4,
    classes=3,
    next_cell=True,
    token_dropout=0.0,
    residual_dropout=0.0,
    ffn_dropout=0.0,
)
PARAMS = random_params(CONFIG, seed=4)
PARAMS = {**PARAMS, "head": 10 * PARAMS["head"]}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grid", [1, 3, 4, 6])
def test_an_order_has_every_cell_once(order, grid):
    assert sorted(cells_of(order, grid)) == list(range(grid * grid))


def test_levels_are_grids_of_half_the_distance():
    levels = levels_of(4)
    assert levels[0] == (0,) and levels[1] == (2, 8, 10)
    assert [sum(map(len, levels[: n + 1])) for n in range(3)] == [1, 4, 16]
    known = {cell for level in levels_of(6)[:-1] for cell in level}
    assert known == {i * 6 + j for i in (0, 2, 4) for j in (0, 2, 4)}


@pytest.mark.parametrize("order", ORDERS[1:])
def test_a_model_in_an_order_is_that_model_at_the_positions_of_its_cells(order):
    tokens = jnp.arange(32).reshape(2, 16) % 9
    labels = jnp.array([0, 2])
    there = replace(CONFIG, order=order)
    found, _ = Transformer(there).score(PARAMS, labels, tokens)
    positions = np.concatenate([[0], 1 + np.array(cells_of(order, 4))])
    following = np.broadcast_to(np.append(positions[1:], 17), (2, 17))
    score = partial(Transformer(CONFIG).score, PARAMS, labels, tokens)
    right, _ = score(positions=jnp.asarray(positions), following=jnp.asarray(following))
    assert_allclose(found, right, atol=1e-5)
    wrong, _ = score(positions=jnp.asarray(positions))
    assert np.abs(found - wrong).max() > 0.01


@pytest.mark.variants(1)
@pytest.mark.parametrize("order", reversed(ORDERS))
def test_drafts_in_any_order_leave_the_tokens_as_they_are(order):
    config = replace(CONFIG, order=order)
    block = DFlashConfig(4, 1, 32, 2, ffn_width=48, feature_layers=(0, 1))
    drafter = DFlash(block, config)
    own = random_like(drafter.init_params, seed=3)
    out = assert_same_tokens(
        Transformer(config).as_target(),
        PARAMS,
        drafter,
        drafter.with_target_params(own, PARAMS),
        Tree.named("0,1,2,00,01,10,000"),
        jnp.array([0, 2]),
        length=16,
        batch=2,
        sampling=Sampling.create(2, cfg_scale=2.0),
    )
    assert out.stats.calls.sum() < 32


def test_the_loss_of_random_orders_is_that_of_all_orders_one_by_one():
    """Each token of each of the 24 orders of four cells from a pass of its own."""
    config = replace(CONFIG, grid=2)
    table = PARAMS["next_cell"]["cells"]["embedding"][:4]
    params = {**PARAMS, "next_cell": {"cells": {"embedding": 30 * table}}}
    model, tokens = Transformer(config), np.array([3, 1, 8, 5])
    score = jax.jit(partial(model.score, params, jnp.array([1])))
    losses = []
    for order in permutations(range(4)):
        total = 0.0
        for i, cell in enumerate(order):
            known = jnp.asarray(tokens[list(order[:i])], jnp.int32)[None]
            places = np.array([0, *(1 + c for c in order[:i])])
            following = jnp.asarray(np.append(places[1:], 1 + cell))[None]
            logits, _ = score(known, positions=jnp.asarray(places), following=following)
            total -= float(jax.nn.log_softmax(logits[0, -1])[tokens[cell]])
        losses.append(total / 4)
    assert np.ptp(losses) > 0.05
    loss = jax.jit(partial(any_order_loss, model, share=1.0))
    batch = jnp.asarray(tokens, jnp.int32)[None], jnp.array([1]), jnp.array([False])
    found = [float(loss(params, *batch, jax.random.key(i))) for i in range(40)]
    nearest = np.abs(np.subtract.outer(found, losses)).min(axis=1)
    assert nearest.max() < 1e-4
    assert len(np.unique(np.round(found, 4))) > 12
    fixed = partial(any_order_loss, model, share=0.0)
    expected = next_loss(model, params, *batch, jax.random.key(0))
    assert_allclose(fixed(params, *batch, jax.random.key(0)), expected, rtol=1e-5)


TOKENIZER = TokenizerConfig(
    image_size=16,
    patch_size=4,
    channels=8,
    multipliers=(1,),
    encoder_blocks=1,
    decoder_blocks=1,
    attention="middle",
    groups=4,
    latent_channels=8,
    codebook_size=16,
    code_dim=4,
)


@pytest.mark.parametrize("order", ORDERS[1:])
def test_a_tokenizer_gives_and_takes_tokens_in_its_order(order):
    plain, ordered = Tokenizer(TOKENIZER), Tokenizer(replace(TOKENIZER, order=order))
    params = random_like(plain.init, seed=1)
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1)
    codes, found = plain.encode(params, images), ordered.encode(params, images)
    assert_array_equal(found, codes[:, list(cells_of(order, 4))])
    assert not np.array_equal(found, codes)
    whole = plain.decode(params, codes)
    assert_allclose(ordered.decode(params, found), whole, atol=1e-6)
    assert_allclose(ordered.decode_partial(params, found), whole, atol=1e-6)


def test_previews_in_coarse_order_are_of_the_whole_image():
    ordered = Tokenizer(replace(TOKENIZER, order="coarse"))
    params = random_like(ordered.init, seed=1)
    tokens = np.full((2, 16), -1)
    assert not ordered.decode_partial(params, jnp.asarray(tokens, jnp.int32)).any()
    tokens[:, :4] = [[1, 2, 3, 4], [5, 6, 7, 8]]
    found = ordered.decode_partial(params, jnp.asarray(tokens, jnp.int32))
    rows = np.array([0, 0, 2, 2])  # of two equally near cells the first
    grid = np.stack([tokens[:, :4].reshape(2, 2, 2)[:, i // 2] for i in rows], 1)
    whole = np.stack([grid[..., i // 2] for i in rows], -1).reshape(2, 16)
    right = Tokenizer(TOKENIZER).decode(params, jnp.asarray(whole, jnp.int32))
    assert_allclose(found, right, atol=1e-6)


def test_rows_of_a_coarse_image_are_its_levels():
    assert row_ends(replace(TOKENIZER, order="coarse")) == (1, 4, 16)
    assert row_ends(replace(TOKENIZER, order="halton")) == tuple(range(1, 17))
    coarse = replace(CONFIG, vocab_size=16, order="coarse")
    assert same_tokens(coarse, replace(TOKENIZER, order="coarse"))
    assert not same_tokens(coarse, TOKENIZER)


def test_impossible_orders_are_refused():
    with pytest.raises(ConfigError, match="raster, coarse, halton"):
        replace(CONFIG, order="spiral")
    with pytest.raises(ConfigError, match="about a grid"):
        replace(CONFIG, rope="sequence")
    with pytest.raises(ConfigError, match="another arrangement"):
        networks = replace(TOKENIZER, normalized="none", order="coarse")
        ResidualTokenizerConfig(networks, depth=2)
    block = DFlashConfig(3, 1, 32, 2, ffn_width=48, feature_layers=(0,), above=True)
    with pytest.raises(ConfigError, match="raster order"):
        DFlash(block, replace(CONFIG, order="halton"))
