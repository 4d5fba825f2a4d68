"""Int8 weight quantization with one scale per output channel."""

import re
from typing import Any

import jax.numpy as jnp

from jaxspec.typing import Array, Float, Int, Params

# Suffix of the name of a quantized matrix that gives the name of its scales.
SCALE = "_scale"


def quantized(params: Params) -> Params:
    """Quantizes linear layers and the output head to int8 with float32 scales.

    The scale of a column maps its largest absolute entry to 127. Embeddings, norms,
    biases and lookup tables keep their dtype, because a pass reads only a small part of
    them.

    Args:
      params: parameters of a transformer or a drafter.

    Returns:
      Parameters with int8 matrices, and their scales under the same name with `SCALE`.
    """
    heads = [name for name in params if re.fullmatch(r"head(_\d+)?", name)]
    return _quantized(params, ("kernel", *heads))


def _quantized(params: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    result = {}
    for name, x in params.items():
        if isinstance(x, dict):
            result[name] = _quantized(x, ("kernel",))
        elif name in names and x.ndim >= 2 and jnp.issubdtype(x.dtype, jnp.floating):
            result[name], result[name + SCALE] = _quantize_matrix(x)
        else:
            result[name] = x
    return result


def _quantize_matrix(x: Float[Array, "D ..."]) -> tuple[Int[Array, "D ..."], Array]:
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=0) / 127
    scale = jnp.where(scale > 0, scale, 1.0)
    return jnp.round(x / scale[None]).astype(jnp.int8), scale
