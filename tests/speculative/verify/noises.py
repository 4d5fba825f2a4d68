"""Noise for tests: given for shared samples, zero elsewhere."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.core.noise import Noise


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FixedNoise:
    """Given numbers `[B, A, V]` instead of `FreshNoise`."""

    numbers: Any

    def at(self, place):
        return jnp.take_along_axis(self.numbers, place[:, None, None], axis=1)[:, 0]


def coupled_noise(gumbel, nodes):
    """Noise with a given coupled part; the rest is zero."""
    gumbel = jnp.asarray(gumbel)
    rows = gumbel.shape[0]
    return Noise(
        gumbel,
        FixedNoise(jnp.zeros_like(gumbel)),
        jnp.zeros((rows, nodes)),
        jnp.zeros(rows, bool),
    )
