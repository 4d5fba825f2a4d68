"""Resizing of feature maps by fixed matrices, as PyTorch resizes them."""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np

from jaxspec.core.precision import full_precision
from jaxspec.typing import Array, Float

# Keys' cubic kernel with the constant of PyTorch; `jax.image.resize` has -0.5.
_CUBIC = -0.75


@lru_cache(maxsize=256)
def area_matrix(size: int, target: int) -> np.ndarray:
    """Matrix float32 [target, size] of adaptive average pooling.

    Row `i` averages the cells from `floor(i size / target)` to
    `ceil((i + 1) size / target)`.
    """
    matrix = np.zeros((target, size), np.float32)
    for i in range(target):
        start, end = i * size // target, -(-(i + 1) * size // target)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


@lru_cache(maxsize=256)
def bicubic_matrix(size: int, target: int) -> np.ndarray:
    """Matrix float32 [target, size] of bicubic interpolation along one axis.

    Centers of cells are aligned, cells beyond the border repeat the outermost one, and
    nothing is smoothed where the map becomes smaller (no antialiasing).
    """
    matrix = np.zeros((target, size))
    place = (np.arange(target) + 0.5) * size / target - 0.5
    base = np.floor(place).astype(int)
    for tap in range(-1, 3):
        cell = np.clip(base + tap, 0, size - 1)
        weight = _cubic(np.abs(place - (base + tap)))
        np.add.at(matrix, (np.arange(target), cell), weight)
    return matrix.astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Weight of a cell at a distance below 2."""
    a = _CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


@full_precision
def resize(x: Float[Array, "B h w C"], matrix: np.ndarray) -> Float[Array, "B M M C"]:
    """Applies a matrix of this module to both sides of a map, in float32.

    Args:
      x: feature map.
      matrix: float32 [M, h], with `h = w`.
    """
    x = jnp.einsum("oh,bhwc->bowc", matrix, x.astype(jnp.float32))
    return jnp.einsum("ow,bhwc->bhoc", matrix, x)
