"""Nearest codes of every code of a codebook, for verifiers that relax equality."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Float, Int


@register_dataclass
@dataclass(frozen=True)
class Neighbors:
    """Each token's nearest other tokens, nearest first.

    Attributes:
      ids: int32 [V, k + 1]. Verifiers test `k` of them; LANTERN's released rejection
        step takes one more out.
      distances: float32 [V, k + 1], Euclidean, in units of the code vectors.
    """

    ids: Int[Array, "V k1"]
    distances: Float[Array, "V k1"]

    @property
    def most(self) -> int:
        """Largest `k` that the table serves."""
        return self.ids.shape[1] - 1

    def for_vocabulary(self, vocab_size: int, offset: int) -> "Neighbors":
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
        return Neighbors(
            ids.at[inside].set(self.ids + offset),
            far.at[inside].set(self.distances),
        )


def neighbor_table(
    codebook: Float[Array, "V d"], k: int, *, normalize: bool = False, block: int = 256
) -> Neighbors:
    """Builds the table on the host, in float64, in blocks of `block x V` distances.

    The order is that of the exact distances of the stored numbers (to float64
    rounding), lower ids first among equals, for any finite codebook.

    Args:
      codebook: code vectors as stored.
      k: neighbors that verifiers will test; `k + 1` are kept.
      normalize: compare directions instead of stored vectors. LANTERN's release
        compares stored ones, also for LlamaGen, whose tokenizer normalizes them.
      block: rows at a time.

    Raises:
      ConfigError: there are not `k + 1` other codes, or a number is not finite.
    """
    codes = np.asarray(codebook, np.float32).astype(np.float64)
    if codes.ndim != 2 or not np.isfinite(codes).all():
        raise ConfigError(f"a codebook is [V, d] of finite numbers, not {codes.shape}")
    if not 1 <= k <= len(codes) - 2:
        raise ConfigError(
            f"k={k}: {len(codes)} codes have 1 to {len(codes) - 2} usable neighbors"
        )
    if normalize:
        length = np.linalg.norm(codes, axis=1, keepdims=True)
        codes = codes / np.maximum(length, 1e-12)
    parts = [
        _nearest(codes, np.arange(at, min(at + block, len(codes))), k + 1)
        for at in range(0, len(codes), block)
    ]
    ids, distances = (np.concatenate(x) for x in zip(*parts, strict=True))
    # Infinite is kept for tokens that are no codes.
    distances = np.minimum(distances, np.finfo(np.float32).max).astype(np.float32)
    return Neighbors(jnp.asarray(ids, jnp.int32), jnp.asarray(distances))


def _nearest(
    codes: np.ndarray, rows: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and distances `[rows, count]` of the nearest others, nearest first.

    Products find who may be among the nearest; as they cancel, a bound of their error
    is allowed for, and the distances of all these are taken from the differences.
    """
    norms = np.sum(codes**2, axis=1)
    squares = norms[rows, None] + norms - 2 * codes[rows] @ codes.T
    error = 4 * (codes.shape[1] + 2) * np.finfo(np.float64).eps
    error = error * (norms[rows, None] + norms)
    squares[np.arange(len(rows)), rows] = np.inf  # no code is its own neighbor
    most = np.partition(squares + error, count - 1, axis=1)[:, count - 1 : count]
    least = squares - error
    width = int(np.sum(least <= most, axis=1).max())
    ids = np.argpartition(least, width - 1, axis=1)[:, :width]
    ids.sort(axis=1)  # equal distances by lower id
    few = max(1, (1 << 22) // (width * codes.shape[1]))  # rows whose differences fit
    exact = np.concatenate(
        [
            np.linalg.norm(
                codes[ids[i : i + few]] - codes[rows[i : i + few], None], axis=-1
            )
            for i in range(0, len(rows), few)
        ]
    )
    exact[ids == rows[:, None]] = np.inf
    order = np.argsort(exact, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(exact, order, 1)
