"""One block after the other, and windows of masked tokens."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from jaxspec.core.numbers import whole
from jaxspec.masked.policy import Policy, View, check_inner, revealed_inside
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
        return revealed_inside(self.policy, view, inside)


@dataclass(frozen=True)
class Window:
    """Lets a policy reveal some of the first masked tokens alone; a `Policy`.

    Source: the active window of Window-Diffusion (arXiv 2601.20332), whose passes
    compute no other masked tokens, see `ContextCache`.

    Attributes:
      policy: policy of the tokens of the window.
      size: number of masked tokens, from the left, that may become known.

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
        masked = ~view.known
        inside = masked & (jnp.cumsum(masked, axis=1) <= self.size)
        return revealed_inside(self.policy, view, inside)
