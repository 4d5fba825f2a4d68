"""Nearest codes of every code of a codebook, for rules that relax equality."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Float, Int


@register_dataclass
@dataclass(frozen=True)
class Neighbours:
    """Each token's nearest other tokens, nearest first.

    Attributes:
      ids: int32 [V, k + 1]. Rules test `k` of them; LANTERN's released rejection step
        takes one more out.
      distances: float32 [V, k + 1], Euclidean, in units of the code vectors.
    """

    ids: Int[Array, "V k1"]
    distances: Float[Array, "V k1"]

    @property
    def most(self) -> int:
        """Largest `k` that the table serves."""
        return self.ids.shape[1] - 1

    def for_vocabulary(self, vocab_size: int, offset: int) -> "Neighbours":
        """The table of a vocabulary in which code `c` is token `c + offset`.

        Tokens that are no codes get themselves at an infinite distance. Chameleon's
        family has offset 4.

        Raises:
          ConfigError: the codes do not fit.
        """
        codes, columns = self.ids.shape
        if offset < 0 or offset + codes > vocab_size:
            raise ConfigError(
                f"{codes} codes from token {offset} on do not fit into {vocab_size}"
            )
        ids = jnp.broadcast_to(jnp.arange(vocab_size)[:, None], (vocab_size, columns))
        inside = slice(offset, offset + codes)
        far = jnp.full((vocab_size, columns), jnp.inf)
        return Neighbours(
            ids.at[inside].set(self.ids + offset),
            far.at[inside].set(self.distances),
        )


def neighbour_table(
    codebook: Float[Array, "V d"], k: int, *, normalise: bool = False, block: int = 1024
) -> Neighbours:
    """Builds the table in blocks: never more than `block x V` distances at once.

    Args:
      codebook: code vectors as stored.
      k: neighbours that rules will test; `k + 1` are kept.
      normalise: compare directions instead of stored vectors. LANTERN's release
        compares stored ones, also for LlamaGen, whose tokenizer normalises them.
      block: rows at a time.

    Raises:
      ConfigError: there are not `k + 1` other codes.
    """
    codes = np.asarray(codebook, np.float32)
    if codes.ndim != 2 or not np.isfinite(codes).all():
        raise ConfigError(f"a codebook is [V, d] of finite numbers, not {codes.shape}")
    if not 1 <= k <= len(codes) - 2:
        raise ConfigError(
            f"k={k}: {len(codes)} codes have 1 to {len(codes) - 2} usable neighbours"
        )
    if normalise:
        length = np.linalg.norm(codes, axis=1, keepdims=True)
        codes = codes / np.maximum(length, 1e-12)
    else:  # distances from the middle code are the same, and cancel less below
        middle = np.linalg.norm(codes - codes.mean(axis=0), axis=1).argmin()
        codes = codes - codes[middle]
    parts = [
        _nearest(codes[at : at + block], codes, at, k + 1)
        for at in range(0, len(codes), block)
    ]
    ids, distances = (jnp.concatenate(x) for x in zip(*parts, strict=True))
    return Neighbours(ids, distances)


@partial(jax.jit, static_argnums=3)
def _nearest(rows, codes, first, count):
    """Nearest `count` others of consecutive rows; equal distances by lower id."""
    with jax.default_matmul_precision("highest"):
        squares = jnp.sum(codes**2, axis=1) - 2 * rows @ codes.T
    own = first + jnp.arange(len(rows))
    squares = jnp.where(jnp.arange(len(codes)) == own[:, None], jnp.inf, squares)
    _, ids = jax.lax.top_k(-squares, count)
    # The expansion above cancels; distances are taken again from the differences.
    exact = jax.lax.map(
        lambda pair: jnp.linalg.norm(codes[pair[0]] - pair[1], axis=-1), (ids, rows)
    )
    order = jnp.argsort(exact, axis=1, stable=True)
    ids = jnp.take_along_axis(ids, order, axis=1).astype(jnp.int32)
    return ids, jnp.take_along_axis(exact, order, axis=1)
