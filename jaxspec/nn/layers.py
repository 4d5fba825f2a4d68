"""RMSNorm, SwiGLU, linear maps and the output head."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxspec.nn.quantize import SCALE
from jaxspec.typing import Array, Float, Int, Params

# Initial parameters are float32 whatever JAX's default is. Of LlamaGen's matrices, all
# but the output head are drawn from INIT.
INIT = nn.initializers.normal(0.02, jnp.float32)
ZEROS = nn.initializers.constant(0.0, jnp.float32)
ONES = nn.initializers.constant(1.0, jnp.float32)


def scaled(x: Float[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """The product with a scale for each entry of the last axes."""
    return x * _along_last(scale, x)


def shifted(x: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    """The sum with a bias for each entry of the last axes."""
    return x + _along_last(bias, x)


def _along_last(own: Array, x: Array) -> Array:
    """`own` with as many axes as `x`, those that are missing in front."""
    return jnp.expand_dims(own, tuple(range(x.ndim - own.ndim)))


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
            bias = self.param("bias", ZEROS, self.features)
        if self.has_variable("params", "kernel" + SCALE):
            scale = self.get_variable("params", "kernel" + SCALE)
            y = scaled_product(x, kernel, scale).astype(x.dtype)
        else:
            x, kernel, bias = promote_dtype(x, kernel, bias)
            y = jnp.tensordot(x, kernel, axes=1)
        return y if bias is None else shifted(y, bias)


def scaled_product(
    x: Float[Array, "... D"], kernel: Int[Array, "D ..."], scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Float32 product with a quantized matrix; whole numbers are exact in any dtype."""
    y = jnp.tensordot(
        x, kernel.astype(x.dtype), axes=1, preferred_element_type=jnp.float32
    )
    return scaled(y, scale)


def linear(width: int | tuple[int, ...], name: str, bias: bool = False) -> Linear:
    """A linear map, without a bias unless asked."""
    features = (width,) if isinstance(width, int) else width
    return Linear(features, bias, name=name)


def rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, "D"], eps: float
) -> Float[Array, "... D"]:
    """Root-mean-square norm: float32 inside, cast back, then scaled."""
    h = x.astype(jnp.float32)
    h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
    return scaled(h.astype(x.dtype), scale)


class RMSNorm(nn.Module):
    """`rms_norm` with a scale of its own."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Norms the last axis."""
        scale = self.param("scale", ONES, (x.shape[-1],))
        return rms_norm(x, scale, self.eps)


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
        scale = self.param("scale", ONES, x.shape[-2:])
        bias = self.param("bias", ZEROS, x.shape[-2:])
        h = x.astype(jnp.float32)
        h = h - jnp.mean(h, axis=-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + self.eps)
        return shifted(scaled(h.astype(x.dtype), scale), bias)


def head_scores(head: Params, h: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Logits float32 of an output head.

    Args:
      head: a matrix `[D, V]`; or a dict of a quantized one, "kernel" and "scale"; or of
        an MLP: "in" `[D, W]`, "in_bias", "out" `[W, V]`, "out_bias", with a GELU
        between (Janus).
      h: normed outputs.
    """
    if isinstance(head, Mapping) and "scale" in head:
        return scaled_product(h, head["kernel"], head["scale"])
    if isinstance(head, Mapping):
        h = nn.gelu(shifted(h @ head["in"], head["in_bias"]), approximate=False)
        y = jnp.matmul(h, head["out"], preferred_element_type=jnp.float32)
        return shifted(y, head["out_bias"].astype(jnp.float32))
    return jnp.matmul(h, head, preferred_element_type=jnp.float32)
