"""Most certain tokens first."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.masked.policy import View, revealed
from jaxspec.typing import Array, Bool, Float

Measure = Literal["sampled", "likeliest", "margin", "entropy"]


@dataclass(frozen=True)
class Confidence:
    """Keeps the tokens of highest confidence, with random noise; implements `Policy`.

    Sources: MaskGIT (arXiv 2202.04200), whose measure is the log-probability of the
    sampled token and whose noise falls with the steps; Dream (arXiv 2508.15487) has the
    other measures, without noise.

    Attributes:
      measure: "sampled": log-probability of the sampled token. "likeliest": that of the
        likeliest token. "margin": difference of the two highest probabilities.
        "entropy": negative entropy.
      temperature: factor of the Gumbel noise that is added to the measure.
      anneals: whether the factor falls linearly to 0 at the last step.

    Raises:
      ConfigError: the measure is unknown, or the temperature negative.
    """

    measure: Measure = "sampled"
    temperature: float = 4.5
    anneals: bool = True

    revises: ClassVar[bool] = False

    def __post_init__(self):
        if self.measure not in (known := get_args(Measure)):
            raise ConfigError(
                f"measure={self.measure!r}; choose one of {', '.join(known)}"
            )
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(
                f"temperature={self.temperature} must be a number of at least 0"
            )

    def reveal(self, view: View) -> Bool[Array, "B T"]:
        """See `Policy`."""
        scores = self._scores(view)
        if self.temperature:
            left = 1 - view.progress if self.anneals else jnp.ones_like(view.progress)
            scores += self.temperature * left[:, None] * view.gumbel()
        return revealed(view, scores)

    def _scores(self, view: View) -> Float[Array, "B T"]:
        if self.measure == "sampled":
            return view.log_p
        log_p = jax.nn.log_softmax(view.logits)
        if self.measure == "entropy":
            terms = jnp.where(jnp.isfinite(log_p), jnp.exp(log_p) * log_p, 0.0)
            return jnp.sum(terms, axis=-1)
        best = jax.lax.top_k(log_p, min(2, log_p.shape[-1]))[0]
        if self.measure == "likeliest":
            return best[..., 0]
        return jnp.exp(best[..., 0]) - jnp.exp(best[..., -1])
