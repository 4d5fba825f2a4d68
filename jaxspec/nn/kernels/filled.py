"""Visible part of a KV cache."""

import jax.numpy as jnp

from jaxspec.typing import Array, Bool, Int


def visible_length(mask: Bool[Array, "R T S"]) -> Int[Array, "R"]:
    """Number of leading slots up to the last one that any query attends to, int32."""
    slots = jnp.arange(1, mask.shape[-1] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(mask, slots, 0), axis=(1, 2))
