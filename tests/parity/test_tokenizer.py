# ruff: noqa: E402
"""The VQ tokenizers of three releases against `transformers.JanusVQVAE`.

The networks are the same; names of levels and the comparison of codes differ.
"""

import re

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxspec.config import TokenizerConfig
from jaxspec.errors import ConfigError
from jaxspec.tokenizers.vqgan.model import Tokenizer
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity

FAMILIES = ("vq-janus", "vq-llamagen", "vq-taming")
embed = jax.jit(Tokenizer.embed, static_argnums=0)
encode = jax.jit(Tokenizer.encode, static_argnums=0)
decode = jax.jit(Tokenizer.decode, static_argnums=0)

CONFIGS = {
    "two levels": TokenizerConfig(
        image_size=8,
        channels=32,
        multipliers=(1, 2),
        encoder_blocks=1,
        decoder_blocks=2,
        latent_channels=16,
        codebook_size=64,
    ),
    "three levels": TokenizerConfig(
        image_size=16,
        channels=32,
        multipliers=(1, 1, 2),
        latent_channels=24,
        codebook_size=50,
        code_dim=6,
    ),
}


def oracle(config, seed=0):
    """`JanusVQVAE` with random weights."""
    assert config.decoder_blocks == config.encoder_blocks + 1
    janus = transformers.JanusVQVAEConfig(
        embed_dim=config.code_dim,
        num_embeddings=config.codebook_size,
        latent_channels=config.latent_channels,
        num_patches=config.grid,
        base_channels=config.channels,
        channel_multiplier=list(config.multipliers),
        num_res_blocks=config.encoder_blocks,
    )
    model = randomized(transformers.JanusVQVAE(janus), seed)
    # Small first activations, so that the epsilon of the norms matters.
    for layer in (model.encoder.conv_in, model.decoder.conv_in):
        layer.weight.mul_(0.01)
        layer.bias.mul_(0.01)
    return model


def renamed(key, family, levels):
    """Name of a Janus tensor in another release."""
    if family == "vq-llamagen":
        key = re.sub(r"^(encoder)\.down\.|^(decoder)\.up\.", r"\1\2.conv_blocks.", key)
        key = re.sub(r"(conv_blocks\.\d+)\.block\.", r"\1.res.", key)
        for i, name in enumerate(("block_1", "attn_1", "block_2")):
            key = key.replace(f".mid.{name}.", f".mid.{i}.")
    if family == "vq-taming":  # the levels of its decoder are numbered by resolution
        key = re.sub(
            r"^decoder\.up\.(\d+)",
            lambda match: f"decoder.up.{levels - 1 - int(match[1])}",
            key,
        )
    return key


def tokenizer_of(model, family, config):
    """Converted tokenizer, from the weights under the names of another release."""
    levels = len(config.multipliers)
    state = {renamed(k, family, levels): x for k, x in model.state_dict().items()}
    checkpoint = converted(state, image_size=config.image_size)
    assert (
        checkpoint.metadata == {}
        and checkpoint.config.multipliers == config.multipliers
    )
    return Tokenizer(checkpoint.config), checkpoint.params


def random_images(config):
    torch.manual_seed(1)
    return torch.rand(2, 3, config.image_size, config.image_size) * 2 - 1


def channels_last(x):
    return x.permute(0, 2, 3, 1)


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def model(request):
    return oracle(request.param), request.param


@pytest.fixture(params=FAMILIES)
def both(request, model):
    return (*tokenizer_of(model[0], request.param, model[1]), model[0])


def test_vectors_before_the_quantizer_agree(both):
    tokenizer, params, model = both
    images = random_images(tokenizer.config)
    reference = channels_last(model.quant_conv(model.encoder(images)))
    assert_close(embed(tokenizer, params, as_jax(channels_last(images))), reference)


def test_images_of_given_codes_agree(both):
    tokenizer, params, model = both
    grid, count = tokenizer.config.grid, tokenizer.config.codebook_size
    codes = torch.randint(count, (3, grid**2))
    vectors = model.quantize.embedding.weight[codes]
    if tokenizer.config.normalized != "none":
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
        reference = channels_last(model.decode(codes))
    vectors = vectors.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    by_hand = channels_last(model.decoder(model.post_quant_conv(vectors)))
    if tokenizer.config.normalized != "none":
        torch.testing.assert_close(by_hand, reference)
    assert_close(decode(tokenizer, params, as_jax(codes)), by_hand)


def test_codes_agree(both):
    """By angle in LlamaGen, by distance in the others, with entries of any length."""
    tokenizer, params, model = both
    images = random_images(tokenizer.config)
    vectors = channels_last(model.quant_conv(model.encoder(images))).flatten(1, 2)
    stored = model.quantize.embedding.weight
    plain = torch.cdist(vectors, stored).argmin(-1)
    unit = torch.nn.functional.normalize
    angle = torch.cdist(unit(vectors, dim=-1), unit(stored)).argmin(-1)
    reference = angle if tokenizer.config.normalized == "both" else plain
    actual = encode(tokenizer, params, as_jax(channels_last(images)))
    np.testing.assert_array_equal(np.asarray(actual), reference.numpy())
    assert (plain != angle).any()  # so that the test distinguishes the two
    janus = model.encode(images).image_tokens.reshape(len(images), -1)
    np.testing.assert_array_equal(plain.numpy(), janus.numpy())


def test_levels_in_the_wrong_order_are_refused(model):
    """Decoder with the names of taming, converted as Janus."""
    model, config = model
    levels = len(config.multipliers)
    state = {renamed(k, "vq-taming", levels): x for k, x in model.state_dict().items()}
    with pytest.raises(ConfigError, match="not mapped|missing"):
        converted(state, "vq-janus", image_size=config.image_size)
