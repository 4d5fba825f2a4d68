"""Transformer: published sizes, caches, trees and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import parameter_count
from jaxspec.config import TransformerConfig, from_dict, to_dict
from jaxspec.core.kv_cache import init_cache, tree_mask
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.presets import NAMES, preset
from jaxspec.models.transformer.prompts import Caption
from jaxspec.nn import attention
from jaxspec.nn.rope import grid_table
from jaxspec.speculative.trees.tree import Tree
from tests.models.tiny import TINY, random_params

# Published sizes in millions (LlamaGen, class-conditional, and the one caption size).
SIZES = {
    "gpt-b": 110.9,
    "gpt-l": 342.9,
    "gpt-xl": 774.7,
    "gpt-xxl": 1411.0,
    "gpt-xxxl": 3893.0,
    "gpt-1b": 1199.6,
    "gpt-3b": 3096.7,
    "gpt-7b": 6614.6,
}


@pytest.mark.variants(1)
@pytest.mark.parametrize("name", NAMES)
def test_presets_have_the_published_sizes(name):
    assert parameter_count(preset(name)) / 1e6 == pytest.approx(SIZES[name], abs=0.06)
    # A caption preset swaps the class table for an MLP and the null caption.
    config = preset(name, "caption", grid=32)
    d = config.width
    classes, caption = 1001 * d, 2048 * d + d * d + 120 * 2048
    expected = parameter_count(preset(name)) - classes + caption
    assert parameter_count(config) == expected


def test_caption_xl_has_its_published_size_without_the_null_caption():
    count = parameter_count(preset("gpt-xl", "caption")) - 120 * 2048
    assert count / 1e6 == pytest.approx(777.7, abs=0.06)


def test_rotary_angles_of_condition_positions_are_zeros_not_identities():
    table = grid_table(prefix=2, grid=3, head_dim=8, base=10000.0)
    assert table.shape == (2 + 9, 4, 2)
    np.testing.assert_array_equal(table[:2], 0.0)
    # Token 5 of a 3x3 grid is in row 1, column 2; two pairs rotate with each.
    angles = np.array([1.0, 1.0 * 10000**-0.5, 2.0, 2.0 * 10000**-0.5])
    np.testing.assert_allclose(table[2 + 5, :, 0], np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(table[2 + 5, :, 1], np.sin(angles), atol=1e-6)


def caption(rows, config, seed=3):
    features = jax.random.normal(
        jax.random.key(seed), (rows, config.caption_length, config.caption_width)
    )
    valid = jnp.arange(config.caption_length) >= jnp.array([[0], [3], [5]])[:rows]
    return Caption(features, valid)


VARIANTS = {
    "class": {},
    "caption": {"condition": "caption", "caption_length": 6, "caption_width": 10},
    "grouped heads, q/k norms": {"heads": 4, "kv_heads": 2, "qk_norm": True},
    "tied head, biases": {"tied_head": True, "qkv_bias": True},
    "one-dimensional": {"rope": "sequence", "max_length": 9, "ffn_width": 48},
}


@pytest.mark.variants(1)
@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_with_a_cache_equals_scoring_whole_sequences(variant):
    config = from_dict(TransformerConfig, to_dict(TINY) | VARIANTS[variant])
    model, params, rows = Transformer(config), random_params(config), 3
    prompt = jnp.array([0, 3, 1])
    if config.condition == "caption":
        prompt = caption(rows, config)
    tokens = jax.random.randint(jax.random.key(1), (rows, 9), 0, 19)
    whole, features = model.score(params, prompt, tokens, feature_layers=(0, 1))
    target = model.as_target(cfg=False, feature_layers=(0, 1))
    forward = jax.jit(target.forward)
    logits, outputs, cache = target.prefill(params, prompt, 9)
    prefix = config.prefix_length
    np.testing.assert_allclose(logits, whole[:, prefix - 1], atol=1e-5)
    np.testing.assert_allclose(outputs, features[:, :prefix], atol=1e-5)
    for t in range(8):
        slots = jnp.arange(cache.capacity) <= cache.lengths[:, None]
        logits, outputs, cache = forward(
            params,
            cache,
            tokens[:, t : t + 1],
            jnp.full((rows, 1), prefix + t),
            (slots & cache.visible)[:, None],
        )
        cache = type(cache)(cache.layers, cache.lengths + 1, cache.visible)
        np.testing.assert_allclose(logits[:, 0], whole[:, prefix + t], atol=2e-5)
        np.testing.assert_allclose(outputs[:, 0], features[:, prefix + t], atol=2e-5)


def test_a_tree_has_the_logits_of_each_of_its_paths():
    model, params = Transformer(TINY), random_params(TINY)
    tree = Tree.named("0,1,00,01,10,000")
    rows, prompt = 2, jnp.array([1, 2])
    target = model.as_target(cfg=False)
    start = jax.random.randint(jax.random.key(4), (rows, 3), 0, 19)
    nodes = jax.random.randint(jax.random.key(5), (rows, tree.size), 0, 19)
    forward, score = jax.jit(target.forward), jax.jit(model.score)
    _, _, cache = target.prefill(params, prompt, 3 + tree.size)
    causal = jnp.arange(cache.capacity) <= 1 + jnp.arange(3)[:, None]
    _, _, cache = forward(
        params,
        cache,
        start,
        jnp.broadcast_to(1 + jnp.arange(3), (rows, 3)),
        jnp.broadcast_to(causal, (rows, 3, cache.capacity)),
    )
    cache = type(cache)(cache.layers, cache.lengths + 3, cache.visible)
    positions = jnp.broadcast_to(4 + jnp.asarray(tree.depths), (rows, tree.size))
    mask = tree_mask(cache, jnp.asarray(tree.ancestors))
    logits, _, _ = forward(params, cache, nodes, positions, mask)
    for n in range(tree.size):
        path = tree.paths[n][: tree.depths[n] + 1]
        sequence = jnp.concatenate([start, nodes[:, path]], axis=1)
        size = sequence.shape[1]
        padded = jnp.pad(sequence, ((0, 0), (0, 3 + tree.depth + 1 - size)))
        alone, _ = score(params, prompt, padded)
        np.testing.assert_allclose(logits[:, n], alone[:, size], atol=2e-5)


def test_no_token_influences_an_earlier_position():
    model, params = Transformer(TINY), random_params(TINY)
    tokens = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6, 5]])

    def score(table):
        changed = dict(params, embedding={"embedding": table})
        logits, _ = model.score(changed, jnp.array([0]), tokens)
        return logits[0, 1 + 4].sum()  # after token 4, the "5" at index 4

    gradient = jax.grad(score)(params["embedding"]["embedding"])
    tokens_read = set(np.flatnonzero(np.abs(np.asarray(gradient)).sum(-1)))
    assert tokens_read == {3, 1, 4, 5}  # independent of 9, 2 and 6


def test_the_null_condition_ignores_the_prompt():
    model, params = Transformer(TINY), random_params(TINY)
    tokens = jnp.zeros((2, 4), jnp.int32)
    null = jnp.array([True, True])
    logits, _ = model.score(params, jnp.array([0, 3]), tokens, null=null)
    np.testing.assert_array_equal(logits[0], logits[1])
    logits, _ = model.score(params, jnp.array([0, 3]), tokens)
    assert (logits[0] != logits[1]).any()


def test_rescore_equals_scoring_and_ignores_later_tokens():
    model, params = Transformer(TINY), random_params(TINY)
    target = model.as_target(cfg=True)
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 19)
    prompt, index = jnp.array([0, 3]), jnp.array([0, 5])
    scores = target.rescore(params, prompt, tokens, index)
    whole, _ = model.score(params, prompt, tokens)
    np.testing.assert_allclose(scores[0], whole[0, 0], atol=1e-5)
    np.testing.assert_allclose(scores[1], whole[1, 5], atol=1e-5)
    later = jnp.arange(9) >= index[:, None]
    changed = target.rescore(params, prompt, jnp.where(later, 7, tokens), index)
    np.testing.assert_array_equal(scores, changed)


def test_bfloat16_weights_give_float32_logits_near_the_float32_ones():
    model, params = Transformer(TINY), random_params(TINY)
    tokens = jnp.zeros((1, 4), jnp.int32)
    full, _ = model.score(params, jnp.array([0]), tokens)
    short = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    logits, features = model.score(short, jnp.array([0]), tokens, feature_layers=(1,))
    assert logits.dtype == jnp.float32 and features.dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, full, atol=0.1)


def test_cache_has_the_dtype_of_the_weights():
    short = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params(TINY))
    target = Transformer(TINY).as_target(cfg=True)
    cache = target.prefill(short, jnp.array([0]), 4).cache
    assert {x.dtype for pair in cache.layers for x in pair} == {jnp.dtype("bfloat16")}
    assert init_cache(1, 2, 1, 5, 4, jnp.float32).capacity == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads=3 must divide width=32"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads=3 must divide heads=4"),
        ({"head_dim": 6}, "must be a multiple of 4"),
        ({"widht": 3}, "unknown field"),
        ({"rope": "spiral"}, "is not a valid"),
    ],
)
def test_invalid_configurations_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(TransformerConfig, to_dict(TINY) | settings)


def test_attention_in_blocks_of_queries(monkeypatch):
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, 9, 4, 6))
    k, v = (jax.random.normal(key, (2, 2, 11, 6)) for key in keys[1:3])
    mask = jax.random.bernoulli(keys[3], 0.5, (2, 9, 11))
    whole = attention.attend(q, k, v, mask)
    monkeypatch.setattr(attention, "_MAX_QUERIES", 4)
    monkeypatch.setattr(attention, "_QUERY_BLOCK", 4)
    np.testing.assert_allclose(attention.attend(q, k, v, mask), whole, atol=1e-6)


def test_logits_of_one_position_are_those_of_a_whole_pass():
    model, params = Transformer(TINY), random_params(TINY)
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 19)
    prompt, at = jnp.array([0, 3]), jnp.array([4, 9])
    whole, _ = model.score(params, prompt, tokens)
    one, _ = model.score(params, prompt, tokens, at=at)
    np.testing.assert_allclose(one[:, 0], whole[jnp.arange(2), at], atol=1e-6)
