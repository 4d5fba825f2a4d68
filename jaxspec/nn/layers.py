"""RMSNorm, SwiGLU, linear maps and the output head."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxspec.nn.quantize import SCALE
from jaxspec.typing import Array, Float, Int, Params

# LlamaGen's initialisation of every matrix but the output head, which is zero.
INIT = nn.initializers.normal(0.02)


class Linear(nn.Module):
    """A linear map of the last axis onto one or several.

    Several axes keep apart what devices of a mesh divide (heads, the width of a SwiGLU)
    and what they do not (queries, keys and values; gate and up).

    The kernel may be int8 with a scale for each output, see `nn.quantize`.

    Attributes:
      features: the axes that take the last one's place.
      bias: whether there is one.
      init: of the kernel.
    """

    features: tuple[int, ...]
    bias: bool = False
    init: Callable[..., Array] = INIT

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "..."]:
        """Applies the map."""
        kernel = self.param("kernel", self.init, (x.shape[-1], *self.features))
        bias = None
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, self.features)
        if self.has_variable("params", "kernel" + SCALE):
            scale = self.get_variable("params", "kernel" + SCALE)
            y = scaled_product(x, kernel, scale).astype(x.dtype)
        else:
            x, kernel, bias = promote_dtype(x, kernel, bias)
            y = jnp.tensordot(x, kernel, axes=1)
        return y if bias is None else y + bias


def scaled_product(
    x: Float[Array, "... D"], kernel: Int[Array, "D ..."], scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Float32 product with a quantised matrix; whole numbers are exact in any dtype."""
    y = jnp.tensordot(
        x, kernel.astype(x.dtype), axes=1, preferred_element_type=jnp.float32
    )
    return y * scale


def linear(width: int | tuple[int, ...], name: str, bias: bool = False) -> Linear:
    """A linear map, without a bias unless asked."""
    features = (width,) if isinstance(width, int) else width
    return Linear(features, bias, name=name)


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
    """`down(silu(gate x) * up x)`, gate and up in one map `[D, 2, width]`."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Applies the two maps."""
        h = linear((2, self.width), "gate_up")(x)
        return linear(x.shape[-1], "down")(nn.silu(h[..., 0, :]) * h[..., 1, :])


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
      head: a matrix `[D, V]`; or a dict of a quantised one, "kernel" and "scale"; or of
        an MLP: "in" `[D, W]`, "in_bias", "out" `[W, V]`, "out_bias", with a GELU
        between (Janus).
      h: normed outputs.
    """
    if isinstance(head, Mapping) and "scale" in head:
        return scaled_product(h, head["kernel"], head["scale"])
    if isinstance(head, Mapping):
        h = nn.gelu(h @ head["in"] + head["in_bias"], approximate=False)
        bias = head["out_bias"].astype(jnp.float32)
        return jnp.matmul(h, head["out"], preferred_element_type=jnp.float32) + bias
    return jnp.matmul(h, head, preferred_element_type=jnp.float32)
