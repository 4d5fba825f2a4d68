"""Copies of key/value heads change where things lie, not what is computed."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import TransformerConfig
from jaxspec.models.kv_groups import copy_kv_heads, needed_copies
from jaxspec.models.transformer import Transformer
from tests.models.tiny import random_params

CONFIG = TransformerConfig(
    vocab_size=19, layers=2, width=32, heads=8, kv_heads=2, grid=3, classes=3
)


@pytest.mark.parametrize(
    "change", [{}, {"qkv_bias": True, "qk_norm": True}, {"qk_layer_norm": True}]
)
@pytest.mark.parametrize("copies", [2, 4])
def test_scores_stay_as_they_are(change, copies):
    config = replace(CONFIG, **change)
    params = random_params(config)
    tokens = jnp.arange(18).reshape(2, 9)
    wanted, _ = Transformer(config).score(params, jnp.array([0, 2]), tokens)
    more, changed = copy_kv_heads(config, params, copies)
    assert more.num_kv_heads == 2 * copies
    found, _ = Transformer(more).score(changed, jnp.array([0, 2]), tokens)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_copies_are_made_only_where_they_help():
    wanted = {1: 1, 2: 1, 4: 2, 8: 4, 3: 1, 16: 1}
    assert {n: needed_copies(CONFIG, n) for n in wanted} == wanted
    assert copy_kv_heads(CONFIG, {}, 1) == (CONFIG, {})
