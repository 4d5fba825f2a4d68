# ruff: noqa: E402
"""Autoencoders with continuous latents against `diffusers.AutoencoderKL`."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from jaxspec.errors import ConfigError
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity

CONFIG = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
    "scaling_factor": 0.5,
}
# Names of diffusers, and those of MAR's file.
NAMES = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
    "attentions": "attn",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "down_blocks": "down",
    "resnets": "block",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "conv_norm_out": "norm_out",
}


# Names of diffusers before 0.15.
EARLIER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(scope="module")
def oracle():
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2}
    levels |= {"up_block_types": ("UpDecoderBlock2D",) * 2}
    return randomized(diffusers.AutoencoderKL(**CONFIG, **levels), seed=0)


@pytest.fixture(scope="module")
def attentive():
    """Attention in the lowest level, as in MAR's file."""
    levels = {"down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")}
    levels |= {"up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")}
    return randomized(diffusers.AutoencoderKL(**CONFIG, **levels), seed=1)


def renamed(state, names):
    def change(name):
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        return name

    return {change(name): x for name, x in state.items()}


def released(state):
    """Tensors under the names of MAR's file, whose attention is made of 1x1 kernels."""
    result = {}
    for name, x in renamed(state, NAMES).items():
        # Levels of its decoder are numbered from the full resolution on.
        name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{1 - int(m[1])}", name)
        if re.search(r"\.attn(_1|\.\d)\.", name) and x.ndim == 2:
            x = x[:, :, None, None]
        result[name] = x
    return result


LAYOUTS = ["diffusers", "earlier diffusers", "MAR"]


def by_layout(oracle, layout):
    state = oracle.state_dict()
    if layout == "MAR":
        sizes = {"image_size": 16, "groups": 4, "scale": 0.5}
        return converted(released(state), **sizes)
    if layout == "earlier diffusers":
        state = renamed(state, EARLIER)
    return converted(state, config=CONFIG)


@pytest.fixture(scope="module", params=LAYOUTS)
def ours(request, oracle):
    return by_layout(oracle, request.param)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def flat(x):
    """[B, C, h, w] as tokens [B, T, C]."""
    return x.flatten(2).transpose(1, 2)


def assert_equal(oracle, ours, images):
    posterior = oracle.encode(images).latent_dist
    pixels = as_jax(images.permute(0, 2, 3, 1))
    model, params = ours.model, ours.params
    mean, deviation = jax.jit(partial(model.posterior, params))(pixels)
    assert_close(mean, 0.5 * flat(posterior.mean), 1e-4)
    assert_close(deviation, 0.5 * flat(posterior.std), 1e-4)
    expected = oracle.decode(posterior.mean).sample.permute(0, 2, 3, 1)
    decode = jax.jit(partial(model.decode, params))
    assert_close(decode(mean), expected, 1e-4)
    # The control: without the factor.
    assert np.abs(decode(2 * mean) - expected.numpy()).max() > 1e-2


def test_latents_and_images_are_equal(oracle, ours, images):
    assert_equal(oracle, ours, images)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_in_the_lowest_level(attentive, images, layout):
    ours = by_layout(attentive, layout)
    assert ours.config.networks.attention == "lowest"
    assert_equal(attentive, ours, images)


def test_a_partial_image_is_gray_where_tokens_are_missing(ours, images):
    model, params = ours.model, ours.params
    tokens = model.encode(params, as_jax(images.permute(0, 2, 3, 1)))
    missing = tokens.at[:, 8].set(-jnp.inf)  # the first cell of the second row
    image = np.asarray(model.decode_partial(params, missing))
    assert (image[:, 2:4, :2] == 0).all() and np.isfinite(image).all()
    assert (image[:, :2] != 0).any()


def test_sampled_latents_have_the_law_of_the_encoder(ours, images):
    model, params = ours.model, ours.params
    pixels = as_jax(images.permute(0, 2, 3, 1))
    mean, deviation = model.posterior(params, pixels)
    keys = jax.random.split(jax.random.key(0), 500)
    drawn = jax.vmap(lambda key: model.encode(params, pixels, key))(keys)
    score = np.asarray((drawn - mean) / deviation)
    assert abs(score.mean()) < 0.02 and abs(score.std() - 1) < 0.02


def test_missing_settings_are_asked_for(oracle):
    with pytest.raises(ConfigError, match="--set image_size=NUMBER"):
        converted(released(oracle.state_dict()))
