"""A small transformer, and random parameters of any."""

import jax

from jaxspec.config import TransformerConfig
from jaxspec.models.transformer.model import Transformer

TINY = TransformerConfig(vocab_size=19, layers=2, width=32, heads=2, grid=3, classes=4)


def random_params(config, seed=0):
    """Parameters whose output head is not zero."""
    params = Transformer(config).init(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [
        x + 0.1 * jax.random.normal(k, x.shape, x.dtype)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, leaves)
