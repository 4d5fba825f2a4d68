"""Positions of the study: synthetic ones, and those of the checkpoint."""

import jax.numpy as jnp
import numpy as np

from jaxspec.evaluate.relaxation.positions import (
    Position,
    model_distributions,
    synthetic_distributions,
)
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.verifiers import verifier_params
from jaxspec.speculative.verify import CoupledRelaxed
from jaxspec.speculative.verify.neighbors import neighbor_table


def toy_positions(
    count: int,
    *,
    near: bool,
    vocab_size: int = 64,
    width: int = 4,
    max_neighbors: int = 50,
) -> list[Position]:
    """Synthetic positions with random unit vectors as codebook.

    Args:
      count: Number of positions, each with its own codebook.
      near: Whether the drafter is near the target, see `synthetic_distributions`.
      vocab_size: Number of codebook entries `V`.
      width: Width of a codebook entry `C`.
      max_neighbors: Number of neighbors in the table.
    """
    positions = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        codebook = rng.normal(size=(vocab_size, width))
        codebook /= np.linalg.norm(codebook, axis=1, keepdims=True)
        codebook = codebook.astype(np.float32)
        p, q = synthetic_distributions(rng, vocab_size, near=near)
        neighbors = neighbor_table(jnp.asarray(codebook), max_neighbors)
        positions.append(Position(p, q, codebook, neighbors))
    return positions


def model_positions(
    bundle: Bundle, count: int, *, seed: int = 0, max_neighbors: int = 100
) -> list[Position]:
    """Random positions in images of the checkpoint, see `model_distributions`.

    Args:
      bundle: Models.
      count: Number of images.
      seed: Seed of images and positions.
      max_neighbors: Number of neighbors in the table.
    """
    codebook = np.asarray(bundle.tokenizer.params["codebook"])
    tables = verifier_params(CoupledRelaxed(max_neighbors, 1.0), bundle)
    assert tables is not None
    return [
        Position(p, q, codebook, tables["neighbors"])
        for p, q in zip(*model_distributions(bundle, count, seed=seed), strict=True)
    ]
