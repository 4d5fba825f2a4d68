"""Tokenizers of tokens in a row (TiTok, One-D-Piece), and MaskGIT's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import parameter_count
from jaxspec.config import (
    KLTokenizerConfig,
    MaskGITTokenizerConfig,
    MultiScaleTokenizerConfig,
    OneDTokenizerConfig,
    TransformerConfig,
    ViTConfig,
    from_dict,
    to_dict,
)
from jaxspec.config.token_kinds import row_ends, same_tokens
from jaxspec.errors import ConfigError, DataError
from jaxspec.tokenizers.maskgit.model import MaskGITTokenizer
from jaxspec.tokenizers.one_d.model import PRESETS, OneDTokenizer
from tests.params import random_like

PIXELS = MaskGITTokenizerConfig(16, 8, (1, 2), 1, 4, 20, 6)
VIT = ViTConfig(1, 16, 2)
TWO_STAGE = OneDTokenizerConfig(16, 2, 6, 32, 4, True, VIT, VIT, PIXELS, True, True)
PLAIN = replace(TWO_STAGE, pixels=None, normalized=False, mixed_order=False)


@pytest.mark.parametrize("config", [TWO_STAGE, PLAIN], ids=["two stages", "pixels"])
def test_each_prefix_is_an_image_that_depends_on_all_its_tokens(config):
    tokenizer = OneDTokenizer(config)
    params = random_like(tokenizer.init, seed=1)
    images = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), minval=-1)
    codes = jax.jit(tokenizer.encode)(params, images)
    assert codes.shape == (2, 6) and codes.dtype == jnp.int32
    decode = jax.jit(tokenizer.decode)
    partial = jax.jit(tokenizer.decode_partial)
    for count in (1, 4, 6):
        image = decode(params, codes[:, :count])
        assert image.shape == images.shape
        known = jnp.where(jnp.arange(6)[None] < count, codes, -1)
        np.testing.assert_allclose(image, partial(params, known), atol=2e-5)
        other = codes[:, :count].at[:, -1].add(1) % 32
        assert abs(decode(params, other) - image).max() > 1e-5
    assert not partial(params, jnp.full((2, 6), -1)).any()


def test_sizes_of_the_released_models():
    """The encoder of L-32, and MaskGIT's tokenizer, as counted by hand."""
    layer = 12 * 1024**2 + 13 * 1024
    places = (256 + 1 + 2 * 32 + 1) * 1024
    ends = 3 * 16**2 * 1024 + 1024 + 3 * 2 * 1024 - 2 * 1024 + 1024 * 12 + 12
    shapes = jax.eval_shape(
        OneDTokenizer(PRESETS["titok-l-32"]).init, jax.random.key(0)
    )
    size = sum(x.size for x in jax.tree.leaves(shapes["encoder"]))
    assert size == 24 * layer + places + ends
    assert parameter_count(MaskGITTokenizerConfig()) / 1e6 == pytest.approx(54.5, abs=1)
    for config in PRESETS.values():
        assert from_dict(OneDTokenizerConfig, to_dict(config)) == config


def test_maskgit_images_are_clipped_and_its_tokens_are_a_grid():
    tokenizer = MaskGITTokenizer(PIXELS)
    params = random_like(tokenizer.init, seed=2)
    images = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), minval=-1)
    codes = jax.jit(tokenizer.encode)(params, images)
    assert codes.shape == (2, 64)
    out = np.asarray(jax.jit(tokenizer.decode)(params, codes))
    assert out.min() == -1 and out.max() <= 1
    half = jnp.where(jnp.arange(64)[None] < 32, codes, -1)
    shown = jax.jit(tokenizer.decode_partial)(params, half)
    assert not shown[:, 8:].any() and shown[:, :8].any()


def test_positions_of_a_sequence_fit_tokens_in_any_arrangement():
    sequence = TransformerConfig(vocab_size=20, rope="sequence", max_length=64)
    assert same_tokens(sequence, PIXELS)
    assert not same_tokens(replace(sequence, max_length=63), PIXELS)
    assert not same_tokens(replace(sequence, vocab_size=21), PIXELS)
    assert not same_tokens(sequence, KLTokenizerConfig())
    grid = TransformerConfig(vocab_size=32, grid=8)
    assert not same_tokens(grid, PLAIN) and not same_tokens(grid, PIXELS)
    assert same_tokens(replace(grid, vocab_size=20), PIXELS)


def test_other_kinds_of_tokens_take_no_quantizer():
    networks = replace(
        MultiScaleTokenizerConfig().networks, quantizer="lfq", code_dim=12
    )
    with pytest.raises(ConfigError, match="quantizer='vq'"):
        MultiScaleTokenizerConfig(networks)
    with pytest.raises(ConfigError, match="latents are not quantized"):
        KLTokenizerConfig(networks)


def test_rows_are_single_tokens():
    assert row_ends(PLAIN) == (1, 2, 3, 4, 5, 6)
    assert row_ends(PIXELS) == tuple(range(8, 65, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViTConfig(1, 16, 3), "heads=3"),
        (lambda: replace(PLAIN, patch_size=3), "patch_size=3"),
        (lambda: replace(TWO_STAGE, patch_size=4), "grid of 8"),
        (lambda: replace(PIXELS, image_size=17), "image_size=17"),
        (lambda: replace(PIXELS, groups=3), "groups=3"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_other_numbers_of_tokens_are_refused():
    tokenizer = OneDTokenizer(replace(PLAIN, prefixes=False))
    params = tokenizer.init(jax.random.key(0))
    with pytest.raises(DataError, match=r"takes \[B, 6\]"):
        tokenizer.decode(params, jnp.zeros((1, 5), jnp.int32))
    tokenizer = OneDTokenizer(PLAIN)
    with pytest.raises(DataError, match=r"takes \[B, 1 to 6\]"):
        tokenizer.decode(params, jnp.zeros((1, 7), jnp.int32))
    with pytest.raises(DataError, match=r"\[B, 16, 16, 3\]"):
        tokenizer.encode(params, jnp.zeros((1, 8, 8, 3)))
