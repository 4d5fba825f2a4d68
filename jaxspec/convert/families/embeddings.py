"""Comparison of a drafter's token embedding with its target's."""

import ml_dtypes
import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.convert.reading.source import Source
from jaxspec.errors import ConfigError

# Number of embedding vectors that are compared at once.
_BLOCK = 4096


def has_own_embedding(
    source: Source, name: str, target: Checkpoint, width: int
) -> bool:
    """Returns whether a drafter's token embedding differs from its target's.

    Args:
      source: source of the drafter.
      name: name of the embedding tensor, which may be missing.
      target: target's checkpoint, with its embedding.
      width: model width of the drafter, `D`.

    Raises:
      ConfigError: the tensor is not an embedding `[V, D]` of the target's vocabulary.
    """
    table = source.tensors.get(name)
    if table is None:
        return False
    vocab = target.config.vocab_size
    if table.shape != (vocab, width):
        raise ConfigError(
            f"'{source.name}' reads tokens through a table of {table.shape}, its "
            f"target has {vocab} tokens of width {target.config.width}: it was trained "
            "for another target"
        )
    if width != target.config.width:
        return True
    target_table = np.asarray(target.params["embedding"]["embedding"])
    return not _equal_up_to_rounding(np.asarray(table.read()), target_table[:vocab])


def _equal_up_to_rounding(a: np.ndarray, b: np.ndarray) -> bool:
    """Compares arrays; if dtypes differ, up to the rounding of the coarser one."""
    if a.dtype == b.dtype:
        return np.array_equal(a, b)
    if any(x.dtype.kind in "iub" for x in (a, b)):
        return False
    infos = [ml_dtypes.finfo(x.dtype) for x in (a, b)]
    rtol = max(float(info.eps) for info in infos)
    atol = max(float(info.smallest_subnormal) for info in infos)
    for i in range(0, len(a), _BLOCK):
        x, y = (table[i : i + _BLOCK].astype(np.float32) for table in (a, b))
        limit = atol + rtol * np.maximum(np.abs(x), np.abs(y))
        if not (np.abs(x - y) <= limit).all():
            return False
    return True
