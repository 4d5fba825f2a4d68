"""Small block drafter with random parameters, and its target."""

import jax

from jaxspec.config import TransformerConfig
from jaxspec.drafters.dflash.drafter import DFlash
from tests.drafters.tiny import BLOCK
from tests.models.tiny import random_params

TARGET = TransformerConfig(
    vocab_size=23, layers=3, width=32, heads=2, grid=4, classes=3
)


def block_drafter():
    """The drafter, its own parameters, and those of the target."""
    drafter = DFlash(BLOCK, TARGET)
    drafter_params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(7), x.shape),
        drafter.init_params(jax.random.key(0)),
    )
    return drafter, drafter_params, random_params(TARGET)
