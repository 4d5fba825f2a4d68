"""RMSNorm, SwiGLU and the plain linear map."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.typing import Array, Float

# LlamaGen's initialisation of every matrix but the output head, which is zero.
INIT = nn.initializers.normal(0.02)


def linear(width: int, name: str, bias: bool = False) -> nn.Dense:
    """A linear map, without a bias unless asked."""
    return nn.Dense(width, use_bias=bias, kernel_init=INIT, name=name)


class RMSNorm(nn.Module):
    """Root-mean-square norm: float32 inside, cast back, then scaled."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Norms the last axis."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + self.eps)
        return h.astype(x.dtype) * scale


class SwiGLU(nn.Module):
    """`down(silu(gate x) * up x)`, gate and up in one matrix `[D, 2 width]`."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Applies the two maps."""
        gate, up = jnp.split(linear(2 * self.width, "gate_up")(x), 2, axis=-1)
        return linear(x.shape[-1], "down")(nn.silu(gate) * up)
