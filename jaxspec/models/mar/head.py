"""Diffusion head: what is predicted of a noised token, given its condition."""

import math

import flax.linen as nn
import jax.numpy as jnp

from jaxspec.config.mar import MARConfig
from jaxspec.nn.layers import ZEROS, Linear, linear
from jaxspec.nn.norms import LayerNorm, layer_norm

# Sinusoids of the time, half of them cosines, and their longest period.
_SINUSOIDS, _PERIOD = 256, 10000.0


def _modulated(x, shift, scale):
    return x * (scale + jnp.ones((), scale.dtype)) + shift


class _Layer(nn.Module):
    """Residual layer with shift, scale and gate from the condition."""

    eps: float

    @nn.compact
    def __call__(self, x, condition):
        width = x.shape[-1]
        modulation = Linear((3 * width,), True, ZEROS, name="modulation")
        shift, scale, gate = jnp.split(modulation(nn.silu(condition)), 3, axis=-1)
        h = _modulated(LayerNorm(self.eps, name="norm")(x), shift, scale)
        h = nn.silu(linear(width, "change", bias=True)(h))
        return x + gate * linear(width, "down", bias=True)(h)


class DiffusionHead(nn.Module):
    """Residual network over noised tokens; see `MAR.predict_noise`.

    Attributes:
      config: sizes of the network.
    """

    config: MARConfig

    @nn.compact
    def __call__(self, state, time, conditions):
        """Noise and interpolation of the variance, float32 [..., 2 C]."""
        c = self.config
        dtype = conditions.dtype
        half = _SINUSOIDS // 2
        pace = jnp.exp(-math.log(_PERIOD) / half * jnp.arange(half, dtype=jnp.float32))
        angles = time.astype(jnp.float32)[..., None] * pace.reshape(
            *(1,) * time.ndim, -1
        )
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        h = linear(c.head_width, "time_in", bias=True)(waves.astype(dtype))
        h = linear(c.head_width, "time_out", bias=True)(nn.silu(h))
        condition = h + linear(c.head_width, "condition", bias=True)(conditions)
        x = linear(c.head_width, "state_in", bias=True)(state.astype(dtype))
        for i in range(c.head_layers):
            x = _Layer(c.norm_eps, name=f"layers_{i}")(x, condition)
        # The first steps of a chain multiply errors by some hundreds, so that the last
        # layer is computed in float32.
        x, condition = x.astype(jnp.float32), condition.astype(jnp.float32)
        modulation = Linear((2 * c.head_width,), True, ZEROS, name="modulation")
        shift, scale = jnp.split(modulation(nn.silu(condition)), 2, axis=-1)
        x = _modulated(layer_norm(x, c.norm_eps), shift, scale)
        return Linear((2 * c.channels,), True, ZEROS, name="out")(x)
