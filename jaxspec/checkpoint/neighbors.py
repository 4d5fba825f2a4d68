"""File of a tokenizer's neighbor table: the nearest entries of each codebook entry."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxspec.errors import CheckpointError
from jaxspec.speculative.verify.neighbors import Neighbors

NEIGHBORS = "neighbors.npz"


def write_neighbors(file: Path, table: Neighbors) -> None:
    """Writes a neighbor table, with ids in 16 bits where the codebook allows it."""
    dtype = np.uint16 if table.ids.shape[0] <= 1 << 16 else np.int32
    ids, distances = np.asarray(table.ids, dtype), np.asarray(table.distances)
    np.savez_compressed(file, ids=ids, distances=distances)


def read_neighbors(file: Path, codebook_size: int) -> Neighbors:
    """Reads and checks the neighbor table of a codebook.

    Raises:
      CheckpointError: the file is damaged, or belongs to another codebook.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            ids, distances = arrays["ids"].astype(np.int32), arrays["distances"]
        valid = ids.shape == distances.shape and ids.ndim == 2
        valid = valid and len(ids) == codebook_size
        valid = valid and bool((ids >= 0).all() and (ids < codebook_size).all())
        valid = valid and bool((distances >= 0).all())
    except Exception:  # numpy, zipfile and zlib each raise their own types
        valid = False
    if not valid:
        raise CheckpointError(
            f"'{file}' is damaged, or not the table of a codebook of {codebook_size}; "
            "fetch it again, or delete it to have it rebuilt from the codebook"
        )
    return Neighbors(jnp.asarray(ids), jnp.asarray(distances, jnp.float32))
