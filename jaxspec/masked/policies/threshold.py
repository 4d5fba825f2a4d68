"""All tokens that are certain enough."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.masked.policy import View, highest
from jaxspec.typing import Array, Bool


@dataclass(frozen=True)
class Threshold:
    """Keeps tokens above a probability, at least the best one; implements `Policy`.

    The number of steps follows from the tokens; a schedule only bounds it. Source:
    Fast-dLLM (arXiv 2505.22618).

    Attributes:
      probability: least probability of a token that is kept.

    Raises:
      ConfigError: the probability is not from 0 to 1.
    """

    probability: float = 0.9

    revises: ClassVar[bool] = False

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"probability={self.probability} is not from 0 to 1")

    def reveal(self, view: View) -> Bool[Array, "B T"]:
        """See `Policy`."""
        scores = jnp.where(view.known, -jnp.inf, view.log_p)
        one = jnp.ones_like(view.step)
        certain = scores >= jnp.log(self.probability)
        return view.known | certain | highest(scores, one)
