"""How far a cache is looked at."""

import jax.numpy as jnp

from jaxspec.typing import Array, Bool, Int


def reach(mask: Bool[Array, "R T S"]) -> Int[Array, "R"]:
    """The slot behind the last that anyone sees, int32; 0 where nobody sees any."""
    slots = jnp.arange(1, mask.shape[-1] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(mask, slots, 0), axis=(1, 2))
