"""Optimizers of the trainers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.errors import ConfigError
from jaxspec.train.optimizer import make_optimizer
from jaxspec.train.settings import TrainingConfig

RATE = 0.01
PARAMS = {
    "dense": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)},
    "gate_up": {"kernel": jnp.ones((8, 2, 5))},
    "qkv": {"kernel": jnp.ones((8, 3, 2, 4))},
    "embedding": {"embedding": jnp.ones((9, 8))},
}


def first_update(**settings):
    """Update of random gradients in the first step without warm-up."""
    config = TrainingConfig(
        100, 1, learning_rate=RATE, warmup=0, weight_decay=0.0, clip=1e9, **settings
    )
    leaves, structure = jax.tree.flatten(PARAMS)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    gradient = [
        jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
    ]
    gradient = jax.tree.unflatten(structure, gradient)
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
    return updates


def singular_values(matrix):
    """Singular values as multiples of those of an update as large as AdamW's."""
    matrix = np.asarray(matrix)
    size = 0.2 * RATE * max(matrix.shape) ** 0.5
    return np.linalg.svd(matrix, compute_uv=False) / size


def test_muon_makes_the_update_of_every_matrix_orthogonal():
    """Up to its few iterations, and matrix by matrix in a fused kernel."""
    updates = first_update(optimizer="muon")
    matrices = [updates["dense"]["kernel"]]
    matrices += [updates["gate_up"]["kernel"][:, i] for i in range(2)]
    matrices += [updates["qkv"]["kernel"][:, i].reshape(8, 8) for i in range(3)]
    for matrix in matrices:
        values = singular_values(matrix)
        assert 0.5 < values.min() and values.max() < 1.4
    # The controls: another optimizer, and a table that is no matrix of a linear layer.
    for matrix in (
        first_update()["dense"]["kernel"],
        updates["embedding"]["embedding"],
    ):
        values = singular_values(matrix)
        assert values.max() > 2 * values.min() and values.max() > 2


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ConfigError, match="choose adamw, muon"):
        TrainingConfig(1, 1, optimizer="sgd")
