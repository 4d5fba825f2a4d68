"""Result of a generation."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.typing import Array, Bool, Float, Int


def present(tokens: np.ndarray | Array) -> np.ndarray:
    """Mask [B, T] of the tokens that exist, see `Generation.tokens`; on the host."""
    tokens = np.asarray(tokens)
    if tokens.dtype.kind == "f":
        return np.asarray(np.isfinite(tokens).all(axis=-1))
    return np.asarray(tokens >= 0)


@register_dataclass
@dataclass(frozen=True)
class Stats:
    """Counters of a generation, on the device.

    Attributes:
      calls: int32 [B], target calls of each sequence: its prefill, and each round in
        which it was not finished.
      rounds: int32 [], rounds of the whole batch.
      proposed: int32 [B], drafted tokens that were verified: valid nodes of trees.
      rescored: int32 [B], near-ties that were resolved by `Target.rescore`.
      accepted: int32 [B, A], number of rounds by number of accepted tokens.
      hits: int32 [B, A - 1, W], accepted drafted tokens by depth and rank; one depth,
        which stays 0, if nothing is drafted.
    """

    calls: Int[Array, "B"]
    rounds: Int[Array, ""]
    proposed: Int[Array, "B"]
    rescored: Int[Array, "B"]
    accepted: Int[Array, "B A"]
    hits: Int[Array, "B depths W"]

    @classmethod
    def without_drafts(
        cls, calls: Int[Array, "B"], rounds: Int[Array, ""] | int = 0
    ) -> "Stats":
        """Counters of a generator that drafts nothing."""
        zeros = jnp.zeros_like(calls)
        return cls(
            calls=calls,
            rounds=jnp.asarray(rounds, jnp.int32),
            proposed=zeros,
            rescored=jnp.copy(zeros),
            accepted=zeros[:, None],
            hits=zeros[:, None, None],
        )


@register_dataclass
@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of generated tokens under the target.

    Attributes:
      tokens: float32 [B, T], log-probability of each generated token.
      related: float32 [B, T, M], log-probabilities of the `M` tokens that
        `Variables.related_tokens` lists for it; None without.
    """

    tokens: Float[Array, "B T"]
    related: Float[Array, "B T M"] | None = None


@register_dataclass
@dataclass(frozen=True)
class Generation:
    """Result of a generation.

    Attributes:
      tokens: int32 [B, max_new_tokens]; -1 beyond the length of a sequence, and where
        a token is still masked. Continuous tokens are float32 [B, max_new_tokens, C],
        -inf where there is none yet. In random order these may be anywhere: select
        those that exist by `present`.
      lengths: int32 [B], number of tokens of each sequence, a stop token included.
      stats: counters.
      finite: bool [B], False if the logits of a sequence were ever NaN, or all -inf;
        its tokens are then arbitrary.
      log_probs: log-probabilities, `T = max_new_tokens`, 0 beyond the length of a
        sequence; None unless they were recorded.
      features: float32 [B, grid, grid, C], features of a tokenizer from which its
        `decode_vectors` makes the image; None where tokens have it.
    """

    tokens: Int[Array, "B T"] | Float[Array, "B T C"]
    lengths: Int[Array, "B"]
    stats: Stats
    finite: Bool[Array, "B"]
    log_probs: LogProbs | None = None
    features: Float[Array, "B grid grid C"] | None = None

    @property
    def tokens_per_call(self) -> Float[Array, "B"]:
        """Tokens of each sequence over its target calls, the prefill included."""
        return self.lengths / self.stats.calls

    @property
    def mean_tokens_per_call(self) -> Float[Array, ""]:
        """All tokens over all target calls: the reduction of calls by speculation."""
        return jnp.sum(self.lengths) / jnp.sum(self.stats.calls)
