"""VQGAN tokenizers: sizes, order of tokens, and shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import parameter_count
from jaxspec.config import TokenizerConfig
from jaxspec.errors import ConfigError, DataError
from jaxspec.tokenizers.vqgan.model import PRESETS, Tokenizer

TINY = TokenizerConfig(
    image_size=8,
    channels=8,
    multipliers=(1, 2),
    groups=4,
    latent_channels=8,
    codebook_size=32,
    code_dim=4,
)


@pytest.mark.parametrize(("name", "millions"), [("vq-16", 71.88), ("vq-8", 70.11)])
def test_presets_have_the_published_sizes(name, millions):
    assert parameter_count(PRESETS[name]) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    ("name", "grid"), [("vq-16", 16), ("vq-8", 32), ("small-64", 16), ("small-32", 16)]
)
def test_presets_have_the_expected_grid(name, grid):
    config = PRESETS[name]
    assert config.grid == grid
    side = config.image_size
    tokenizer = Tokenizer(config)
    params = jax.eval_shape(tokenizer.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    codes = jax.eval_shape(tokenizer.encode, params, images)
    assert codes.shape == (2, grid * grid)
    assert jax.eval_shape(tokenizer.decode, params, codes).shape == images.shape


@pytest.mark.slow
def test_lengths_of_codebook_entries_do_not_matter():
    tokenizer = Tokenizer(TINY)
    params = tokenizer.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 3), minval=-1)
    codes = tokenizer.encode(params, images)
    lengths = jnp.exp(jax.random.normal(jax.random.key(2), (32, 1)))
    scaled = dict(params, codebook=params["codebook"] * lengths)
    np.testing.assert_array_equal(codes, tokenizer.encode(scaled, images))
    np.testing.assert_allclose(
        tokenizer.decode(params, codes), tokenizer.decode(scaled, codes), atol=1e-5
    )


def test_codes_are_in_raster_order():
    tokenizer = Tokenizer(TINY)
    params = tokenizer.init(jax.random.key(0))
    codes = jnp.arange(16)[None]
    vectors = params["codebook"] / jnp.linalg.norm(
        params["codebook"], axis=-1, keepdims=True
    )
    grid = vectors[jnp.arange(16)].reshape(1, 4, 4, 4)
    np.testing.assert_allclose(
        tokenizer.decode(params, codes),
        tokenizer.decode_vectors(params, grid),
        atol=1e-6,
    )


def test_wrong_shapes_are_refused():
    tokenizer = Tokenizer(TINY)
    params = tokenizer.init(jax.random.key(0))
    with pytest.raises(DataError, match=r"\[B, 8, 8, 3\]"):
        tokenizer.encode(params, jnp.zeros((1, 9, 8, 3)))
    with pytest.raises(DataError, match=r"\[B, 16\]"):
        tokenizer.decode(params, jnp.zeros((1, 15), jnp.int32))
    with pytest.raises(ConfigError, match="must be a multiple of 2"):
        TokenizerConfig(image_size=9, multipliers=(1, 2))
