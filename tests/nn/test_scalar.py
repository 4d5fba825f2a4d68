"""Quantizers that round each channel (FSQ, LFQ, bits)."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxspec.errors import ConfigError
from jaxspec.nn.scalar import (
    fsq_bounded,
    fsq_values,
    product_codebook,
    product_codes,
    sign_codes,
    sign_entropy,
)
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.tokenizer import init_state, make_step, quantized
from tests.params import random_like
from tests.train.tiny import get_config

LEVELS = (4, 3, 2)


def test_each_entry_has_its_own_code():
    book = product_codebook(fsq_values(LEVELS))
    assert book.shape == (24, 3) and book.min() == -1 and book.max() == 1
    assert_array_equal(product_codes(jnp.asarray(book), LEVELS), np.arange(24))
    # Channel 0 is the fastest digit.
    assert_allclose(book[:4, 0], [-1, -0.5, 0, 0.5])
    assert (book[:4, 1:] == [-1, -1]).all()
    corners = product_codebook(((-1.0, 1.0),) * 3)
    assert_array_equal(sign_codes(jnp.asarray(corners)), np.arange(8))
    assert sign_codes(jnp.zeros((1, 3)))[0] == 0


def test_codes_are_those_of_the_nearest_entries():
    z = 3 * jax.random.normal(jax.random.key(0), (5, 200, 3))
    bounded = fsq_bounded(z, LEVELS)
    codes = product_codes(bounded, LEVELS)
    book = product_codebook(fsq_values(LEVELS))
    distance = np.square(np.asarray(bounded)[..., None, :] - book).sum(-1)
    assert_array_equal(codes, distance.argmin(-1))
    assert set(np.unique(codes)) == set(range(24))
    signs = product_codebook(((-1.0, 1.0),) * 3)
    distance = np.square(np.asarray(z)[..., None, :] - signs).sum(-1)
    assert_array_equal(sign_codes(z), distance.argmin(-1))


def test_bounds_are_those_of_the_paper():
    """The formula, number by number; all values are reached, and 0 is one of them."""
    z = np.linspace(-9, 9, 41)
    for j, count in enumerate(LEVELS):
        half = (count - 1) * 1.001 / 2
        offset = 0.5 if count % 2 == 0 else 0.0
        right = np.tanh(z + np.arctanh(offset / half)) * half - offset
        x = np.zeros((41, 3), np.float32)
        x[:, j] = z
        found = fsq_bounded(jnp.asarray(x), LEVELS)[:, j] * (count // 2)
        assert_allclose(found, right, atol=1e-5)
        assert np.unique(np.round(right)).size == count
        assert product_codes(fsq_bounded(jnp.zeros((1, 3)), LEVELS), LEVELS)[0] == (
            2 + 1 * 4 + 1 * 12
        )


def test_entropies_are_those_of_the_soft_codes():
    """Every code's distance, with the softmax written out."""
    z = np.asarray(jax.random.normal(jax.random.key(2), (50, 3)), np.float64) * 0.05
    book = product_codebook(((-1.0, 1.0),) * 3)
    logits = -np.square(z[:, None] - book).sum(-1) / 0.1
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    own, mean = sign_entropy(jnp.asarray(z, jnp.float32), temperature=0.1)
    assert_allclose(own, -(p * np.log(p)).sum(1).mean(), rtol=1e-5)
    m = p.mean(0)
    assert_allclose(mean, -(m * np.log(m)).sum(), rtol=1e-5)


def test_bits_are_sampled_in_training_and_the_likelier_ones_after_it():
    """BAE: the share of each bit is its probability; its embedding adds up."""
    tokenizer = _bits()
    params = tokenizer.init(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), (1, 32, 32, 3), minval=-1.0)
    p = tokenizer.embed(params, image)
    assert p.min() > 0 and p.max() < 1
    codes = tokenizer.encode(params, image)
    book = params["codebook"]
    assert_array_equal(book[codes].reshape(p.shape), p > 0.5)
    many = jnp.broadcast_to(p, (4000, *p.shape[1:]))
    vectors, sampled, q, penalty = quantized(jax.random.key(2), tokenizer, book, many)
    assert_array_equal(q, book[sampled])
    assert float(jnp.abs(q.mean(0) - p[0]).max()) < 0.05 and penalty == 0
    # The likelier bits alone are no sample: their shares are 0 and 1.
    assert float(jnp.abs((p[0] > 0.5) - p[0]).max()) > 0.05
    # What the decoder reads of a code is a sum of one row for each bit.
    params = random_like(tokenizer.init, seed=1)
    read = params["post_quant_conv"]
    grid = tokenizer.config.grid
    code = jnp.full((1, grid, grid, 4), jnp.array([1.0, 0.0, 1.0, 0.0]))
    assert_array_equal(book[5], code[0, 0, 0])
    rows = read["kernel"][0, 0]
    total = read["bias"] + rows[0] + rows[2]
    found = nn.Conv(len(total), (1, 1)).apply({"params": read}, code)
    assert_allclose(found, jnp.broadcast_to(total, found.shape), atol=1e-6)
    # In bfloat16 a bit of a large score can still be sampled as 0.
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    half["quant_conv"]["bias"] = jnp.full(4, 6.5, jnp.bfloat16)
    assert float(tokenizer.embed(half, image.astype(jnp.bfloat16)).max()) < 1


def _bits() -> Tokenizer:
    change = {"quantizer": "bits", "normalized": "none", "code_dim": 4}
    return Tokenizer(replace(get_config().tokenizer, **change))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantizer", "levels"),
    [("fsq", (4, 4)), ("lfq", ()), ("bits", ())],
    ids=["fsq", "lfq", "bits"],
)
def test_training_improves_images_and_keeps_the_codebook(quantizer, levels):
    config = get_config()
    sizes = replace(
        config.tokenizer,
        quantizer=quantizer,
        levels=levels,
        normalized="none",
        code_dim=len(levels) or 4,
    )
    tokenizer = Tokenizer(sizes)
    training = replace(config.train_tokenizer, learning_rate=3e-3, steps=60)
    state = init_state(tokenizer, training)
    book = jnp.copy(state["codebook"])
    step = jax.jit(make_step(tokenizer, training))
    rng = np.random.default_rng(0)
    images = np.kron(rng.integers(0, 255, (8, 4, 4, 3)), np.ones((1, 8, 8, 1)))
    first = None
    for i in range(60):
        state, metrics = step(state, jnp.int32(i), images.astype(np.uint8))
        first = metrics["psnr_of_mean"] if first is None else first
    assert metrics["psnr_of_mean"] > first + 1
    assert_array_equal(state["codebook"], book)
    params = {**state["networks"], "codebook": book}
    x = jnp.float32(images) / 127.5 - 1
    codes = tokenizer.encode(params, x)
    assert len(np.unique(codes)) > 4
    assert tokenizer.decode(params, codes).shape == x.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": (4, 4)}, "are for quantizer='fsq'"),
        ({"quantizer": "fsq", "levels": (4, 2)}, "set codebook_size=8 and code_dim=2"),
        ({"quantizer": "fsq", "levels": (8, 2, 1)}, "at least 2 values"),
        ({"quantizer": "lfq", "code_dim": 5}, "codebook_size=32"),
        ({"quantizer": "lfq"}, "needs normalized='none'"),
        ({"quantizer": "bits"}, "needs normalized='none'"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(get_config().tokenizer, **change)
