"""One block after the other."""

from dataclasses import dataclass, replace

import jax.numpy as jnp

from jaxspec.core.numbers import whole
from jaxspec.errors import ConfigError
from jaxspec.masked.policy import Policy, View
from jaxspec.typing import Array, Bool


@dataclass(frozen=True)
class Blocks:
    """Lets a policy reveal tokens of the first unfinished block alone; a `Policy`.

    As many as the schedule asks, up to the end of the block: LLaDA's order of texts
    (arXiv 2502.09992), from the left at the scale of blocks and free within one.

    Attributes:
      policy: policy of the tokens of a block.
      size: tokens of a block.

    Raises:
      ConfigError: the size is impossible, or the policy masks tokens again.
    """

    policy: Policy
    size: int = 32

    def __post_init__(self):
        if int(whole("size", self.size)) < 1:
            raise ConfigError(f"size={self.size}; choose 1 or more")
        if self.revises:
            raise ConfigError("blocks are for policies that mask no token again")

    @property
    def revises(self) -> bool:
        """Whether known tokens are masked again."""
        return getattr(self.policy, "revises", True)

    def reveal(self, view: View) -> Bool[Array, "B T"]:
        """See `Policy`."""
        place = jnp.arange(view.known.shape[1])[None]
        first = jnp.sum(jnp.cumprod(view.known.astype(jnp.int32), axis=1), axis=1)
        inside = place // self.size == (first // self.size)[:, None]
        masked = jnp.sum(inside & ~view.known, axis=1, dtype=jnp.int32)
        block = replace(
            view,
            known=view.known | ~inside,
            before=masked,
            left=jnp.maximum(masked - (view.before - view.left), 0),
        )
        return view.known | (self.policy.reveal(block) & inside)
