"""Eight-bit matrices: small errors, and drafts that stay exact."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.bundle import load_bundle
from jaxspec.checkpoint import named_leaves
from jaxspec.config import TransformerConfig
from jaxspec.helpers import bundled_drafter
from jaxspec.models.transformer import Transformer
from jaxspec.nn.quantize import quantized
from jaxspec.pipeline import Settings, draw
from jaxspec.spec.tree import Tree
from jaxspec.trees import parse_tree
from tests.models.tiny import random_params

CONFIG = TransformerConfig(
    vocab_size=19, layers=2, width=32, heads=8, kv_heads=2, grid=3, classes=3
)


def restored(params):
    """The floating-point matrices that eight-bit ones stand for."""
    if not isinstance(params, dict):
        return params
    found = {}
    for name, x in params.items():
        if name + "_scale" in params:
            x = x * params[name + "_scale"]
        if not name.endswith("_scale"):
            found[name] = restored(x)
    return found


@pytest.mark.parametrize("change", [{}, {"qkv_bias": True}, {"tied_head": True}])
def test_scores_are_those_of_the_rounded_matrices(change):
    config = replace(CONFIG, **change)
    params = random_params(config)
    small, tokens = quantized(params), jnp.arange(18).reshape(2, 9)
    labels = jnp.array([0, 2])
    found, _ = Transformer(config).score(small, labels, tokens)
    wanted, _ = Transformer(config).score(restored(small), labels, tokens)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    exact, _ = Transformer(config).score(params, labels, tokens)
    assert 0 < jnp.abs(found - exact).max() < 0.1 * jnp.abs(exact).max()


def test_every_matrix_is_rounded_to_half_a_step_of_its_column():
    params = random_params(CONFIG)
    small, whole = quantized(params), dict(named_leaves(params))
    back = dict(named_leaves(restored(small)))
    kinds = {path: x.dtype for path, x in named_leaves(small)}
    for path, x in whole.items():
        if path == "head" or path.endswith("/kernel"):
            assert kinds[path] == jnp.int8
            step = jnp.max(jnp.abs(x), axis=0) / 127
            assert (jnp.abs(back[path] - x) <= 0.501 * step).all()
        else:
            np.testing.assert_array_equal(back[path], x)
    assert jax.tree.structure(restored(small)) == jax.tree.structure(params)


def test_a_column_of_zeros_stays_so():
    small = quantized({"head": jnp.zeros((4, 3))})
    assert (small["head"] == 0).all() and np.isfinite(small["head_scale"]).all()


@pytest.mark.slow
def test_the_embedded_model_draws_the_same_with_and_without_drafts():
    bundle = load_bundle(int8=True)
    helper = bundled_drafter(bundle)
    settings = Settings((3, 5), batch=2)
    fast = draw(bundle, settings, parse_tree("optimal-8", 8), helper=helper)
    plain = draw(bundle, settings, Tree.root())
    np.testing.assert_array_equal(fast.tokens, plain.tokens)
    assert fast.tokens_per_call > 2  # the drafter was quantized as well
    own = {x.dtype.name for _, x in named_leaves(helper.params)}
    assert "int8" in own
