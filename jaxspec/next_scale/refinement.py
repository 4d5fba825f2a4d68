"""Masked refinement of a token map: its least certain tokens are sampled again."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.next_scale.sampling import Samples
from jaxspec.tokenizers.multi_scale.scales import Scales
from jaxspec.typing import Array, Bool, Float, Int

# Tokens that each pass leaves as they are, for small maps; larger ones have one pass.
_PUBLISHED = {2: (1, 3), 3: (1, 1, 2, 5)}


def published_counts(sides: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """HMAR's `counts` for maps of these sides."""
    return tuple(_PUBLISHED.get(side, (side * side,)) for side in sides)


@dataclass(frozen=True)
class Refinement:
    """Passes of a map after its first one; static.

    The first pass samples all tokens of a map. Each further pass masks those whose
    probabilities, after all logits processors, are the smallest, and samples them
    again. All of them are without guidance, as published, where its factor is 1e-6.
    Source: HMAR (arXiv 2506.04421).

    Attributes:
      counts: numbers of tokens that the passes of each scale leave as they are; they
        sum up to the tokens of the scale.

    Raises:
      ConfigError: a number is not positive.
    """

    counts: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        for scale, counts in enumerate(self.counts):
            is_tuple = isinstance(counts, tuple) and len(counts) > 0
            if not is_tuple or not all(type(n) is int and n > 0 for n in counts):
                raise ConfigError(
                    f"refinement of scale {scale} has the counts {counts}; give a "
                    "tuple of positive numbers of tokens"
                )
        if self.counts and len(self.counts[0]) > 1:
            raise ConfigError("the first scale has one token, which is not refined")

    def check(self, scales: Scales) -> None:
        """Raises `ConfigError` unless the counts are those of the scales."""
        if len(self.counts) != len(scales):
            raise ConfigError(
                f"refinement of {len(self.counts)} scales does not fit {len(scales)}"
            )
        for scale, (counts, side) in enumerate(
            zip(self.counts, scales.sides, strict=True)
        ):
            if sum(counts) != side * side:
                raise ConfigError(
                    f"refinement of scale {scale} leaves {sum(counts)} tokens; counts "
                    f"have to sum up to its {side * side}"
                )

    def passes(self, scale: int) -> int:
        """Number of passes of a scale, the first one included."""
        return len(self.counts[scale])

    def refine(
        self,
        scale: int,
        tokens: Int[Array, "B T"],
        log_probs: Float[Array, "B T"],
        sample: Callable[[Int[Array, "B T"], Bool[Array, "B T"], int], Samples],
        *,
        given: int = 0,
    ) -> Samples:
        """Tokens of a scale after all its passes, and their log-probabilities.

        Args:
          scale: the scale; static.
          tokens: tokens of the first pass.
          log_probs: their log-probabilities.
          sample: function from tokens, the masked ones of them, and the number of the
            pass to new tokens of the whole map, their log-probabilities, and the
            sequences whose logits are neither NaN nor all -inf.
          given: number of first tokens that stay as they are; static.

        Returns:
          Tokens; the log-probability of each in the pass that sampled it; and the
          sequences whose logits were neither NaN nor all -inf.
        """
        batch, count = tokens.shape
        masked = jnp.broadcast_to(jnp.arange(count) >= given, (batch, count))
        finite = jnp.ones(batch, bool)
        for step in range(1, self.passes(scale)):
            certainty = jnp.where(masked, log_probs, jnp.inf)
            rank = jnp.argsort(jnp.argsort(certainty, axis=1), axis=1)
            masked &= rank < sum(self.counts[scale][step:])
            new, log_p, good = sample(tokens, masked, step)
            tokens = jnp.where(masked, new, tokens)
            log_probs = jnp.where(masked, log_p, log_probs)
            finite &= good
        return tokens, log_probs, finite
