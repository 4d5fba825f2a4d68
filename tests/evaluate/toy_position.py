"""A position with few tokens, all of whose drafts can be listed."""

import numpy as np

from jaxspec.evaluate.relaxation.positions import Position, synthetic_distributions
from jaxspec.speculative.verify.neighbors import neighbor_table


def toy_position(vocab_size: int, *, neighbors: int, seed: int = 0) -> Position:
    """Synthetic position with random unit vectors as codebook."""
    rng = np.random.default_rng(seed)
    codebook = rng.normal(size=(vocab_size, 4))
    codebook /= np.linalg.norm(codebook, axis=1, keepdims=True)
    codebook = codebook.astype(np.float32)
    p, q = synthetic_distributions(rng, vocab_size, near=True)
    return Position(p, q, codebook, neighbor_table(codebook, neighbors))
