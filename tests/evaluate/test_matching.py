"""Ranks of captions, and the nearest training images."""

import numpy as np

from jaxspec.data.source import ImageSource, Reader
from jaxspec.evaluate.matching import ranked_first
from jaxspec.evaluate.nearest import nearest_images


def test_a_caption_is_first_if_no_other_one_scores_as_high():
    scores = np.eye(50) + np.random.default_rng(0).random((50, 50)) * 0.9
    own = np.arange(50)
    assert ranked_first(scores, own, 50, 0).all()
    assert not ranked_first(-scores, own, 50, 0).any()
    ties = np.zeros((50, 50))
    assert not ranked_first(ties, own, 2, 0).any()


def test_random_scores_are_first_as_often_as_chance():
    scores = np.random.default_rng(0).random((4000, 200))
    own = np.random.default_rng(1).integers(200, size=4000)
    for among in (2, 10, 100):
        share = ranked_first(scores, own, among, 0).mean()
        assert abs(share - 1 / among) < 4 * np.sqrt(1 / among / 4000)


def source_of(images):
    def read(indices, fit):
        return ((fit(images[i]), 0) for i in indices)

    reader = Reader("images", len(images), read, lambda: np.zeros(len(images), int))
    return ImageSource(reader, images.shape[1])


def test_the_nearest_image_is_that_of_a_plain_search():
    rng = np.random.default_rng(0)
    training = rng.integers(0, 256, (600, 8, 8, 3)).astype(np.uint8)
    images = training[[3, 599, 77]].copy()
    images[1, 0, 0] = 255 - images[1, 0, 0]
    images[2] = rng.integers(0, 256, images[2].shape)
    found = nearest_images(images, source_of(training))
    difference = images[:, None].astype(float) - training[None]
    distances = np.sqrt((difference**2).mean(axis=(2, 3, 4)))
    np.testing.assert_array_equal(found.indices, distances.argmin(axis=1))
    np.testing.assert_allclose(found.distances, distances.min(axis=1), rtol=1e-9)
    assert found.distances[0] == 0 < found.distances[1] < found.distances[2]
