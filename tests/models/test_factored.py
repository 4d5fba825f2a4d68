"""Transformers over tokens of several sub-codes (BAE, Open-MAGVIT2)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxspec.config import TransformerConfig
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.common.target_params import shared_target_params
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.nn.quantize import quantized
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing import assert_same_tokens
from tests.models.tiny import random_params
from tests.params import random_like

CONFIG = TransformerConfig(
    vocab_size=12, layers=2, width=32, heads=2, grid=4, classes=3, factors=(3, 4)
)
PARAMS = random_params(CONFIG)
PARAMS = {**PARAMS, **{f"head_{i}": 20 * PARAMS[f"head_{i}"] for i in range(2)}}


def scores(config, params):
    tokens = jnp.arange(32).reshape(2, 16) % 12
    return Transformer(config).score(params, jnp.array([0, 2]), tokens)[0]


def dependence(logits):
    """Largest distance of the law of tokens from the product of its marginals."""
    joint = np.float64(jax.nn.softmax(logits)).reshape(-1, 3, 4)
    product = joint.sum(2)[:, :, None] * joint.sum(1)[:, None, :]
    return np.abs(joint - product).max()


def test_sub_codes_are_independent_given_what_came_before():
    assert dependence(scores(CONFIG, PARAMS)) < 1e-6
    plain = replace(CONFIG, factors=())
    params = random_params(plain)
    assert dependence(scores(plain, {**params, "head": 20 * params["head"]})) > 0.01


def test_tables_and_outputs_are_as_small_as_the_sub_codes():
    shapes = jax.tree.map(jnp.shape, PARAMS)
    assert shapes["embedding"]["part_0"]["embedding"] == (3, 16)
    assert shapes["embedding"]["part_1"]["embedding"] == (4, 16)
    assert (shapes["head_0"], shapes["head_1"]) == ((32, 3), (32, 4))


def test_a_drafter_reads_the_embeddings_and_outputs_of_whole_tokens():
    shared = shared_target_params(CONFIG, PARAMS, norm=False)
    assert shared["embedding"].shape == (12, 32)
    tokens = jnp.arange(12)[None]
    whole = Transformer(CONFIG).embed(
        PARAMS, jnp.array([0]), tokens, jnp.array([False])
    )
    assert_allclose(shared["embedding"], whole[0, 1:], atol=1e-6)


@pytest.mark.variants(1)
@pytest.mark.parametrize("int8", [False, True])
def test_sub_codes_are_verified_jointly(int8):
    """A tree of whole tokens; the tokens are those of plain decoding."""
    block = DFlashConfig(4, 1, 32, 2, ffn_width=48, feature_layers=(0, 1))
    drafter = DFlash(block, CONFIG)
    params = quantized(PARAMS) if int8 else PARAMS
    assert params["head_1"].dtype == (jnp.int8 if int8 else jnp.float32)
    own = random_like(drafter.init_params, seed=3)
    out = assert_same_tokens(
        Transformer(CONFIG).as_target(),
        params,
        drafter,
        drafter.with_target_params(own, params),
        Tree.named("0,1,2,00,01,10,000"),
        jnp.array([0, 2]),
        length=16,
        batch=2,
        sampling=Sampling.create(2, cfg_scale=2.0),
    )
    assert out.tokens.max() > 3  # both sub-codes vary
    assert out.stats.calls.sum() < 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"factors": (3, 5)}, "vocab_size=12"),
        ({"factors": (12, 1)}, "at least 2"),
        ({"tied_head": True}, "tied_head"),
        ({"extra_tokens": 1}, "extra_tokens"),
        ({"factors": (2, 2, 3)}, "width=32"),
    ],
)
def test_impossible_factors_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        replace(CONFIG, **change)
