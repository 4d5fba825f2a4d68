"""Noise for tests: given where it matters, silent elsewhere."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.core.noise import Noise


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FixedNoise:
    """Numbers `[B, A, V]` in the place of `FreshNoise`."""

    numbers: Any

    def at(self, place):
        return jnp.take_along_axis(self.numbers, place[:, None, None], axis=1)[:, 0]


def coupled_noise(gumbel, nodes):
    """Noise whose coupled part is given; nothing else is drawn."""
    gumbel = jnp.asarray(gumbel)
    rows = gumbel.shape[0]
    return Noise(
        gumbel,
        FixedNoise(jnp.zeros_like(gumbel)),
        jnp.zeros((rows, nodes)),
        jnp.zeros(rows, bool),
    )
