"""Norms, SwiGLU, linear layers and the output head."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxspec.nn.factors import joint_scores
from jaxspec.nn.quantize import SCALE
from jaxspec.typing import Array, Float, Int, Params

# Initial parameters are float32 whatever the default dtype of JAX is. As in LlamaGen,
# all matrices but the output head are initialized by INIT.
INIT = nn.initializers.normal(0.02, jnp.float32)
ZEROS = nn.initializers.constant(0.0, jnp.float32)
ONES = nn.initializers.constant(1.0, jnp.float32)


def scale_last(
    x: Float[Array, "..."], scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Product with a scale of the shape of the last axes."""
    return x * _along_last(scale, x)


def add_bias(x: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    """Sum with a bias of the shape of the last axes."""
    return x + _along_last(bias, x)


def _along_last(y: Array, x: Array) -> Array:
    """`y` with leading axes of size 1, so that it has as many axes as `x`."""
    return jnp.expand_dims(y, tuple(range(x.ndim - y.ndim)))


class Linear(nn.Module):
    """Linear layer that maps the last axis to one or several axes.

    With several output axes, the axes that a mesh shards (heads, the width of a SwiGLU)
    are separate from those it does not (queries, keys and values; gate and up).

    The kernel may be int8 with a scale for each output, see `nn.quantize`.

    Attributes:
      features: sizes of the output axes.
      bias: whether the layer has a bias.
      init: initializer of the kernel.
    """

    features: tuple[int, ...]
    bias: bool = False
    init: Callable[..., Array] = INIT

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "..."]:
        """Applies the layer, in the widest dtype of input, kernel and bias."""
        kernel = self.param("kernel", self.init, (x.shape[-1], *self.features))
        bias = None
        if self.bias:
            bias = self.param("bias", ZEROS, self.features)
        if self.has_variable("params", "kernel" + SCALE):
            scale = self.get_variable("params", "kernel" + SCALE)
            y = scaled_product(x, kernel, scale).astype(x.dtype)
        else:
            with jax.numpy_dtype_promotion("standard"):
                x, kernel, bias = promote_dtype(x, kernel, bias)
            y = jnp.tensordot(x, kernel, axes=1)
        return y if bias is None else add_bias(y, bias)


def scaled_product(
    x: Float[Array, "... D"], kernel: Int[Array, "D ..."], scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Product with a quantized matrix, in float32.

    The kernel is cast to the dtype of `x` without rounding: every int8 number is exact
    in bfloat16 and wider dtypes.
    """
    y = jnp.tensordot(
        x, kernel.astype(x.dtype), axes=1, preferred_element_type=jnp.float32
    )
    return scale_last(y, scale)


def linear(width: int | tuple[int, ...], name: str, bias: bool = False) -> Linear:
    """Linear layer with the given output axes and module name."""
    features = (width,) if isinstance(width, int) else width
    return Linear(features, bias, name=name)


def rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, "D"], eps: float
) -> Float[Array, "... D"]:
    """Root-mean-square norm, computed in float32 and cast back before scaling."""
    h = x.astype(jnp.float32)
    h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
    return scale_last(h.astype(x.dtype), scale)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale.

    Attributes:
      eps: added to the mean square.
    """

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalizes the last axis."""
        scale = self.param("scale", ONES, (x.shape[-1],))
        return rms_norm(x, scale, self.eps)


class SwiGLU(nn.Module):
    """Feed-forward layer `down(silu(gate x) * up x)`.

    Gate and up are one linear layer with a kernel `[D, 2, width]`.

    Attributes:
      width: width of the hidden layer.
    """

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Applies the layer."""
        h = linear((2, self.width), "gate_up")(x)
        return linear(x.shape[-1], "down")(nn.silu(h[..., 0, :]) * h[..., 1, :])


class HeadNorm(nn.Module):
    """LayerNorm with a scale and bias per head, computed in float32.

    Attributes:
      eps: added to the variance.
    """

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "... H F"]) -> Float[Array, "... H F"]:
        """Normalizes the last axis."""
        scale = self.param("scale", ONES, x.shape[-2:])
        bias = self.param("bias", ZEROS, x.shape[-2:])
        h = x.astype(jnp.float32)
        h = h - jnp.mean(h, axis=-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + self.eps)
        return add_bias(scale_last(h.astype(x.dtype), scale), bias)


def head_scores(head: Params, h: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Logits of an output head, in float32.

    Args:
      head: one of: a matrix `[D, V]`; the "kernel" and "scale" of a quantized matrix;
        the "in" `[D, M]`, "in_bias", "out" `[M, V]` and "out_bias" of an MLP of width
        `M` with a GELU (Janus); the matrices `[D, n]` of the sub-codes of a token, a
        tuple, see `nn.factors`.
      h: hidden states after the final norm.
    """
    if isinstance(head, tuple):
        return joint_scores([head_scores(part, h) for part in head])
    if isinstance(head, Mapping) and "scale" in head:
        return scaled_product(h, head["kernel"], head["scale"])
    if isinstance(head, Mapping):
        h = nn.gelu(add_bias(h @ head["in"], head["in_bias"]), approximate=False)
        y = jnp.matmul(h, head["out"], preferred_element_type=jnp.float32)
        return add_bias(y, head["out_bias"].astype(jnp.float32))
    return jnp.matmul(h, head, preferred_element_type=jnp.float32)
