"""Training of a matcher of images and captions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import TextEncoderConfig
from jaxspec.evaluate.matching import first_share
from jaxspec.models.matcher.model import Matcher, MatcherConfig
from jaxspec.train.matcher import make_step, matcher_config
from jaxspec.train.optimizer import init_train_state
from jaxspec.train.settings import TrainingConfig

TEXT = TextEncoderConfig(
    vocab_size=16, layers=1, width=16, heads=2, head_dim=8, ffn_width=32, length=3
)
MODEL = Matcher(MatcherConfig(32, TEXT, 8, (16, 16), 16))


def places(count, seed=0):
    """Images with a light block at one of 12 places, and captions that name it.

    The second word of a caption is a random one.
    """
    rng = np.random.default_rng(seed)
    place = rng.integers(12, size=count)
    images = np.full((count, 4, 8, 4, 8, 3), 40, np.uint8)
    images[np.arange(count), place // 4, :, place % 4] = 220
    captions = np.full((count, 3), -1, np.int32)
    captions[:, 0], captions[:, 1] = place, 12 + rng.integers(4, size=count)
    return images.reshape(count, 32, 32, 3), captions, place


@pytest.fixture(scope="module")
def trained():
    config = TrainingConfig(steps=150, batch=16, warmup=10, ema=0.9)
    step = jax.jit(make_step(MODEL, config))
    state = init_train_state(config, MODEL.init(jax.random.key(0)))
    for i in range(config.steps):
        images, captions, _ = places(config.batch, seed=i)
        state, _ = step(state, jnp.int32(i), (images, captions))
    return state["average"]


@pytest.mark.slow
def test_a_trained_matcher_knows_which_caption_belongs_to_an_image(trained):
    images, captions, place = places(60, seed=999)
    chosen = np.unique(place, return_index=True)[1]  # one image a place
    images, captions = images[chosen], captions[chosen]
    among = len(chosen)
    share = first_share(MODEL, trained, images, captions, among=among)
    untrained = MODEL.init(jax.random.key(1))
    assert share > 0.9
    assert first_share(MODEL, untrained, images, captions, among=among) < 0.4
    shuffled = np.roll(captions, 1, axis=0)
    assert first_share(MODEL, trained, images, shuffled, among=among) < 0.2


@pytest.mark.slow
def test_features_have_unit_length_and_do_not_depend_on_padding(trained):
    images, captions, _ = places(4)
    features = MODEL.embed_images(trained, jnp.asarray(images / 127.5 - 1, jnp.float32))
    np.testing.assert_allclose(jnp.linalg.norm(features, axis=-1), 1, rtol=1e-5)
    text = MODEL.embed_captions(trained, captions)
    np.testing.assert_allclose(jnp.linalg.norm(text, axis=-1), 1, rtol=1e-5)
    longer = np.pad(captions, ((0, 0), (0, 4)), constant_values=-1)
    np.testing.assert_allclose(MODEL.embed_captions(trained, longer), text, atol=1e-5)


def test_equal_captions_of_a_batch_are_not_wrong_ones():
    config = TrainingConfig(steps=1, batch=4)
    params = MODEL.init(jax.random.key(0))
    images, captions, _ = places(4)
    captions[1] = captions[0]
    step = jax.jit(make_step(MODEL, config))
    state = init_train_state(config, params)

    def loss(rows):
        batch = images[np.array(rows)], captions[np.array(rows)]
        return float(step(state, jnp.int32(0), batch)[1]["loss"])

    # Two images of one caption cannot be confused.
    assert loss([0, 1]) == pytest.approx(0.0, abs=1e-6)
    assert loss([0, 2]) > 0.01


def test_sizes_follow_from_the_image():
    assert matcher_config(64, TEXT).patch_size == 4
    assert matcher_config(256, TEXT).patch_size == 16
    with pytest.raises(ValueError, match="width"):
        replace(MODEL.config, width=0)
