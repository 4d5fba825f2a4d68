"""Floating-point dtypes of attention and KV caches."""

import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.typing import Array

_SUPPORTED = ("float16", "bfloat16", "float32", "float64")


def widest(**arrays: Array) -> jnp.dtype:
    """Narrowest dtype that holds the numbers of all arrays.

    Of two dtypes it is the wider one; for float16 and bfloat16 it is float32.

    Args:
      arrays: arrays, by their names in error messages.

    Raises:
      ConfigError: an array is not floating-point, or has less than 16 bits.
    """
    for name, x in arrays.items():
        if jnp.dtype(x.dtype).name not in _SUPPORTED:
            raise ConfigError(
                f"{name} is {x.dtype}; attention and its caches take "
                f"{', '.join(_SUPPORTED[:-1])} or {_SUPPORTED[-1]}, convert it first"
            )
    return jnp.result_type(*(x.dtype for x in arrays.values()))
