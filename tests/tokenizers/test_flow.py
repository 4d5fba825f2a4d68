"""Tokenizers whose decoder is a flow from noise to images (FlexTok, D-AR)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxspec.config import KLTokenizerConfig, TokenizerConfig, from_dict, to_dict
from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.config.one_d import ViTConfig
from jaxspec.config.token_kinds import row_ends, tokens_of
from jaxspec.errors import ConfigError, DataError
from jaxspec.tokenizers.flow.guidance import projected_guidance
from jaxspec.tokenizers.flow.model import FlowTokenizer
from jaxspec.tokenizers.flow.networks import grid_positions
from tests.params import random_like

VIT = ViTConfig(1, 16, 2)
CONFIG = FlowTokenizerConfig(
    image_size=16, patch_size=4, length=6, levels=(4, 3), encoder=VIT, decoder=VIT,
    steps=6, guidance=3.0,
)  # fmt: skip
GROUPS = replace(CONFIG, groups=3)


def parts(config, spread=0.3):
    """A tokenizer, parameters of which no layer is without effect, and images."""
    tokenizer = FlowTokenizer(config)
    params = random_like(tokenizer.init, spread, seed=1)
    book = tokenizer.init(jax.random.key(0))["codebook"]
    images = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), minval=-1)
    return tokenizer, {**params, "codebook": book}, images


@pytest.mark.variants(1)
@pytest.mark.parametrize("config", [CONFIG, GROUPS], ids=["flow", "groups"])
def test_each_prefix_is_an_image(config):
    tokenizer, params, images = parts(config)
    codes = jax.jit(tokenizer.encode)(params, images)
    assert codes.shape == (2, 6) and codes.dtype == jnp.int32
    assert int(codes.min()) >= 0 and int(codes.max()) < 12
    decode, partial = jax.jit(tokenizer.decode), jax.jit(tokenizer.decode_partial)
    step = config.length // config.groups
    for count in range(1, 7):
        image = decode(params, codes[:, :count])
        assert image.shape == images.shape
        known = jnp.where(jnp.arange(6)[None] < count, codes, -1)
        assert_allclose(image, partial(params, known), atol=1e-4)
        other = codes[:, :count].at[:, -1].add(1) % 12
        changed = abs(decode(params, other) - image).max()
        # A group that is not complete is not read yet, but for the first one.
        read = config.groups == 1 or count % step == 0 or count < step
        assert (changed > 1e-4) == read
    assert not partial(params, jnp.full((2, 6), -1)).any()


def test_a_token_sees_the_image_and_the_tokens_before_it():
    """Queries of later tokens change no earlier one."""
    tokenizer, params, images = parts(CONFIG, spread=0.1)
    embed = jax.jit(tokenizer.embed)
    before = embed(params, images)
    queries = params["encoder"]["queries"].at[3].multiply(-3.0)
    changed = {**params, "encoder": {**params["encoder"], "queries": queries}}
    moved = abs(np.asarray(embed(changed, images) - before)).max(axis=(0, 2))
    assert (moved[:3] == 0).all() and (moved[3:] > 1e-6).all()
    patched = images.at[:, :4, :4].add(0.1)
    assert (abs(np.asarray(embed(params, patched) - before)).max((0, 2)) > 1e-6).all()


@pytest.mark.parametrize("config", [CONFIG, GROUPS], ids=["flow", "groups"])
def test_the_flow_is_followed_from_noise_by_hand(config):
    """Euler steps, guidance, and what is predicted after each group of tokens."""
    tokenizer, params, images = parts(config)
    codes = tokenizer.encode(params, images)
    vectors = params["codebook"][codes]
    key = jax.random.key(7)
    noise = np.asarray(jax.random.normal(key, (16, 16, 3)))
    grid, average = np.broadcast_to(noise, (2, 16, 16, 3)), np.zeros((2, 16, 16, 3))
    speed = jax.jit(tokenizer.velocity)
    previews = []
    for i in range(6):
        time = 1 - i / 6
        read = 6 if config.groups == 1 else 2 * (i // 2 + 1)
        seen = jnp.broadcast_to(jnp.arange(6) < read, (2, 6))
        both = [
            np.float64(
                speed(
                    params,
                    jnp.float32(grid),
                    jnp.full(2, jnp.float32(time)),
                    vectors,
                    seen,
                    jnp.full(2, null),
                )
            )
            for null in (False, True)
        ]
        average = both[0] - both[1] - 0.5 * average
        change = []
        for row in range(2):
            norm = np.linalg.norm(average[row])
            bounded = average[row] * min(1.0, 2.5 / norm)
            unit = both[0][row] / np.linalg.norm(both[0][row])
            change.append(bounded - (bounded * unit).sum() * unit)
        v = both[0] + 2 * np.stack(change)
        previews.append(grid - time * v)
        grid = grid - v / 6
    out = jax.jit(tokenizer.decode)(params, codes, key)
    assert_allclose(out, grid, atol=2e-3)
    assert_allclose(previews[-1], grid, atol=1e-6)
    if config.groups > 1:
        two = jax.jit(tokenizer.decode)(params, codes[:, :4], key)
        assert_allclose(two, previews[3], atol=2e-3)
        assert abs(previews[3] - grid).max() > 1e-2


def test_guidance_of_all_parts_is_classifier_free_guidance():
    keys = jax.random.split(jax.random.key(0), 2)
    given, null = (jax.random.normal(key, (2, 4, 4, 3)) for key in keys)
    zeros = jnp.zeros_like(given)
    plain = replace(CONFIG, momentum=0.0, most_change=0.0, parallel=1.0)
    out, _ = projected_guidance(plain, given, null, zeros)
    assert_allclose(out, null + 3 * (given - null), atol=1e-5)
    # Without its parallel part a change leaves the length along the prediction.
    out, average = projected_guidance(CONFIG, given, null, zeros)
    along = jnp.sum((out - given) * given, axis=(1, 2, 3))
    assert_allclose(along, 0, atol=1e-4)
    norm = jnp.sqrt(jnp.sum((out - given) ** 2, axis=(1, 2, 3)))
    assert (norm <= 2 * 2.5 + 1e-4).all() and (norm > 1).all()
    assert_allclose(average, given - null, atol=1e-6)


def test_positions_are_sinusoids_of_row_and_column():
    found = grid_positions(3, 8)
    pace = np.array([1.0, 0.01])
    for row in range(3):
        for column in range(3):
            parts = [
                wave(place * pace)
                for place in (row, column)
                for wave in (np.sin, np.cos)
            ]
            assert_allclose(found[3 * row + column], np.concatenate(parts), atol=1e-6)


def test_latents_of_an_autoencoder_are_what_the_flow_makes():
    networks = TokenizerConfig(
        image_size=16, channels=8, multipliers=(1, 1), encoder_blocks=1,
        decoder_blocks=1, attention="middle", groups=4, latent_channels=4,
        codebook_size=1, code_dim=4, normalized="none",
    )  # fmt: skip
    latents = KLTokenizerConfig(networks, 1.0)
    tokenizer, params, images = parts(replace(CONFIG, patch_size=2, latents=latents))
    assert tokenizer.grid_of(params, images).shape == (2, 8, 8, 4)
    codes = tokenizer.encode(params, images)
    out = jax.jit(tokenizer.decode)(params, codes)
    assert out.shape == images.shape
    other = jax.jit(tokenizer.decode)(params, codes, jax.random.key(3))
    assert abs(out - other).max() > 1e-3


def test_configurations_are_written_and_read():
    assert from_dict(FlowTokenizerConfig, to_dict(GROUPS)) == GROUPS
    assert tokens_of(CONFIG) == "12 tokens in a row of 6"
    assert row_ends(CONFIG) == (1, 2, 3, 4, 5, 6)
    assert FlowTokenizerConfig().codebook_size == 64000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": ()}, "at least 2 values"),
        ({"levels": (4, 1)}, "at least 2 values"),
        ({"patch_size": 3}, "must divide a side of 16"),
        ({"groups": 4}, "groups=4 must divide"),
        ({"guidance": 0.5}, "guidance is at least 1"),
        ({"momentum": 1.0}, "momentum between -1 and 1"),
        ({"parallel": float("nan")}, "parallel any number"),
        ({"guidance": float("inf")}, "guidance is at least 1"),
        ({"latents": KLTokenizerConfig()}, "images of another size"),
        ({"decoder": ViTConfig(1, 18, 2)}, "multiple of 4"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **change)


def test_impossible_codes_and_images_are_refused():
    tokenizer, params, _ = parts(CONFIG)
    for shape in ((2, 7), (2, 0), (6,)):
        with pytest.raises(DataError, match=r"takes \[B, 1 to 6\]"):
            tokenizer.decode(params, jnp.zeros(shape, jnp.int32))
    with pytest.raises(DataError, match="16"):
        tokenizer.encode(params, jnp.zeros((1, 8, 8, 3)))
    assert_array_equal(tokenizer.read_at(jnp.array([1.0, 0.1])), [6, 6])
    times = 1 - jnp.arange(6) / 6
    assert_array_equal(FlowTokenizer(GROUPS).read_at(times), [2, 2, 4, 4, 6, 6])
