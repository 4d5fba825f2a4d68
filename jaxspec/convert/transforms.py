"""What happens to a tensor's axes on its way from PyTorch to us, and back.

A transform is a pair of functions of an array and a head size `F` (of no importance to
most). PyTorch keeps linear maps as `[out, in]`, convolutions as `[out, in, h, w]`, and
the Hugging Face layout of rotary embeddings turns element `j` of a head with element
`j + F / 2`; ours turns neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Transform:
    """A change of layout that loses nothing.

    Attributes:
      there: from PyTorch's layout to ours.
      back: from ours to PyTorch's.
    """

    there: Callable[[np.ndarray, int], np.ndarray]
    back: Callable[[np.ndarray, int], np.ndarray]


def interleaved(x: np.ndarray, head: int) -> np.ndarray:
    """Heads on the last axis: (j, j + F / 2) become neighbours."""
    pairs = x.reshape(*x.shape[:-1], -1, 2, head // 2)
    return np.swapaxes(pairs, -1, -2).reshape(x.shape)


def halved(x: np.ndarray, head: int) -> np.ndarray:
    """The inverse of `interleaved`."""
    pairs = x.reshape(*x.shape[:-1], -1, head // 2, 2)
    return np.swapaxes(pairs, -1, -2).reshape(x.shape)


TRANSFORMS = {
    "same": Transform(lambda x, _: x, lambda x, _: x),
    "linear": Transform(lambda x, _: x.T, lambda x, _: x.T),
    "rotary": Transform(
        lambda x, head: interleaved(x.T, head), lambda x, head: halved(x, head).T
    ),
    "rotary_vector": Transform(interleaved, halved),
    "conv": Transform(
        lambda x, _: x.transpose(2, 3, 1, 0), lambda x, _: x.transpose(3, 2, 0, 1)
    ),
    "row": Transform(lambda x, _: x[None], lambda x, _: x[0]),
    "row_linear": Transform(lambda x, _: x.T[None], lambda x, _: x[0].T),
}
