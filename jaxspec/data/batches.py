"""Examples of a training step, as a pure function of (seed, step), or held out."""

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


def flip_at_random(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors each image [B, height, width, C] left to right with probability 1/2."""
    mirrored = rng.random(len(images))[:, None, None, None] < 0.5
    return np.where(mirrored, images[:, :, ::-1], images)


def evenly_spaced(examples: int, count: int) -> np.ndarray:
    """Indices int64 [count] spread over the examples, which may be sorted by class."""
    return np.linspace(0, examples - 1, count).astype(np.int64)


def heldout_batches(examples: int, most: int, batch: int) -> np.ndarray:
    """Evenly spaced indices int64 [M, batch] of at least one full batch.

    Args:
      examples: number of held-out examples.
      most: largest number of examples to measure, if it is at least `batch`.
      batch: examples per batch.
    """
    count = max(min(most, examples) // batch, 1) * batch
    return evenly_spaced(examples, count).reshape(-1, batch)
