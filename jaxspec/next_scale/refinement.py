"""Masked refinement of a token map: its least certain tokens are sampled again."""

from dataclasses import dataclass, replace

import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.models.next_scale.model import NextScale
from jaxspec.next_scale.sampling import ScaleSampling
from jaxspec.next_scale.state import NextScaleState, NextScaleVariables
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
            if not counts or any(n < 1 for n in counts):
                raise ConfigError(
                    f"refinement of scale {scale} has the counts {counts}; give "
                    "positive numbers of tokens"
                )
        if self.counts and len(self.counts[0]) > 1:
            raise ConfigError("the first scale has one token, which is not refined")

    def check(self, scales: Scales) -> None:
        """Raises `ConfigError` unless the counts are those of the scales."""
        found = tuple(sum(counts) for counts in self.counts)
        expected = tuple(side * side for side in scales.sides)
        if found != expected:
            raise ConfigError(
                f"refinement leaves {found} tokens at the scales, which have {expected}"
            )

    def refine(
        self,
        model: NextScale,
        scales: Scales,
        sampling: ScaleSampling,
        variables: NextScaleVariables,
        state: NextScaleState,
        scale: int,
        tokens: Int[Array, "B T"],
        log_probs: Float[Array, "B T"],
        *,
        index: int = 0,
        given: int = 0,
    ) -> tuple[Int[Array, "B T"], Float[Array, "B T"], Bool[Array, "B"]]:
        """Tokens of a scale after all its passes, and their log-probabilities.

        Args:
          model: model with `mask_layers`.
          scales: functions between token maps and features.
          sampling: settings that depend on the scale.
          variables: arrays that all sequences share.
          state: state of the batch before the scale.
          scale: the scale; static.
          tokens: tokens of the first pass.
          log_probs: their log-probabilities.
          index: number of the model among those of the variables.
          given: number of first tokens that stay as they are; static.

        Returns:
          Tokens; the log-probability of each in the pass that sampled it; and the
          sequences whose logits are neither NaN nor all -inf.
        """
        batch, count = tokens.shape
        here, length = scales.tokens_of(scale), scales.ends[-1]
        vectors, condition = state.inputs[:, here], state.conditions[index][:batch]
        plain = replace(state.sampling, cfg_scale=jnp.ones(batch, jnp.float32))
        is_given = jnp.arange(count) < given
        finite, masked = (
            jnp.ones(batch, bool),
            jnp.broadcast_to(~is_given, (batch, count)),
        )
        for step in range(1, len(self.counts[scale])):
            certainty = jnp.where(masked, log_probs, jnp.inf)
            rank = jnp.argsort(jnp.argsort(certainty, axis=1), axis=1)
            masked &= rank < sum(self.counts[scale][step:])
            added = scales.added(variables.quantizer, tokens, scale)
            logits = model.refine(
                variables.models[index],
                condition,
                vectors,
                scales.reduced(added, scale),
                masked,
                scale,
                scale + 1,
            )
            # Noise of its own in each pass: that of positions after the last one.
            start = here.start + step * length
            new, log_p, good = sampling.sample(logits, plain, state.keys, scale, start)
            tokens = jnp.where(masked, new, tokens)
            log_probs = jnp.where(masked, log_p, log_probs)
            finite &= good
        return tokens, log_probs, finite
