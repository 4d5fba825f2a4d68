"""Small block drafter with random parameters, and its target."""

from jaxspec.config import TransformerConfig
from jaxspec.drafters.dflash.drafter import DFlash
from tests.drafters.tiny import BLOCK
from tests.models.tiny import random_params
from tests.params import random_like

TARGET = TransformerConfig(
    vocab_size=23, layers=3, width=32, heads=2, grid=4, classes=3
)


def block_drafter():
    """The drafter, its own parameters, and those of the target."""
    drafter = DFlash(BLOCK, TARGET)
    drafter_params = random_like(drafter.init_params, seed=7)
    return drafter, drafter_params, random_params(TARGET)
