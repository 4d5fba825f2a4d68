"""Steps of a generation by a masked model."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np

from jaxspec.core.unmasking import SHAPES, masked_counts
from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Float, Int

Guidance = Literal["constant", "linear"]


@dataclass(frozen=True)
class MaskingSchedule:
    """Number of masked tokens after each step, and the scale of guidance; static.

    Attributes:
      tokens: number of tokens, `T`.
      steps: number of steps.
      shape: share of masked tokens over steps: "cosine" (MaskGIT, arXiv 2202.04200),
        "arccos", "linear", "square", "cubic" or "root".
      guidance: "constant" has the same scale at each step; "linear" raises it from 1
        before the first step to all of it at the last.

    Raises:
      ConfigError: the number of steps, the shape or the guidance is impossible.
    """

    tokens: int
    steps: int = 12
    shape: str = "cosine"
    guidance: Guidance = "constant"

    def __post_init__(self):
        if not 1 <= self.steps <= self.tokens:
            raise ConfigError(f"steps={self.steps}; choose 1 to {self.tokens}")
        for name, known in (("shape", SHAPES), ("guidance", get_args(Guidance))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r}; choose one of {', '.join(known)}"
                )

    @cached_property
    def masked(self) -> np.ndarray:
        """Number of masked tokens before each step and at the end, int32."""
        return masked_counts(self.tokens, self.steps, self.shape)

    def after(self, steps: Int[Array, "B"]) -> Int[Array, "B"]:
        """Number of masked tokens after a number of steps."""
        return jnp.asarray(self.masked)[jnp.clip(steps, 0, self.steps)]

    def scale(
        self, cfg_scale: Float[Array, "B"], step: Int[Array, "B"]
    ) -> Float[Array, "B"]:
        """Scale of guidance of a step."""
        if self.guidance == "constant":
            return cfg_scale
        share = jnp.minimum((step + 1) / self.steps, 1.0).astype(jnp.float32)
        return 1 + (cfg_scale - 1) * share
