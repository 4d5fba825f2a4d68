"""Floating-point dtypes that meet in attention and in caches."""

import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.typing import Array

_KNOWN = ("float16", "bfloat16", "float32", "float64")


def widest(**arrays: Array) -> jnp.dtype:
    """The narrowest dtype that holds the numbers of all arrays.

    That is the wider one of two; float16 and bfloat16 go together in float32.

    Args:
      arrays: by the names that a message gives them.

    Raises:
      ConfigError: one holds no floating-point numbers, or of less than 16 bits.
    """
    for name, x in arrays.items():
        if jnp.dtype(x.dtype).name not in _KNOWN:
            raise ConfigError(
                f"{name} is {x.dtype}; attention and its caches take "
                f"{', '.join(_KNOWN[:-1])} or {_KNOWN[-1]}, convert it first"
            )
    return jnp.result_type(*(x.dtype for x in arrays.values()))
