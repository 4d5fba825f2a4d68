# ruff: noqa: E402
"""Decoders in Llama's names against `transformers`, converted by the library."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxspec.convert.families import llama
from jaxspec.models.transformer import Transformer
from jaxspec.spec.cache import init_cache, tree_mask
from jaxspec.spec.tree import Tree
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity

score = jax.jit(Transformer.score, static_argnames=("self", "feature_layers"))
extend = jax.jit(Transformer.extend, static_argnames=("self", "feature_layers"))
SIZES = dict(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
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


def llama_model(**changes):
    config = transformers.LlamaConfig(**{**SIZES, **changes})
    return transformers.LlamaForCausalLM(config)


def qwen2():
    config = transformers.Qwen2Config(**SIZES, use_sliding_window=False)
    return transformers.Qwen2ForCausalLM(config)


def qwen3(**changes):
    config = transformers.Qwen3Config(**SIZES, head_dim=12, **changes)
    return transformers.Qwen3ForCausalLM(config)


def chameleon(swin, **changes):
    names = {"<image>": 4, "IMGIMGAZ": 5, "IMGIMGBZ": 6}
    config = transformers.ChameleonConfig(
        **{**SIZES, **changes},
        swin_norm=swin,
        vocabulary_map=names,
        vq_config=dict(
            embed_dim=8,
            num_embeddings=32,
            latent_channels=8,
            resolution=32,
            base_channels=32,
            channel_multiplier=[1, 2],
            num_res_blocks=1,
        ),
    )
    return transformers.ChameleonForConditionalGeneration(config)


def emu3():
    text = transformers.Emu3TextConfig(
        **SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    names = {"<image>": 4, "<|extra_200|>": 5}
    names |= {f"<|visual token {i:06d}|>": 6 + i for i in range(32)}
    config = transformers.Emu3Config(
        text_config=text,
        vocabulary_map=names,
        vq_config=dict(
            codebook_size=32,
            embed_dim=4,
            latent_channels=4,
            base_channels=32,
            channel_multiplier=[1, 2],
            num_res_blocks=1,
            attn_resolutions=[1],
            hidden_size=64,
        ),
    )
    return transformers.Emu3ForConditionalGeneration(config)


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


def inner(model):
    """The decoder without the head, and the head."""
    decoder = model.model
    for name in ("language_model", "text_model"):
        decoder = getattr(decoder, name, decoder)
    return decoder, model.lm_head


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def both(request):
    torch.manual_seed(0)
    model = randomized(request.param(), seed=0)
    decoder, _ = inner(model)
    decoder.embed_tokens.weight.mul_(0.3)
    state = {k: v for k, v in model.state_dict().items()}
    if model.config.get_text_config().tie_word_embeddings:
        state.pop("lm_head.weight", None)  # as it is saved
    found = converted(state, config=model.config.to_dict())
    return Transformer(found.config), found.params, model


def theirs(model, tokens):
    """Scores and the outputs of all layers but the last, which is normed."""
    decoder, head = inner(model)
    out = decoder(input_ids=tokens, output_hidden_states=True, use_cache=False)
    return head(out.last_hidden_state), out.hidden_states[1:-1]


def tokens_of(model, rows=2, length=14):
    torch.manual_seed(1)
    return torch.randint(7, model.config.vocab_size, (rows, length))


def test_scores_and_tapped_layers_agree(both):
    model, params, oracle = both
    tokens = tokens_of(model)
    logits, features = score(model, params, None, as_jax(tokens), feature_layers=(0, 1))
    wanted, layers = theirs(oracle, tokens)
    assert_close(logits, wanted, atol=1e-4)
    assert_close(features, torch.cat(layers, dim=-1), atol=1e-4)
    assert wanted.std() > 0.3
    with pytest.raises(AssertionError):  # a layer further on
        _, other = score(model, params, None, as_jax(tokens), feature_layers=(1, 2))
        assert_close(other, torch.cat(layers, dim=-1), atol=1e-2)


def test_a_tree_on_a_cache_agrees_with_its_paths(both):
    model, params, oracle = both
    c = model.config
    tree = Tree.from_paths([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])
    given, drawn = tokens_of(model, 1, 5), tokens_of(model, 1, 14)[:, -tree.size :]
    cache = init_cache(
        c.layers, 1, c.num_kv_heads, 5 + tree.size, c.head_size, jnp.float32
    )
    for part in (given[:, :3], given[:, 3:]):  # two pieces, then the tree
        size, start = part.shape[1], int(cache.lengths[0])
        mask = tree_mask(cache, jnp.tril(jnp.ones((size, size), bool)))
        places = start + jnp.arange(size)[None]
        _, _, cache = extend(model, params, cache, as_jax(part), places, mask)
        cache = replace(cache, lengths=cache.lengths + size)
    depths, mask = (
        jnp.asarray(tree.depths),
        tree_mask(cache, jnp.asarray(tree.ancestors)),
    )
    logits, _, _ = extend(model, params, cache, as_jax(drawn), 5 + depths[None], mask)
    for node in range(tree.size):
        path = np.flatnonzero(tree.ancestors[node])
        stream = torch.cat([given, drawn[:, path]], dim=1)
        assert_close(logits[:, node], theirs(oracle, stream)[0][:, -1], atol=1e-4)


def test_greedy_generations_are_equal(both):
    model, params, oracle = both
    mine = stream = tokens_of(model, 2, 4)
    for _ in range(8):
        best = theirs(oracle, stream)[0][:, -1].argmax(-1, keepdim=True)
        stream = torch.cat([stream, best], dim=1)
        padded = torch.nn.functional.pad(mine, (0, 12 - mine.shape[1]))
        at = jnp.full(2, mine.shape[1] - 1)
        ours = score(model, params, None, as_jax(padded), at=at)[0][:, 0]
        best = torch.tensor(np.asarray(jnp.argmax(ours, -1)), dtype=torch.long)
        mine = torch.cat([mine, best[:, None]], dim=1)
    assert torch.equal(mine, stream)


def test_rotary_pairs_that_are_not_moved_are_noticed(monkeypatch):
    """The negative control: rows of queries and keys as they lie in the file."""
    oracle = randomized(llama_model(), seed=0)
    rules = llama.decoder_rules

    def unmoved(*arguments):
        return tuple(
            replace(r, transform=r.transform.removesuffix("_rotary"))
            for r in rules(*arguments)
        )

    monkeypatch.setattr(llama, "decoder_rules", unmoved)
    found = converted(oracle.state_dict(), config=oracle.config.to_dict())
    tokens = tokens_of(Transformer(found.config))
    logits, _ = score(Transformer(found.config), found.params, None, as_jax(tokens))
    with pytest.raises(AssertionError):
        assert_close(logits, theirs(oracle, tokens)[0], atol=1e-2)


@pytest.mark.parametrize("make", [llama_model, qwen3, lambda: chameleon(False), emu3])
def test_what_a_config_leaves_out_is_what_its_own_code_takes(make):
    """transformers may leave out of a part's config what is usual for the part."""
    model = randomized(make(), seed=0)
    said = model.config.to_dict()
    less = {**said, "text_config": dict(said.get("text_config") or {})}
    for part in (less, less["text_config"]):
        for name in ("rms_norm_eps", "rope_parameters", "rope_theta"):
            part.pop(name, None)
    whole, found = (converted(model.state_dict(), config=c) for c in (said, less))
    assert found.config == whole.config


