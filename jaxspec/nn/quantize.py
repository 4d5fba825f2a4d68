"""Matrices in eight bits: whole numbers and one scale for each output channel."""

from typing import Any

import jax.numpy as jnp

from jaxspec.typing import Array, Float, Int, Params

# Behind the name of a quantized matrix, its scales.
SCALE = "_scale"


def quantized(params: Params) -> Params:
    """Linear maps, and an output head, as int8 with float32 scales.

    The largest entry of each column becomes 127. Embeddings, norms, biases and tables
    that are looked up stay what they are: reading a few rows of them costs nothing.
    Works on parameters of a transformer and of drafters.
    """
    return _quantized(params, ("kernel", "head"))


def _quantized(params: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for name, x in params.items():
        if isinstance(x, dict):
            found[name] = _quantized(x, ("kernel",))
        elif name in names and x.ndim >= 2 and jnp.issubdtype(x.dtype, jnp.floating):
            found[name], found[name + SCALE] = _rounded(x)
        else:
            found[name] = x
    return found


def _rounded(x: Float[Array, "D ..."]) -> tuple[Int[Array, "D ..."], Array]:
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=0) / 127
    scale = jnp.where(scale > 0, scale, 1.0)
    return jnp.round(x / scale[None]).astype(jnp.int8), scale
