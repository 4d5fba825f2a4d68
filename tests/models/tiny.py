"""A small transformer, and random parameters of any."""

from jaxspec.config import TransformerConfig
from jaxspec.models.transformer.model import Transformer
from tests.params import random_like

TINY = TransformerConfig(vocab_size=19, layers=2, width=32, heads=2, grid=3, classes=4)


def random_params(config, seed=0):
    """Parameters whose output head is not zero."""
    return random_like(Transformer(config).init, seed=seed)
