"""Precision of matrix products in kernels."""

import jax
import jax.numpy as jnp


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision:
    """Full precision for float32 and wider dtypes, the default for 16-bit ones.

    Matrix units multiply 16-bit floats exactly. None would not do: it means the default
    precision of JAX, which the engine sets to "highest".
    """
    full = jnp.dtype(dtype).itemsize >= 4
    return jax.lax.Precision.HIGHEST if full else jax.lax.Precision.DEFAULT
