"""One block after the other."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp

from jaxspec.core.numbers import whole
from jaxspec.masked.policy import Policy, View, check_inner
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

    revises: ClassVar[bool] = False

    def __post_init__(self):
        whole("size", self.size)
        check_inner(self)

    def reveal(self, view: View) -> Bool[Array, "B T"]:
        """See `Policy`."""
        place = jnp.arange(view.known.shape[1])[None]
        first = jnp.sum(jnp.cumprod(view.known.astype(jnp.int32), axis=1), axis=1)
        inside = place // self.size == (first // self.size)[:, None]
        masked = jnp.sum(inside & ~view.known, axis=1, dtype=jnp.int32)
        # Tokens that earlier blocks' ends have kept from becoming known come now.
        behind = jnp.sum(~view.known, axis=1, dtype=jnp.int32) - view.left
        block = replace(
            view,
            known=view.known | ~inside,
            before=masked,
            left=jnp.maximum(masked - jnp.maximum(view.before - view.left, behind), 0),
        )
        return view.known | (self.policy.reveal(block) & inside)
