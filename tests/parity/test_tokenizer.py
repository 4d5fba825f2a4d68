# ruff: noqa: E402
"""The VQ tokenizer against `transformers.JanusVQVAE`, the same network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxspec.config import TokenizerConfig
from jaxspec.models.tokenizer import Tokenizer
from tests.parity.comparing import as_jax, assert_close
from tests.parity.mapping import from_janus_keys, tokenizer_params
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity

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
    # Little contrast at first: then the epsilon of the norms counts.
    for layer in (model.encoder.conv_in, model.decoder.conv_in):
        layer.weight.mul_(0.01)
        layer.bias.mul_(0.01)
    return model


def converted(model):
    state = model.state_dict()
    return tokenizer_params({from_janus_keys(key): x for key, x in state.items()})


def pictures(config):
    torch.manual_seed(1)
    return torch.rand(2, 3, config.image_size, config.image_size) * 2 - 1


def channels_last(x):
    return x.permute(0, 2, 3, 1)


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def both(request):
    config = request.param
    model = oracle(config)
    return Tokenizer(config), converted(model), model


def test_every_weight_has_a_place(both):
    tokenizer, params, _ = both
    wanted = jax.eval_shape(tokenizer.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, wanted)


def test_vectors_before_the_quantiser_agree(both):
    tokenizer, params, model = both
    images = pictures(tokenizer.config)
    theirs = channels_last(model.quant_conv(model.encoder(images)))
    assert_close(embed(tokenizer, params, as_jax(channels_last(images))), theirs)


def test_pictures_of_given_codes_agree(both):
    tokenizer, params, model = both
    size, count = tokenizer.config.grid**2, tokenizer.config.codebook_size
    codes = torch.randint(count, (3, size))
    theirs = channels_last(model.decode(codes))
    assert_close(decode(tokenizer, params, as_jax(codes)), theirs)


def test_codes_agree_when_stored_rows_have_unit_length(both):
    """Janus compares plain distances, LlamaGen those of normalised vectors."""
    tokenizer, _, _ = both
    model = oracle(tokenizer.config)
    stored = model.quantize.embedding.weight
    stored.copy_(torch.nn.functional.normalize(stored))
    images = pictures(tokenizer.config)
    theirs = model.encode(images).image_tokens.reshape(len(images), -1)
    ours = encode(tokenizer, converted(model), as_jax(channels_last(images)))
    np.testing.assert_array_equal(np.asarray(ours), theirs.numpy())
    assert len(theirs.unique()) > 8


def test_codes_are_the_nearest_by_angle(both):
    """LlamaGen's rule on stored rows of any length."""
    tokenizer, params, model = both
    images = pictures(tokenizer.config)
    vectors = channels_last(model.quant_conv(model.encoder(images))).flatten(1, 2)
    stored = model.quantize.embedding.weight
    unit = torch.nn.functional.normalize
    theirs = torch.cdist(unit(vectors, dim=-1), unit(stored)).argmin(-1)
    ours = encode(tokenizer, params, as_jax(channels_last(images)))
    np.testing.assert_array_equal(np.asarray(ours), theirs.numpy())
    assert (torch.cdist(vectors, stored).argmin(-1) != theirs).any()
