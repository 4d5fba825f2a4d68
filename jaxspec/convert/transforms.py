"""Layout transforms between PyTorch tensors and parameters, with their inverses.

A transform is a pair of functions of an array and the model's `Heads`, which most
ignore. PyTorch stores linear maps as `[out, in]` and convolutions as
`[out, in, height, width]`; ours are `[in, out]` and `[height, width, in, out]`. Hugging
Face's rotary embedding rotates element `j` of a head together with element `j + F / 2`;
ours rotates neighboring elements.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Heads:
    """Attention heads of a model.

    Attributes:
      size: head size, `F`.
      groups: number of key/value heads, `K`.
      queries: number of query heads, `H`.
    """

    size: int = 2
    groups: int = 1
    queries: int = 1


@dataclass(frozen=True)
class Transform:
    """An invertible change of layout.

    Attributes:
      to_jax: function from PyTorch's layout to ours.
      to_torch: inverse of `to_jax`.
    """

    to_jax: Callable[[np.ndarray, Heads], np.ndarray]
    to_torch: Callable[[np.ndarray, Heads], np.ndarray]


def interleave_halves(x: np.ndarray) -> np.ndarray:
    """Makes elements `j` and `j + F / 2` of the last axis neighbors."""
    pairs = x.reshape(*x.shape[:-1], 2, -1)
    return np.swapaxes(pairs, -1, -2).reshape(x.shape)


def split_halves(x: np.ndarray) -> np.ndarray:
    """Inverts `interleave_halves`."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    return np.swapaxes(pairs, -1, -2).reshape(x.shape)


def repeat_head_norms(x: np.ndarray, heads: int) -> np.ndarray:
    """Repeats norms of heads from `[n, F]` to `[heads, F]`; others are unchanged.

    Models trained with tensor parallelism (Chameleon's family) store one norm for each
    of the `n` devices, which adjacent heads share.
    """
    if x.ndim == 2 and len(x) < heads and heads % len(x) == 0:
        return np.repeat(x, heads // len(x), axis=0)
    return x


def split_heads(x: np.ndarray, heads: Heads) -> np.ndarray:
    """Splits the last axis: `[..., (K g F)]` to `[..., g, K, F]`."""
    x = x.reshape(*x.shape[:-1], heads.groups, -1, heads.size)
    return np.swapaxes(x, -2, -3)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """Inverts `split_heads`."""
    x = np.swapaxes(x, -2, -3)
    return x.reshape(*x.shape[:-3], -1)


def _split_qkv(x: np.ndarray, heads: Heads) -> np.ndarray:
    """Splits queries, keys, values: `[D, (H + 2 K) F]` to `[D, g + 2, K, F]`."""
    kv_width = heads.groups * heads.size
    parts = np.split(x, [x.shape[-1] - 2 * kv_width, x.shape[-1] - kv_width], axis=-1)
    return np.concatenate([split_heads(part, heads) for part in parts], axis=-3)


def _merge_qkv(x: np.ndarray) -> np.ndarray:
    """Inverts `_split_qkv`."""
    parts = np.split(x, [x.shape[-3] - 2, x.shape[-3] - 1], axis=-3)
    return np.concatenate([merge_heads(part) for part in parts], axis=-1)


TRANSFORMS = {
    "same": Transform(lambda x, _: x, lambda x, _: x),
    "linear": Transform(lambda x, _: x.T, lambda x, _: x.T),
    "layer": Transform(lambda x, _: x.T[:, None], lambda x, _: x[:, 0].T),
    "heads": Transform(lambda x, h: split_heads(x.T, h), lambda x, _: merge_heads(x).T),
    "heads_rotary": Transform(
        lambda x, h: interleave_halves(split_heads(x.T, h)),
        lambda x, _: merge_heads(split_halves(x)).T,
    ),
    "heads_vector": Transform(split_heads, lambda x, _: merge_heads(x)),
    "heads_vector_rotary": Transform(
        lambda x, h: interleave_halves(split_heads(x, h)),
        lambda x, _: merge_heads(split_halves(x)),
    ),
    "heads_fused": Transform(
        lambda x, h: _split_qkv(x.T, h), lambda x, _: _merge_qkv(x).T
    ),
    "rotary_vector": Transform(
        lambda x, _: interleave_halves(x), lambda x, _: split_halves(x)
    ),
    "query_norm": Transform(
        lambda x, h: interleave_halves(repeat_head_norms(x, h.queries)),
        lambda x, _: split_halves(x),
    ),
    "key_norm": Transform(
        lambda x, h: interleave_halves(repeat_head_norms(x, h.groups)),
        lambda x, _: split_halves(x),
    ),
    "conv": Transform(
        lambda x, _: x.transpose(2, 3, 1, 0), lambda x, _: x.transpose(3, 2, 0, 1)
    ),
    "pointwise": Transform(lambda x, _: x.T[None, None], lambda x, _: x[0, 0].T),
    "row": Transform(lambda x, _: x[None], lambda x, _: x[0]),
    "row_linear": Transform(lambda x, _: x.T[None], lambda x, _: x[0].T),
}
