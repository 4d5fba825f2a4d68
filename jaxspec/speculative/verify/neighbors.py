"""Nearest neighbors of the entries of a codebook, for relaxed verification."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Float, Int


@register_dataclass
@dataclass(frozen=True)
class Neighbors:
    """Nearest other tokens of each token, nearest first.

    Attributes:
      ids: int32 [V, M], `M = k + 1` neighbors. Verifiers test `k` of them; the residual
        of LANTERN's release removes one more.
      distances: float32 [V, M], Euclidean distances in units of the code vectors.
    """

    ids: Int[Array, "V M"]
    distances: Float[Array, "V M"]

    @property
    def most(self) -> int:
        """Largest `k` for which the table has enough columns."""
        return self.ids.shape[1] - 1

    def for_vocabulary(self, vocab_size: int, offset: int) -> "Neighbors":
        """Table of a vocabulary in which codebook entry `c` is token `c + offset`.

        Tokens that are no codebook entries have themselves as neighbors, at an infinite
        distance.

        Args:
          vocab_size: size of the vocabulary.
          offset: token of the first codebook entry; 4 for Chameleon and its family.

        Raises:
          ConfigError: the codebook does not fit into the vocabulary.
        """
        codes, columns = self.ids.shape
        if offset < 0 or offset + codes > vocab_size:
            raise ConfigError(
                f"{codes} codes from token {offset} on do not fit into a vocabulary of "
                f"{vocab_size}"
            )
        ids = jnp.broadcast_to(jnp.arange(vocab_size)[:, None], (vocab_size, columns))
        inside = slice(offset, offset + codes)
        far = jnp.full((vocab_size, columns), jnp.inf)
        return Neighbors(
            ids.at[inside].set(self.ids + offset),
            far.at[inside].set(self.distances),
        )


def neighbor_table(
    codebook: Float[Array | np.ndarray, "V C"],
    k: int,
    *,
    normalize: bool = False,
    block: int = 256,
) -> Neighbors:
    """Builds a table of nearest neighbors on the host, in float64.

    Neighbors are in the order of their exact distances (to float64 rounding), lower ids
    first among equals, for any finite codebook.

    Args:
      codebook: code vectors as stored.
      k: number of neighbors that verifiers will test; the table has `k + 1`.
      normalize: whether to compare directions instead of vectors. LANTERN's release
        compares vectors, also for LlamaGen, whose tokenizer normalizes them.
      block: number of entries whose distances to all others are in memory at once.

    Raises:
      ConfigError: there are not `k + 1` other entries, or a number is not finite.
    """
    codes = np.asarray(codebook, np.float32).astype(np.float64)
    if codes.ndim != 2 or not np.isfinite(codes).all():
        raise ConfigError(f"a codebook is [V, C] of finite numbers, not {codes.shape}")
    if not 1 <= k <= len(codes) - 2:
        raise ConfigError(
            f"k={k}: {len(codes)} codes have 1 to {len(codes) - 2} usable neighbors"
        )
    if normalize:
        length = np.linalg.norm(codes, axis=1, keepdims=True)
        codes = codes / np.maximum(length, 1e-12)
    parts = [
        _nearest(codes, np.arange(start, min(start + block, len(codes))), k + 1)
        for start in range(0, len(codes), block)
    ]
    ids, distances = (np.concatenate(x) for x in zip(*parts, strict=True))
    # Infinite distances are reserved for tokens that are no codebook entries.
    distances = np.minimum(distances, np.finfo(np.float32).max).astype(np.float32)
    return Neighbors(jnp.asarray(ids, jnp.int32), jnp.asarray(distances))


def _nearest(
    codes: np.ndarray, index: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and distances [M, count] of the nearest neighbors of `M` entries.

    Matrix products give squared distances up to a bound of their rounding error. This
    selects the entries that may be among the nearest; their distances are then computed
    from differences.
    """
    norms = np.sum(codes**2, axis=1)
    squares = norms[index, None] + norms - 2 * codes[index] @ codes.T
    error = 4 * (codes.shape[1] + 2) * np.finfo(np.float64).eps
    error = error * (norms[index, None] + norms)
    squares[np.arange(len(index)), index] = np.inf  # no entry is its own neighbor
    upper = np.partition(squares + error, count - 1, axis=1)[:, count - 1 : count]
    lower = squares - error
    width = int(np.sum(lower <= upper, axis=1).max())
    ids = np.argpartition(lower, width - 1, axis=1)[:, :width]
    ids.sort(axis=1)  # lower ids first among equal distances
    step = max(1, (1 << 22) // (width * codes.shape[1]))  # limits the memory
    exact = np.concatenate(
        [
            np.linalg.norm(
                codes[ids[i : i + step]] - codes[index[i : i + step], None], axis=-1
            )
            for i in range(0, len(index), step)
        ]
    )
    exact[ids == index[:, None]] = np.inf
    order = np.argsort(exact, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(exact, order, 1)
