"""Each masked token by a coin of its own."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from jaxspec.masked.policy import View
from jaxspec.typing import Array, Bool


@dataclass(frozen=True)
class Bernoulli:
    """Ancestral sampling of masked diffusion; implements `Policy`.

    With a share `t` of the tokens masked before a step and `s` after it, each masked
    token becomes known with the probability `1 - s / t`, so numbers of tokens vary.
    Sources: MDLM (arXiv 2406.07524); Dream's "origin" (arXiv 2508.15487).
    """

    revises: ClassVar[bool] = False

    def reveal(self, view: View) -> Bool[Array, "B T"]:
        """See `Policy`."""
        before = view.before.astype(jnp.float32)
        stays = view.left.astype(jnp.float32) / jnp.maximum(before, 1.0)
        # exp(-exp(-g)) of a Gumbel variable is uniform.
        uniform = jnp.exp(-jnp.exp(-view.gumbel()))
        return view.known | (uniform >= stays[:, None])
