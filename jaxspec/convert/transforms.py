"""What happens to a tensor's axes on its way from PyTorch to us, and back.

A transform is a pair of functions of an array and the `Heads` of the model (of no
importance to most). PyTorch keeps linear maps as `[out, in]`, convolutions as
`[out, in, h, w]`, and the Hugging Face layout of rotary embeddings turns element `j` of
a head with element `j + F / 2`; ours turns neighbors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Heads:
    """Attention heads of a model.

    Attributes:
      size: `F`.
      groups: `K`, heads of keys and values.
      queries: `H`.
    """

    size: int = 2
    groups: int = 1
    queries: int = 1


@dataclass(frozen=True)
class Transform:
    """A change of layout that loses nothing.

    Attributes:
      there: from PyTorch's layout to ours.
      back: from ours to PyTorch's.
    """

    there: Callable[[np.ndarray, Heads], np.ndarray]
    back: Callable[[np.ndarray, Heads], np.ndarray]


def interleaved(x: np.ndarray) -> np.ndarray:
    """Elements of a head on the last axis: (j, j + F / 2) become neighbors."""
    pairs = x.reshape(*x.shape[:-1], 2, -1)
    return np.swapaxes(pairs, -1, -2).reshape(x.shape)


def halved(x: np.ndarray) -> np.ndarray:
    """The inverse of `interleaved`."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    return np.swapaxes(pairs, -1, -2).reshape(x.shape)


def spread(x: np.ndarray, count: int) -> np.ndarray:
    """Norms of heads, `[count, F]`, of which neighbors may share a stored row.

    Models trained in `n` parallel parts store `[n, F]` (Chameleon's family).
    """
    if x.ndim == 2 and len(x) < count and count % len(x) == 0:
        return np.repeat(x, count // len(x), axis=0)
    return x


def grouped(x: np.ndarray, heads: Heads) -> np.ndarray:
    """`[..., (K g F)]` as `[..., g, K, F]`."""
    x = x.reshape(*x.shape[:-1], heads.groups, -1, heads.size)
    return np.swapaxes(x, -2, -3)


def flat(x: np.ndarray) -> np.ndarray:
    """The inverse of `grouped`."""
    x = np.swapaxes(x, -2, -3)
    return x.reshape(*x.shape[:-3], -1)


def _fused(x: np.ndarray, heads: Heads) -> np.ndarray:
    """Queries, keys and values `[D, (H + 2 K) F]` as `[D, g + 2, K, F]`."""
    wide = heads.groups * heads.size
    parts = np.split(x, [x.shape[-1] - 2 * wide, x.shape[-1] - wide], axis=-1)
    return np.concatenate([grouped(part, heads) for part in parts], axis=-3)


def _parted(x: np.ndarray) -> np.ndarray:
    """The inverse of `_fused`."""
    parts = np.split(x, [x.shape[-3] - 2, x.shape[-3] - 1], axis=-3)
    return np.concatenate([flat(part) for part in parts], axis=-1)


TRANSFORMS = {
    "same": Transform(lambda x, _: x, lambda x, _: x),
    "linear": Transform(lambda x, _: x.T, lambda x, _: x.T),
    "layer": Transform(lambda x, _: x.T[:, None], lambda x, _: x[:, 0].T),
    "heads": Transform(lambda x, h: grouped(x.T, h), lambda x, _: flat(x).T),
    "heads_rotary": Transform(
        lambda x, h: interleaved(grouped(x.T, h)), lambda x, _: flat(halved(x)).T
    ),
    "heads_vector": Transform(grouped, lambda x, _: flat(x)),
    "heads_vector_rotary": Transform(
        lambda x, h: interleaved(grouped(x, h)), lambda x, _: flat(halved(x))
    ),
    "heads_fused": Transform(lambda x, h: _fused(x.T, h), lambda x, _: _parted(x).T),
    "rotary_vector": Transform(lambda x, _: interleaved(x), lambda x, _: halved(x)),
    "query_norm": Transform(
        lambda x, h: interleaved(spread(x, h.queries)), lambda x, _: halved(x)
    ),
    "key_norm": Transform(
        lambda x, h: interleaved(spread(x, h.groups)), lambda x, _: halved(x)
    ),
    "conv": Transform(
        lambda x, _: x.transpose(2, 3, 1, 0), lambda x, _: x.transpose(3, 2, 0, 1)
    ),
    "row": Transform(lambda x, _: x[None], lambda x, _: x[0]),
    "row_linear": Transform(lambda x, _: x.T[None], lambda x, _: x[0].T),
}
