"""Nearest training images of generated ones, to see what was memorized."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.data.source import ImageSource

_BATCH = 512


@dataclass(frozen=True)
class Nearest:
    """Nearest training image of each image.

    Attributes:
      indices: int [n], indices into the training images.
      distances: float [n], root mean squared difference of the pixels, 0 to 255.
    """

    indices: np.ndarray
    distances: np.ndarray


def nearest_images(images: np.ndarray, source: ImageSource) -> Nearest:
    """Finds the nearest training image of each image, by squared pixel differences.

    Args:
      images: images, uint8 [n, h, w, 3].
      source: training images of the same size.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    best = np.full(len(images), np.inf, np.float32)
    found = np.zeros(len(images), np.int64)
    for start in range(0, len(source), _BATCH):
        indices = np.arange(start, min(start + _BATCH, len(source)))
        part = source.take(indices).reshape(len(indices), -1).astype(np.float32)
        distance = np.asarray(_squared(flat, part))
        nearest = distance.argmin(axis=1)
        least = distance[np.arange(len(flat)), nearest]
        better = least < best
        best, found = (
            np.where(better, least, best),
            np.where(better, indices[nearest], found),
        )
    # The search loses small distances to rounding; those of the found pairs are exact.
    twins = source.take(found).reshape(flat.shape).astype(np.float64)
    return Nearest(found, np.sqrt(np.mean((flat - twins) ** 2, axis=1)))


@jax.jit
def _squared(one, other):
    """Squared distances [n, m]."""
    norms = jnp.sum(one**2, 1)[:, None] + jnp.sum(other**2, 1)[None]
    return jnp.maximum(norms - 2.0 * one @ other.T, 0.0)
