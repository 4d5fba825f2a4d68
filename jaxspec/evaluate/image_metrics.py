"""Frechet distance, precision and recall of two sets of images, from features."""

import numpy as np

from jaxspec.errors import DataError
from jaxspec.typing import Float


def frechet_distance(
    one: Float[np.ndarray, "n E"], other: Float[np.ndarray, "m E"]
) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features.

    `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` (arXiv 1706.08500), in float64. The
    distance decreases with the size of the sets, so compare only sets of equal size.

    Args:
      one: features [n, E] of one set.
      other: features [m, E] of the other.

    Raises:
      DataError: a set has fewer than two images, the feature widths differ, or a value
        is not finite.
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
    real: Float[np.ndarray, "n E"], generated: Float[np.ndarray, "m E"], k: int = 3
) -> tuple[float, float]:
    """Precision and recall of generated images (arXiv 1904.06991).

    Precision is the share of generated images on the manifold of the real ones, recall
    the share of real images on the manifold of the generated ones. A point is on the
    manifold of a set if its distance to a point of the set is at most that point's
    distance to its `k`-th neighbor.

    Args:
      real: features [n, E] of real images.
      generated: features [m, E] of generated images.
      k: neighbor that defines the radius.

    Raises:
      DataError: as for `frechet_distance`, or a set has at most `k` images.
    """
    real, generated = _checked(real, generated)
    if min(len(real), len(generated)) <= k:
        raise DataError(f"precision and recall need more than k={k} images per set")
    between = _squared_distances(real, generated)
    radius_real = np.partition(_squared_distances(real, real), k, axis=1)[:, k]
    within = _squared_distances(generated, generated)
    radius_generated = np.partition(within, k, axis=1)[:, k]
    precision = (between <= radius_real[:, None]).any(axis=0).mean()
    recall = (between <= radius_generated[None]).any(axis=1).mean()
    return float(precision), float(recall)


def _squared_distances(one, other) -> np.ndarray:
    """Squared Euclidean distances [n, m] between the points of two sets."""
    norms = (one**2).sum(1)[:, None] + (other**2).sum(1)[None]
    return np.maximum(norms - 2.0 * one @ other.T, 0.0)


def _checked(one, other):
    """Both sets in float64; raises `DataError` if they cannot be compared."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise DataError(
            f"features of shapes {one.shape} and {other.shape} cannot be compared"
        )
    if min(len(one), len(other)) < 2:
        raise DataError("a set needs at least two images")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise DataError("features contain NaN or infinity")
    return one, other
