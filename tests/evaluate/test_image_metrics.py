"""Distances between sets of images, against direct computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.errors import DataError
from jaxspec.evaluate.image_metrics import frechet_distance, precision_recall
from jaxspec.evaluate.likelihood import guided_nll
from jaxspec.models.transformer.model import Transformer
from tests.drafters.tiny import TARGET
from tests.models.tiny import random_params

RNG = np.random.default_rng(0)
CLOUD = RNG.normal(size=(300, 4)) @ RNG.normal(size=(4, 4))


def test_the_distance_is_zero_to_itself_and_the_squared_shift_to_a_shifted_set():
    shift = np.array([3.0, 0.0, -1.0, 2.0])
    assert frechet_distance(CLOUD, CLOUD) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(CLOUD, CLOUD + shift) == pytest.approx(14.0, abs=1e-6)


def test_the_distance_equals_the_formula_with_a_matrix_square_root():
    other = RNG.normal(size=(200, 4)) @ RNG.normal(size=(4, 4)) + 1.0
    one_c, other_c = np.cov(CLOUD, rowvar=False), np.cov(other, rowvar=False)
    values, vectors = np.linalg.eig(one_c @ other_c)  # not symmetric
    root = vectors @ np.diag(np.sqrt(values)) @ np.linalg.inv(vectors)
    gap = CLOUD.mean(0) - other.mean(0)
    expected = gap @ gap + np.trace(one_c + other_c - 2 * root.real)
    assert frechet_distance(CLOUD, other) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(other, CLOUD) == pytest.approx(expected, rel=1e-9)


def test_precision_falls_for_outliers_and_recall_for_a_single_mode():
    assert precision_recall(CLOUD, CLOUD) == (1.0, 1.0)
    assert precision_recall(CLOUD, CLOUD + 1000.0) == (0.0, 0.0)
    mode = CLOUD[:1] + 0.01 * RNG.normal(size=(300, 4))
    precision, recall = precision_recall(CLOUD, mode)
    assert precision > 0.9 and recall < 0.1
    precision, recall = precision_recall(mode, CLOUD)
    assert precision < 0.1 and recall > 0.9


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (CLOUD, CLOUD[:, :3], "cannot be compared"),
        (CLOUD, CLOUD[:1], "at least two images"),
        (CLOUD, CLOUD * np.nan, "NaN"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(one, other, words):
    for measure in (frechet_distance, precision_recall):
        with pytest.raises(DataError, match=words):
            measure(one, other)
    with pytest.raises(DataError, match="more than k=3"):
        precision_recall(CLOUD, CLOUD[:3])


@pytest.mark.slow
def test_likelihood_is_measured_after_cfg():
    """It equals a loop over tokens, also for a last batch that is not full."""
    params = random_params(TARGET)
    tokens = np.asarray(jax.random.randint(jax.random.key(1), (3, 6), 0, 19))
    labels = np.array([0, 2, 1])
    model, total = Transformer(TARGET), []
    for sequence, label in zip(tokens, labels, strict=True):
        for t in range(6):
            branches = [
                model.score(
                    params,
                    jnp.array([label]),
                    sequence[None, :t],
                    null=jnp.array([null]),
                )[0][0, -1]
                for null in (False, True)
            ]
            log_p = jax.nn.log_softmax(branches[1] + 2.5 * (branches[0] - branches[1]))
            total.append(-log_p[sequence[t]])
    nll = guided_nll(model, params, tokens, labels, 2.5, batch=2)
    assert nll == pytest.approx(float(np.mean(total)), rel=1e-5)
