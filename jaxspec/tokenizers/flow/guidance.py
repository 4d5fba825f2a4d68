"""Adaptive projected guidance of a flow (APG, arXiv 2410.02416)."""

import jax.numpy as jnp

from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.typing import Array, Float


def projected_guidance(
    config: FlowTokenizerConfig,
    given: Float[Array, "B h w C"],
    null: Float[Array, "B h w C"],
    average: Float[Array, "B h w C"],
) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w C"]]:
    """Prediction after guidance, and the running difference, float32.

    The difference of both predictions is added to what is left of earlier ones, its
    norm is bounded, and its part along the prediction with tokens is weakened, which is
    what makes colors too strong.

    Args:
      config: scale and the three settings.
      given: prediction with tokens.
      null: prediction without.
      average: running difference of the step before; zeros at first.
    """
    average = given - null + config.momentum * average
    change = average
    if config.most_change:
        bound = config.most_change / jnp.maximum(_norm(change), 1e-12)
        change = change * jnp.minimum(bound, 1.0)
    unit = given / jnp.maximum(_norm(given), 1e-12)
    along = jnp.sum(change * unit, axis=(1, 2, 3), keepdims=True) * unit
    change = change - (1 - config.parallel) * along
    return given + (config.guidance - 1) * change, average


def _norm(x: Float[Array, "B h w C"]) -> Float[Array, "B 1 1 1"]:
    return jnp.sqrt(jnp.sum(x * x, axis=(1, 2, 3), keepdims=True))