def test_bfloat16_stays_within_its_precision():
    """Ours in bfloat16 is as near to float32 as theirs is, up to a factor of two."""
    oracle = randomized(llama_model(), seed=0)
    state = {k: v.bfloat16() for k, v in oracle.state_dict().items()}
    found = converted(state, config=oracle.config.to_dict())
    assert found.params["head"].dtype == jnp.bfloat16
    oracle.load_state_dict(state)  # the same rounded weights, in float32
    tokens = tokens_of(Transformer(found.config))
    exact = theirs(oracle, tokens)[0]
    half = theirs(oracle.bfloat16(), tokens)[0].float()
    ours, _ = score(Transformer(found.config), found.params, None, as_jax(tokens))
    error = float(jnp.abs(ours - as_jax(exact)).max())
    assert 0 < error <= 2 * float((half - exact).abs().max())


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_norms_stored_once_for_the_heads_of_a_shard(shards):
    """Lumina-mGPT as released: `q_norm` and `k_norm` are `[shards, F]`."""
    torch.manual_seed(0)
    model = randomized(chameleon(False), seed=0)
    state = dict(model.state_dict())
    for name in [name for name in state if "_norm." in name and "self_attn" in name]:
        heads = len(state[name])
        kept = min(shards, heads)
        stored = state[name][:: heads // kept].clone()
        state[name].copy_(stored.repeat_interleave(heads // kept, 0))  # the model's
        state[name] = stored
    found = converted(state, config=model.config.to_dict())
    tokens, params = tokens_of(model), found.params
    scores, _ = theirs(model, tokens)
    ours, _ = score(Transformer(found.config), params, None, as_jax(tokens))
    assert_close(ours, scores, atol=1e-4)
    if shards > 1:  # the control: heads of one shard lie beside one another
        norm = params["layers_0"]["attention"]["q_norm"]
        norm["scale"] = norm["scale"][jnp.array([0, 2, 1, 3])]
        wrong, _ = score(Transformer(found.config), params, None, as_jax(tokens))
        with pytest.raises(AssertionError):
            assert_close(wrong, scores, atol=1e-2)
