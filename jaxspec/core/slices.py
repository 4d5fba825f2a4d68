"""Slices whose start differs by sequence."""

import jax

from jaxspec.typing import Array, Int


def write_at(x: Array, new: Array, start: Int[Array, "B"]) -> Array:
    """Writes `new` [B, M, ...] into `x` [B, T, ...] from `start` on."""
    zeros = (0,) * (x.ndim - 2)

    def write(x, new, start):
        return jax.lax.dynamic_update_slice(x, new, (start, *zeros))

    return jax.vmap(write)(x, new, start)
