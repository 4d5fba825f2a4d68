"""Examples of a training step, as a pure function of (seed, step)."""

import numpy as np


def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """Permutation of the examples for one epoch, int64 [examples]."""
    return np.random.default_rng((seed, epoch)).permutation(examples)


def batch_indices(seed: int, step: int, batch: int, examples: int) -> np.ndarray:
    """Indices int64 [batch] of a step, from concatenated shuffled epochs.

    A resumed run therefore reads the same examples as an uninterrupted one.

    Args:
      seed: seed of the shuffling.
      step: index of the step, from 0.
      batch: examples per step.
      examples: number of examples in the data.
    """
    start = step * batch
    positions = np.arange(start, start + batch)
    epochs = positions // examples
    indices = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        order = epoch_order(seed, int(epoch), examples)
        indices[chosen] = order[positions[chosen] % examples]
    return indices


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Generator of a step's random flips and crops, independent of the order."""
    return np.random.default_rng((seed, step, 1))
