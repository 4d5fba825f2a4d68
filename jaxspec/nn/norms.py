"""LayerNorm, computed in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.nn.layers import ONES, ZEROS, add_bias, scale_last
from jaxspec.typing import Array, Float


def layer_norm(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    """Normalization of the last axis without scale and bias, cast back at the end."""
    h = x.astype(jnp.float32)
    h = h - jnp.mean(h, axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
    return h.astype(x.dtype)


class LayerNorm(nn.Module):
    """LayerNorm with a learned scale and bias.

    Attributes:
      eps: added to the variance.
    """

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalizes the last axis."""
        scale = self.param("scale", ONES, (x.shape[-1],))
        bias = self.param("bias", ZEROS, (x.shape[-1],))
        return add_bias(scale_last(layer_norm(x, self.eps), scale), bias)
