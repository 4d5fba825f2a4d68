"""Numbers of tokens that stay masked after each step, and random orders of tokens."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.typing import Array, BatchKeys, Int

# Share of the tokens that stay masked after a share `r` of the steps (MaskGIT,
# arXiv 2202.04200; "arccos" is of later implementations).
SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda r: math.cos(math.pi / 2 * r),
    "arccos": lambda r: math.acos(r) * 2 / math.pi,
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r**2,
    "cubic": lambda r: 1 - r**3,
    "root": lambda r: 1 - math.sqrt(r),
}
# Number folded into the key of a sequence for the order of its tokens.
_ORDER = 0x80000004


def masked_counts(tokens: int, steps: int, shape: str = "cosine") -> np.ndarray:
    """Number of masked tokens before each step and at the end, int32 [steps + 1].

    Every step but the last leaves at least one token masked, and fewer than before; the
    last one leaves none.

    Args:
      tokens: number of tokens, at least `steps`.
      steps: number of steps.
      shape: one of `SHAPES`.
    """
    masked = [tokens]
    for step in range(steps - 1):
        left = math.floor(tokens * SHAPES[shape]((step + 1) / steps))
        # Later steps need a token each.
        masked.append(max(steps - 1 - step, min(left, masked[-1] - 1)))
    return np.array([*masked, 0], np.int32)


def random_order(keys: BatchKeys, tokens: int) -> Int[Array, "B T"]:
    """A permutation of the tokens of each sequence; the last ones become known first.

    Args:
      keys: typed keys of the sequences.
      tokens: number of tokens.
    """

    def one(key):
        key = jax.random.fold_in(key, jnp.uint32(_ORDER))
        return jax.random.permutation(key, jnp.arange(tokens, dtype=jnp.int32))

    return jax.vmap(one)(keys)
