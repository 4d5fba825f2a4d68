"""A small next-scale model with random parameters, and its quantizer."""

import jax
import jax.numpy as jnp

from jaxspec.config import NextScaleConfig
from jaxspec.models.next_scale.model import NextScale
from jaxspec.next_scale import NextScaleVariables
from jaxspec.tokenizers.multi_scale.scales import Scales
from tests.params import random_like

CONFIG = NextScaleConfig(
    vocab_size=11,
    code_dim=4,
    layers=3,
    width=24,
    heads=4,
    scales=(1, 2, 3, 5),
    classes=5,
)
MODEL = NextScale(CONFIG)
SCALES = Scales(CONFIG.scales, (0, 0, 1, 1), 0.5)
LENGTH = 39


def random_params(model=MODEL, seed=0):
    """Parameters far from their initial values, so that every part counts."""
    return random_like(model.init, spread=0.3, seed=seed)


@jax.jit
def _quantizer(key):
    params = SCALES.init(key, CONFIG.vocab_size, CONFIG.code_dim)
    return jax.tree.map(lambda x: x + jnp.float32(0.05), params)


def variables(*models, seed=0):
    """Variables of models with random parameters; one model by default."""
    models = models or (MODEL,)
    params = tuple(random_params(m, seed + 10 * i) for i, m in enumerate(models))
    quantizer = _quantizer(jax.random.key(7))
    return NextScaleVariables(params, quantizer)
