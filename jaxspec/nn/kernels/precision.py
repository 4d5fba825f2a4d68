"""The precision of products in a kernel."""

import jax
import jax.numpy as jnp


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision:
    """Full for float32 and wider; short floats are exact in a matrix unit anyway.

    Not None, which would take the engine's "highest" for short floats, too.
    """
    full = jnp.dtype(dtype).itemsize >= 4
    return jax.lax.Precision.HIGHEST if full else jax.lax.Precision.DEFAULT
