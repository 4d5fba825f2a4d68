"""Replicated key/value heads do not change the logits."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import TransformerConfig
from jaxspec.models.transformer.kv_groups import copy_kv_heads, needed_copies
from jaxspec.models.transformer.model import Transformer
from tests.models.tiny import random_params

CONFIG = TransformerConfig(
    vocab_size=19, layers=2, width=32, heads=8, kv_heads=2, grid=3, classes=3
)


@pytest.mark.variants(2)
@pytest.mark.parametrize(
    "change", [{}, {"qkv_bias": True, "qk_norm": True}, {"qk_layer_norm": True}]
)
@pytest.mark.parametrize("copies", [2, 4])
def test_copies_do_not_change_the_logits(change, copies):
    config = replace(CONFIG, **change)
    params = random_params(config)
    tokens = jnp.arange(18).reshape(2, 9)
    expected, _ = Transformer(config).score(params, jnp.array([0, 2]), tokens)
    new_config, new_params = copy_kv_heads(config, params, copies)
    assert new_config.num_kv_heads == 2 * copies
    logits, _ = Transformer(new_config).score(new_params, jnp.array([0, 2]), tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_copies_are_made_only_where_they_help():
    copies = {1: 1, 2: 1, 4: 2, 8: 4, 3: 1, 16: 1}
    assert {n: needed_copies(CONFIG, n) for n in copies} == copies
    assert copy_kv_heads(CONFIG, {}, 1) == (CONFIG, {})
