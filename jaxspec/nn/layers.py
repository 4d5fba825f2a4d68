"""RMSNorm, SwiGLU, the plain linear map and the output head."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.typing import Array, Float, Params

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


class HeadNorm(nn.Module):
    """LayerNorm of each head, with scales and biases of its own; float32 inside."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "... H F"]) -> Float[Array, "... H F"]:
        """Norms the last axis."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-2:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-2:])
        h = x.astype(jnp.float32)
        h = h - jnp.mean(h, axis=-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + self.eps)
        return h.astype(x.dtype) * scale + bias


def head_scores(head: Params, h: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Logits float32 of an output head.

    Args:
      head: a matrix `[D, V]`, or a dict of an MLP: "in" `[D, W]`, "in_bias", "out"
        `[W, V]`, "out_bias", with a GELU between (Janus).
      h: normed outputs.
    """
    if isinstance(head, Mapping):
        h = nn.gelu(h @ head["in"] + head["in_bias"], approximate=False)
        bias = head["out_bias"].astype(jnp.float32)
        return jnp.matmul(h, head["out"], preferred_element_type=jnp.float32) + bias
    return jnp.matmul(h, head, preferred_element_type=jnp.float32)
