# ruff: noqa: E402
"""One layer of every real size, at its full width; tokenizers whole.

Vocabularies are small: tables and heads are plain matrices. The widest run with
`pytest -m "parity and slow"`.
"""

import jax
import jax.numpy as jnp
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TransformerConfig
from jaxspec.models.t5.model import TextEncoder
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.presets import SIZES
from jaxspec.models.transformer.prompts import Caption
from jaxspec.tokenizers.vqgan.model import PRESETS, Tokenizer
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted
from tests.parity.eagle_twin import Eagle1
from tests.parity.language_models import chameleon, llama_model, qwen2, qwen3, reference
from tests.parity.llamagen_twin import (
    CaptionCondition,
    ClassCondition,
    LlamaGen,
    grid_rotations,
    left_padded,
)
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity

VOCAB, ROWS, LENGTH = 64, 2, 6
RELEASED = ("B", "L", "XL", "XXL", "3B")
score = jax.jit(Transformer.score, static_argnames=("self", "feature_layers"))


def tokens():
    torch.manual_seed(1)
    return torch.randint(7, VOCAB, (ROWS, LENGTH))


@pytest.mark.parametrize("size", RELEASED)
def test_class_conditional_llamagen(size):
    _, heads, width = SIZES[size]
    torch_model = LlamaGen(
        vocab=VOCAB,
        layers=1,
        width=width,
        heads=heads,
        grid=16,
        condition=ClassCondition(3, width),
    )
    torch_model = randomized(torch_model, seed=0)
    checkpoint = converted(torch_model.state_dict(), heads=heads, grid=16)
    ids = torch.tensor([0, 2])
    expected = torch_model(torch_model.cls_embedding(ids), tokens())
    actual, _ = score(
        Transformer(checkpoint.config), checkpoint.params, as_jax(ids), as_jax(tokens())
    )
    assert_close(actual, expected, atol=1e-4)


def test_text_to_image_llamagen():
    _, heads, width = SIZES["XL"]
    torch_model = LlamaGen(
        vocab=VOCAB,
        layers=1,
        width=width,
        heads=heads,
        grid=16,
        condition=CaptionCondition(120, 2048, width),
    )
    torch_model = randomized(torch_model, seed=0)
    checkpoint = converted(torch_model.state_dict(), heads=heads, grid=16)
    torch.manual_seed(2)
    features, real = left_padded(torch.randn(ROWS, 120, 2048), [9, 120])
    expected = torch_model(torch_model.cls_embedding(features), tokens(), real)[:, 119:]
    prompt = Caption(as_jax(features), jnp.asarray(real.numpy()))
    actual, _ = score(
        Transformer(checkpoint.config), checkpoint.params, prompt, as_jax(tokens())
    )
    assert_close(actual[:, 119:], expected, atol=1e-4)


def test_lanterns_drafter():
    _, heads, width = SIZES["XL"]
    config = TransformerConfig(
        vocab_size=VOCAB, layers=36, width=width, heads=heads, condition="caption"
    )
    shared = {
        "embedding": {"embedding": jnp.zeros((VOCAB, width))},
        "head": jnp.zeros((width, VOCAB)),
        "norm": {"scale": jnp.ones(width)},
    }
    torch_model = Eagle1(
        vocab=VOCAB, width=width, heads=heads, kv_heads=heads, hidden=3584
    )
    torch_model = randomized(torch_model, seed=0)
    target = Checkpoint("prior", config, shared)
    checkpoint = converted(torch_model.state_dict(), target=target)
    drafter, length = (
        checkpoint.model,
        124,
    )  # across the last position of the condition
    params = drafter.with_target_params(checkpoint.params, shared)
    torch.manual_seed(3)
    features = torch.randn(1, length, width)
    features /= features.square().mean(-1, keepdim=True).sqrt()
    tokens = torch.randint(VOCAB, (1, length))
    turns = grid_rotations(119, 16, width // heads)[:length]
    positions = jnp.arange(length)[None]
    actual, _ = drafter.network(checkpoint.params).layer(
        params["embedding"][as_jax(tokens)],
        drafter.inputs(params, as_jax(features)),
        drafter.angles(positions),
        jnp.tril(jnp.ones((1, length, length), bool)),
    )
    assert_close(actual, torch_model(features, tokens, turns), atol=1e-4)


@pytest.mark.parametrize("name", ["vq-16", "vq-8"])
def test_tokenizers(name):
    config = PRESETS[name]
    janus = transformers.JanusVQVAEConfig(
        channel_multiplier=list(config.multipliers), num_patches=4
    )
    model = randomized(transformers.JanusVQVAE(janus), seed=0)
    side = 4 * config.downsampling
    checkpoint = converted(model.state_dict(), image_size=side)
    assert checkpoint.config.codebook_size == 16384
    torch.manual_seed(1)
    images = torch.rand(1, 3, side, side) * 2 - 1
    codes = torch.randint(16384, (1, 16))
    tokenizer = Tokenizer(checkpoint.config)
    vectors = model.quant_conv(model.encoder(images)).permute(0, 2, 3, 1)
    actual = jax.jit(tokenizer.embed)(
        checkpoint.params, as_jax(images.permute(0, 2, 3, 1))
    )
    assert_close(actual, vectors, atol=1e-4)
    pixels = model.decode(codes).permute(0, 2, 3, 1)
    actual = jax.jit(tokenizer.decode)(checkpoint.params, as_jax(codes))
    assert_close(actual, pixels, atol=1e-4)


def test_flan_t5_xl():
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=2048,
        d_kv=64,
        d_ff=5120,
        num_layers=1,
        num_heads=32,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    oracle = randomized(transformers.T5EncoderModel(config), seed=0)
    # Trained ones are small: T5 does not scale its scores by the head size.
    oracle.encoder.block[0].layer[0].SelfAttention.q.weight.mul_(1 / 8)
    checkpoint = converted(oracle.state_dict(), config=config.to_dict())
    expected = oracle(input_ids=tokens()).last_hidden_state
    actual = jax.jit(TextEncoder(checkpoint.config).encode)(
        checkpoint.params, as_jax(tokens()), jnp.ones((ROWS, LENGTH), bool)
    )
    assert_close(actual, expected, atol=1e-4)


def sizes(width, hidden, heads, kv_heads):
    return dict(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=64,
    )


WIDE = {
    "Llama 2 7B and Janus-Pro 7B": (llama_model, sizes(4096, 11008, 32, 32)),
    "Llama 3 8B and Emu3 8B": (llama_model, sizes(4096, 14336, 32, 8)),
    "Qwen2 7B": (qwen2, sizes(3584, 18944, 28, 4)),
    "Qwen3 8B": (qwen3, sizes(4096, 12288, 32, 8) | {"head_dim": 128}),
    "Chameleon 7B": (
        lambda **shape: chameleon(False, **shape),
        sizes(4096, 11008, 32, 32),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("make, shape", WIDE.values(), ids=WIDE)
def test_language_models(make, shape):
    oracle = randomized(make(**shape), seed=0)
    checkpoint = converted(oracle.state_dict(), config=oracle.config.to_dict())
    expected, _ = reference(oracle, tokens())
    actual, _ = score(
        Transformer(checkpoint.config), checkpoint.params, None, as_jax(tokens())
    )
    assert_close(actual, expected, atol=1e-4)
