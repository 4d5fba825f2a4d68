"""Steps of a generation of continuous tokens."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np

from jaxspec.core.unmasking import masked_counts
from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Float, Int

Guidance = Literal["linear", "constant"]


@dataclass(frozen=True)
class UnmaskingSchedule:
    """Steps of a generation; static. Source: MAR (arXiv 2406.11838).

    Attributes:
      tokens: number of tokens of an image, `T`.
      steps: number of steps. Step `s` leaves `floor(T cos(pi / 2 (s + 1) / steps))`
        tokens masked, at least 1 and fewer than before; the last step leaves none.
      guidance: "linear" raises the scale of guidance with the share of tokens that are
        known after the step; "constant" has the same at each.

    Raises:
      ConfigError: the number of steps or the guidance is impossible.
    """

    tokens: int
    steps: int = 64
    guidance: Guidance = "linear"

    def __post_init__(self):
        if not 1 <= self.steps <= self.tokens:
            raise ConfigError(f"steps={self.steps}; choose 1 to {self.tokens}")
        if self.guidance not in (known := get_args(Guidance)):
            raise ConfigError(
                f"guidance={self.guidance!r}; choose one of {', '.join(known)}"
            )

    @cached_property
    def masked(self) -> np.ndarray:
        """Number of masked tokens before each step and at the end, int32."""
        return masked_counts(self.tokens, self.steps)

    def most_of(self, steps: int = 1) -> int:
        """Largest number of tokens of some consecutive steps."""
        left = np.append(self.masked, np.zeros(steps - 1, np.int32))
        return int(np.max(left[:-steps] - left[steps:]))

    def scale(
        self, cfg_scale: Float[Array, "B"], step: Int[Array, "B"]
    ) -> Float[Array, "B"]:
        """Scale of guidance of a step."""
        if self.guidance == "constant":
            return cfg_scale
        # As published, the last step counts one token as masked.
        left = np.maximum(self.masked[1:], 1)
        share = jnp.asarray((self.tokens - left) / self.tokens, jnp.float32)[step]
        return 1 + (cfg_scale - 1) * share
