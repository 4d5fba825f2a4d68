"""A drafter's table of tokens beside its target's."""

import ml_dtypes
import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.convert.reading.stored import Source
from jaxspec.errors import ConfigError

# Rows that are compared at once.
_SOME = 4096


def own_table(source: Source, name: str, target: Checkpoint, width: int) -> bool:
    """Whether a drafter brings a table of tokens that is not its target's.

    Args:
      source: of the drafter.
      name: of the tensor, which may be missing.
      target: checkpoint with its embedding.
      width: `D` of the drafter.

    Raises:
      ConfigError: the tensor is no table of the target's tokens in that width.
    """
    table = source.tensors.get(name)
    if table is None:
        return False
    vocab = target.config.vocab_size
    if table.shape != (vocab, width):
        raise ConfigError(
            f"'{source.name}' reads tokens through a table of {table.shape}, its "
            f"target has {vocab} of {target.config.width}: another"
        )
    if width != target.config.width:
        return True
    theirs = np.asarray(target.params["embedding"]["embedding"])
    return not _same(np.asarray(table.read()), theirs[:vocab])


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Equality; of two dtypes, up to what the coarser of them rounds."""
    if one.dtype == other.dtype:
        return np.array_equal(one, other)
    if any(x.dtype.kind in "iub" for x in (one, other)):
        return False
    kinds = [ml_dtypes.finfo(x.dtype) for x in (one, other)]
    coarse = max(float(kind.eps) for kind in kinds)
    least = max(float(kind.smallest_subnormal) for kind in kinds)
    for i in range(0, len(one), _SOME):
        a, b = (x[i : i + _SOME].astype(np.float32) for x in (one, other))
        most = least + coarse * np.maximum(np.abs(a), np.abs(b))
        if not (np.abs(a - b) <= most).all():
            return False
    return True
