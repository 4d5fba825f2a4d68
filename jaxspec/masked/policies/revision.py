"""Known tokens that are masked again."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.masked.policy import Policy, View, highest
from jaxspec.typing import Array, Bool


@dataclass(frozen=True)
class Revision:
    """Masks the least certain known tokens again; implements `Policy`.

    After each step but the last, a share of the known tokens is masked again, those
    whose log-probability was lowest when they were sampled, with random noise. As many
    more tokens become known in their places, so that numbers are those of the schedule.
    A token is kept only while others were less certain: remasking by confidence
    (ReMDM, arXiv 2503.00307).

    Attributes:
      policy: policy of the tokens that become known.
      share: share of the known tokens that are masked again.
      temperature: factor of the Gumbel noise of the choice.

    Raises:
      ConfigError: the share is not from 0 to below 1, or the temperature negative.
    """

    policy: Policy
    share: float = 0.1
    temperature: float = 1.0
    revises: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 <= self.share < 1:
            raise ConfigError(f"share={self.share} is not from 0 to below 1")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(
                f"temperature={self.temperature} must be a number of at least 0"
            )

    def reveal(self, view: View) -> Bool[Array, "B T"]:
        """See `Policy`."""
        count = jnp.floor(self.share * jnp.sum(view.known, axis=1)).astype(jnp.int32)
        count = jnp.minimum(count, view.left)
        noise = self.temperature * view.gumbel() if self.temperature else 0.0
        uncertainty = jnp.where(view.known, noise - view.log_p, -jnp.inf)
        masked_again = highest(uncertainty, count) & view.known
        more = replace(view, left=view.left - count)
        return self.policy.reveal(more) & ~masked_again
