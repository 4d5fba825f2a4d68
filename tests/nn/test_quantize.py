"""Int8 quantization: small errors, and drafts that stay exact."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import named_leaves
from jaxspec.config import TransformerConfig
from jaxspec.models.transformer.model import Transformer
from jaxspec.nn.quantize import quantized
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.prompts import Prompts
from jaxspec.speculative.trees.parsing import parse_tree
from jaxspec.speculative.trees.tree import Tree
from tests.models.tiny import random_params

CONFIG = TransformerConfig(
    vocab_size=19, layers=2, width=32, heads=8, kv_heads=2, grid=3, classes=3
)


def dequantized(params):
    """Parameters with floating-point matrices equal to the quantized ones."""
    if not isinstance(params, dict):
        return params
    result = {}
    for name, x in params.items():
        if name + "_scale" in params:
            x = x * params[name + "_scale"]
        if not name.endswith("_scale"):
            result[name] = dequantized(x)
    return result


@pytest.mark.slow
@pytest.mark.variants(1)
@pytest.mark.parametrize("change", [{}, {"qkv_bias": True}, {"tied_head": True}])
def test_logits_are_those_of_the_rounded_matrices(change):
    config = replace(CONFIG, **change)
    params = random_params(config)
    int8_params, tokens = quantized(params), jnp.arange(18).reshape(2, 9)
    labels = jnp.array([0, 2])
    logits, _ = Transformer(config).score(int8_params, labels, tokens)
    expected, _ = Transformer(config).score(dequantized(int8_params), labels, tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    exact, _ = Transformer(config).score(params, labels, tokens)
    assert 0 < jnp.abs(logits - exact).max() < 0.1 * jnp.abs(exact).max()


def test_every_matrix_is_rounded_to_half_a_step_of_its_column():
    params = random_params(CONFIG)
    int8_params = quantized(params)
    rounded = dict(named_leaves(dequantized(int8_params)))
    dtypes = {path: x.dtype for path, x in named_leaves(int8_params)}
    for path, x in named_leaves(params):
        if path == "head" or path.endswith("/kernel"):
            assert dtypes[path] == jnp.int8
            step = jnp.max(jnp.abs(x), axis=0) / 127
            assert (jnp.abs(rounded[path] - x) <= 0.501 * step).all()
        else:
            np.testing.assert_array_equal(rounded[path], x)
    assert jax.tree.structure(dequantized(int8_params)) == jax.tree.structure(params)


def test_a_column_of_zeros_stays_zero():
    params = quantized({"head": jnp.zeros((4, 3))})
    assert (params["head"] == 0).all() and np.isfinite(params["head_scale"]).all()


@pytest.mark.slow
def test_the_embedded_model_generates_the_same_with_and_without_drafts():
    bundle = load_bundle(int8=True)
    loaded = load_drafter("own", bundle)
    prompts, settings = Prompts.from_classes([3, 5]), GenerationConfig(batch_size=2)
    fast = generate(
        bundle, prompts, settings, parse_tree("optimal-8", 8), loaded=loaded
    )
    plain = generate(bundle, prompts, settings, Tree.root())
    np.testing.assert_array_equal(fast.tokens, plain.tokens)
    assert fast.tokens_per_call > 2  # the drafter was quantized as well
    dtypes = {x.dtype.name for _, x in named_leaves(loaded.params)}
    assert "int8" in dtypes
