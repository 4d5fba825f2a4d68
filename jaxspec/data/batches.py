"""Which examples make up a training step: a pure function of (seed, step)."""

import numpy as np


def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The permutation of one pass over the data."""
    return np.random.default_rng((seed, epoch)).permutation(examples)


def batch_indices(seed: int, step: int, batch: int, examples: int) -> np.ndarray:
    """Indices `int64 [batch]` of step `step`: shuffled epochs laid end to end.

    A run that resumes at a step sees just what it would have seen.
    """
    start = step * batch
    places = np.arange(start, start + batch)
    epochs = places // examples
    out = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = epoch_order(seed, int(epoch), examples)[places[here] % examples]
    return out


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Host randomness of a step (flips, crops), apart from the order."""
    return np.random.default_rng((seed, step, 1))
