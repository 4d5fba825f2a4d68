"""Noise for tests: given where it matters, silent elsewhere."""

import jax.numpy as jnp

from jaxspec.spec.noise import Noise


def coupled_noise(gumbel, nodes):
    """Noise whose coupled part is given; nothing else is drawn."""
    gumbel = jnp.asarray(gumbel)
    rows = gumbel.shape[0]
    return Noise(
        gumbel,
        jnp.zeros_like(gumbel),
        jnp.zeros((rows, nodes)),
        jnp.zeros(rows, bool),
    )
