"""Small text model, prompts of different lengths, and drafters for it."""

import jax.numpy as jnp

from jaxspec.config import TransformerConfig
from jaxspec.drafters import Falcon, FalconConfig
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.drafters.eagle.drafter import Eagle
from jaxspec.drafters.eagle.network import EagleConfig
from jaxspec.models.transformer.model import Transformer
from tests.models.tiny import random_params

CONFIG = TransformerConfig(
    vocab_size=17, layers=2, width=32, heads=2, rope="sequence", max_length=48,
    condition="none", classes=1,
)  # fmt: skip
MODEL, PARAMS = Transformer(CONFIG), random_params(CONFIG)
PROMPT = jnp.array([[3, 1, 4, 1, 5], [9, -1, -1, -1, -1], [2, 6, 5, -1, -1]])
# Prompts of the unconditional branch.
NULL = jnp.array([[7, -1], [7, 8], [11, 7]])
BLOCK = DFlashConfig(4, 1, 32, 2, ffn_width=48, feature_layers=(0, 1), markov_rank=4)
DRAFTERS = {
    "block": DFlash(BLOCK, CONFIG),
    "eagle-3": Eagle(EagleConfig(3, 32, 2, None, 48, feature_layers=(0, 1)), CONFIG),
    "falcon": Falcon(FalconConfig(2, 32, 2, 48), CONFIG),
}
