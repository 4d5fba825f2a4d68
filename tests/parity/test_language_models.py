# ruff: noqa: E402
"""Decoders in Llama's names against `transformers`, converted by the library."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from jaxspec.convert.families import llama
from jaxspec.core.kv_cache import init_cache, tree_mask
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.trees.tree import Tree
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted
from tests.parity.language_models import (
    chameleon,
    emu3,
    inner,
    llama_model,
    qwen2,
    qwen3,
    reference,
)
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity

score = jax.jit(Transformer.score, static_argnames=("self", "feature_layers"))
extend = jax.jit(Transformer.extend, static_argnames=("self", "feature_layers"))
ROPE = dict(rope_theta=10000.0)
SCALED = {
    "linear": dict(ROPE, rope_type="linear", factor=4.0),
    "llama3": dict(
        ROPE,
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=16,
    ),
    "yarn": dict(
        ROPE, rope_type="yarn", factor=4.0, original_max_position_embeddings=16
    ),
}


MODELS = {
    "llama": llama_model,
    "llama, tied": lambda: llama_model(tie_word_embeddings=True),
    **{
        f"llama, {name}": lambda entry=entry: llama_model(rope_parameters=entry)
        for name, entry in SCALED.items()
    },
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3, tied": lambda: qwen3(tie_word_embeddings=True),
    "chameleon 7B": lambda: chameleon(False),
    "chameleon 34B": lambda: chameleon(True),
    "emu3": emu3,
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def both(request):
    torch.manual_seed(0)
    model = randomized(request.param(), seed=0)
    decoder, _ = inner(model)
    decoder.embed_tokens.weight.mul_(0.3)
    state = {k: v for k, v in model.state_dict().items()}
    if model.config.get_text_config().tie_word_embeddings:
        state.pop("lm_head.weight", None)  # as it is saved
    checkpoint = converted(state, config=model.config.to_dict())
    return Transformer(checkpoint.config), checkpoint.params, model


def tokens_of(model, rows=2, length=14):
    torch.manual_seed(1)
    return torch.randint(7, model.config.vocab_size, (rows, length))


def test_scores_and_feature_layers_agree(both):
    model, params, oracle = both
    tokens = tokens_of(model)
    logits, features = score(model, params, None, as_jax(tokens), feature_layers=(0, 1))
    expected, layers = reference(oracle, tokens)
    assert_close(logits, expected, atol=1e-4)
    assert_close(features, torch.cat(layers, dim=-1), atol=1e-4)
    assert expected.std() > 0.3
    with pytest.raises(AssertionError):  # a layer further on
        _, other = score(model, params, None, as_jax(tokens), feature_layers=(1, 2))
        assert_close(other, torch.cat(layers, dim=-1), atol=1e-2)


def test_a_tree_on_a_cache_agrees_with_its_paths(both):
    model, params, oracle = both
    c = model.config
    tree = Tree.from_paths([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])
    prefix, nodes = tokens_of(model, 1, 5), tokens_of(model, 1, 14)[:, -tree.size :]
    cache = init_cache(
        c.layers, 1, c.num_kv_heads, 5 + tree.size, c.head_size, jnp.float32
    )
    for part in (prefix[:, :3], prefix[:, 3:]):  # two pieces, then the tree
        size, start = part.shape[1], int(cache.lengths[0])
        mask = tree_mask(cache, jnp.tril(jnp.ones((size, size), bool)))
        positions = start + jnp.arange(size)[None]
        _, _, cache = extend(model, params, cache, as_jax(part), positions, mask)
        cache = replace(cache, lengths=cache.lengths + size)
    depths, mask = (
        jnp.asarray(tree.depths),
        tree_mask(cache, jnp.asarray(tree.ancestors)),
    )
    logits, _, _ = extend(model, params, cache, as_jax(nodes), 5 + depths[None], mask)
    for node in range(tree.size):
        path = np.flatnonzero(tree.ancestors[node])
        sequence = torch.cat([prefix, nodes[:, path]], dim=1)
        assert_close(logits[:, node], reference(oracle, sequence)[0][:, -1], atol=1e-4)


def test_greedy_generations_are_equal(both):
    model, params, oracle = both
    actual = expected = tokens_of(model, 2, 4)
    for _ in range(8):
        best = reference(oracle, expected)[0][:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, best], dim=1)
        padded = torch.nn.functional.pad(actual, (0, 12 - actual.shape[1]))
        at = jnp.full(2, actual.shape[1] - 1)
        logits = score(model, params, None, as_jax(padded), at=at)[0][:, 0]
        best = torch.tensor(np.asarray(jnp.argmax(logits, -1)), dtype=torch.long)
        actual = torch.cat([actual, best[:, None]], dim=1)
    assert torch.equal(actual, expected)


def test_unpermuted_rotary_pairs_are_detected(monkeypatch):
    """Control: queries and keys in the channel order of the file."""
    oracle = randomized(llama_model(), seed=0)
    rules = llama.decoder_rules

    def unmoved(*arguments):
        return tuple(
            replace(r, transform=r.transform.removesuffix("_rotary"))
            for r in rules(*arguments)
        )

    monkeypatch.setattr(llama, "decoder_rules", unmoved)
    checkpoint = converted(oracle.state_dict(), config=oracle.config.to_dict())
    tokens = tokens_of(Transformer(checkpoint.config))
    logits, _ = score(
        Transformer(checkpoint.config), checkpoint.params, None, as_jax(tokens)
    )
    with pytest.raises(AssertionError):
        assert_close(logits, reference(oracle, tokens)[0], atol=1e-2)


@pytest.mark.parametrize("make", [llama_model, qwen3, lambda: chameleon(False), emu3])
def test_omitted_config_entries_have_the_defaults_of_the_original_code(make):
    """transformers may omit default values from the config of a part."""
    model = randomized(make(), seed=0)
    config_json = model.config.to_dict()
    partial = {**config_json, "text_config": dict(config_json.get("text_config") or {})}
    for part in (partial, partial["text_config"]):
        for name in ("rms_norm_eps", "rope_parameters", "rope_theta"):
            part.pop(name, None)
    whole, checkpoint = (
        converted(model.state_dict(), config=c) for c in (config_json, partial)
    )
    assert checkpoint.config == whole.config


def test_bfloat16_stays_within_its_precision():
    """The error of bfloat16 is at most twice that of transformers."""
    oracle = randomized(llama_model(), seed=0)
    state = {k: v.bfloat16() for k, v in oracle.state_dict().items()}
    checkpoint = converted(state, config=oracle.config.to_dict())
    assert checkpoint.params["head"].dtype == jnp.bfloat16
    oracle.load_state_dict(state)  # the same rounded weights, in float32
    tokens = tokens_of(Transformer(checkpoint.config))
    exact = reference(oracle, tokens)[0]
    half = reference(oracle.bfloat16(), tokens)[0].float()
    actual, _ = score(
        Transformer(checkpoint.config), checkpoint.params, None, as_jax(tokens)
    )
    error = float(jnp.abs(actual - as_jax(exact)).max())
    assert 0 < error <= 2 * float((half - exact).abs().max())


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_norms_stored_once_for_the_heads_of_a_shard(shards):
    """Lumina-mGPT as released: `q_norm` and `k_norm` are `[shards, F]`."""
    torch.manual_seed(0)
    model = randomized(chameleon(False), seed=0)
    state = dict(model.state_dict())
    for name in [name for name in state if "_norm." in name and "self_attn" in name]:
        heads = len(state[name])
        count = min(shards, heads)
        stored = state[name][:: heads // count].clone()
        state[name].copy_(stored.repeat_interleave(heads // count, 0))  # the model's
        state[name] = stored
    checkpoint = converted(state, config=model.config.to_dict())
    tokens, params = tokens_of(model), checkpoint.params
    scores, _ = reference(model, tokens)
    actual, _ = score(Transformer(checkpoint.config), params, None, as_jax(tokens))
    assert_close(actual, scores, atol=1e-4)
    if shards > 1:  # the control: heads of one shard lie beside one another
        norm = params["layers_0"]["attention"]["q_norm"]
        norm["scale"] = norm["scale"][jnp.array([0, 2, 1, 3])]
        wrong, _ = score(Transformer(checkpoint.config), params, None, as_jax(tokens))
        with pytest.raises(AssertionError):
            assert_close(wrong, scores, atol=1e-2)
