"""How alike two sets of images are, in the features of any network."""

import numpy as np

from jaxspec.errors import DataError
from jaxspec.typing import Float


def frechet_distance(
    one: Float[np.ndarray, "N E"], other: Float[np.ndarray, "M E"]
) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features.

    `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` (arXiv 1706.08500), in float64. It
    falls as sets grow: compare only sets of one size.

    Raises:
      DataError: a set has fewer than two rows, widths differ, or a value is not finite.
    """
    one, other = _checked(one, other)
    means = one.mean(0), other.mean(0)
    covariances = [
        np.cov(x, rowvar=False).reshape(x.shape[1], -1) for x in (one, other)
    ]
    # C1 C2 is similar to the symmetric C1^(1/2) C2 C1^(1/2).
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariances[1] @ root)
    cross = np.sqrt(np.maximum(product, 0.0)).sum()
    traces = sum(np.trace(c) for c in covariances)
    return float(np.sum((means[0] - means[1]) ** 2) + traces - 2.0 * cross)


def precision_recall(
    real: Float[np.ndarray, "N E"], drawn: Float[np.ndarray, "M E"], k: int = 3
) -> tuple[float, float]:
    """Shares of drawn images among the real ones, and of real among the drawn.

    A point is among a set if it is as close to one of its points as that point's `k`-th
    neighbor in the set (arXiv 1904.06991).

    Raises:
      DataError: see `frechet_distance`; or a set has no more than `k` rows.
    """
    real, drawn = _checked(real, drawn)
    if min(len(real), len(drawn)) <= k:
        raise DataError(f"precision and recall need more than k={k} images a set")
    between = _squares(real, drawn)
    reach_real = np.partition(_squares(real, real), k, axis=1)[:, k]
    reach_drawn = np.partition(_squares(drawn, drawn), k, axis=1)[:, k]
    precision = (between <= reach_real[:, None]).any(axis=0).mean()
    recall = (between <= reach_drawn[None]).any(axis=1).mean()
    return float(precision), float(recall)


def _squares(one, other) -> np.ndarray:
    """Squared distances between the rows of two sets."""
    lengths = (one**2).sum(1)[:, None] + (other**2).sum(1)[None]
    return np.maximum(lengths - 2.0 * one @ other.T, 0.0)


def _checked(one, other):
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise DataError(f"features of shapes {one.shape} and {other.shape} differ")
    if min(len(one), len(other)) < 2:
        raise DataError("a set of images needs at least two")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise DataError("features hold NaN or infinity")
    return one, other
