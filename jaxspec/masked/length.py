"""Length of a text that a masked model fills in, found while it does (rho-EOS)."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.core.numbers import whole, within
from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Bool, Float, Int


@dataclass(frozen=True)
class LengthControl:
    """Rule by which a text gets more masked tokens, or fewer; static.

    Where few of the masked tokens are predicted to be stop tokens, the text needs more
    room; where many are, less. Source: rho-EOS (arXiv 2601.22527).

    Attributes:
      initial_length: number of tokens at the start; the schedule's is the largest.
      low: share of predicted stop tokens below which masked tokens are added.
      high: share above which some are removed.
      step: tokens of a small change; far from the bounds it is up to eight times that.
      max_changes: largest number of changes of a sequence.

    Raises:
      ConfigError: a number is impossible.
    """

    initial_length: int = 64
    low: float = 0.4
    high: float = 0.6
    step: int = 8
    max_changes: int = 64

    def __post_init__(self):
        for name in ("initial_length", "step", "max_changes"):
            object.__setattr__(self, name, int(whole(name, getattr(self, name))))
        within("low", self.low, 0.0, 1.0)
        within("high", self.high, 0.0, 1.0)
        if self.low > self.high:
            raise ConfigError(
                f"low={self.low} and high={self.high}: choose 0 <= low <= high <= 1"
            )

    def change(
        self, predicted: Bool[Array, "B T"], masked: Bool[Array, "B T"]
    ) -> Int[Array, "B"]:
        """Number of tokens to add, or below 0 to remove, int32.

        Args:
          predicted: positions at which a stop token is the likeliest.
          masked: masked tokens of the text.
        """
        count = jnp.sum(masked, axis=1)
        share = jnp.sum(predicted & masked, axis=1) / jnp.maximum(count, 1)
        share = share.astype(jnp.float32)
        grow, shrink = self._steps(self.low - share), self._steps(share - self.high)
        return jnp.where(count > 0, grow - shrink, 0) * self.step

    def _steps(self, gap: Float[Array, "B"]) -> Int[Array, "B"]:
        """Units of a change by the distance to a bound: 1, 2, 4 or 8 of each tenth."""
        # A hundred-thousandth less, as .4 - .2 is more than .2 in floating point.
        tenths = jnp.ceil((gap - 1e-5) / 0.1).astype(jnp.int32)
        return jnp.where(tenths > 0, 1 << jnp.clip(tenths - 1, 0, 3), 0)


def moved(
    values: Array,
    place: Int[Array, "B"],
    count: Int[Array, "B"],
    filling: Array | float,
) -> Array:
    """Values with some inserted at a place of each row, or removed before it.

    Args:
      values: values, [B, T].
      place: index of the first value that moves.
      count: number of values to insert, or below 0 to remove.
      filling: value of what is inserted, and of what moves in at the end.

    Returns:
      Values, [B, T]; those that move beyond the end are lost. There must be as many
      before the place as are removed.
    """
    length = values.shape[1]
    index = jnp.arange(length)[None]
    place, count = place[:, None], count[:, None]
    source = jnp.where(index < place + jnp.minimum(count, 0), index, index - count)
    inserted = (index >= place) & (index < place + count)
    found = jnp.take_along_axis(values, jnp.clip(source, 0, length - 1), axis=1)
    return jnp.where(inserted | (source >= length), filling, found)


def masked_before(known: Bool[Array, "B T"], place: Int[Array, "B"]) -> Int[Array, "B"]:
    """Number of masked tokens directly before a place of each row, int32."""
    index = jnp.arange(known.shape[1])[None]
    last = jnp.max(jnp.where(known & (index < place[:, None]), index, -1), axis=1)
    return (place - 1 - last).astype(jnp.int32)
