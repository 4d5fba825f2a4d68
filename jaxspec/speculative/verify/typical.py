"""Typical acceptance (Medusa, arXiv 2401.10774). Lossy."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.core.numbers import within
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    checked_draft,
    target_log_probs,
)
from jaxspec.speculative.verify.outcome import (
    Outcome,
    OutcomeVerifier,
    ancestors_all,
    deterministic_outcome,
)
from jaxspec.typing import Array, Bool, Float, Params


@dataclass(frozen=True)
class Typical(OutcomeVerifier):
    """Accepts a child if `p(x) > min(epsilon, delta exp(-entropy of p))`.

    The longest accepted path wins, the likelier one on ties; the token after it is
    sampled from `p`. Greedy sequences accept only the likeliest token.

    Attributes:
      epsilon: upper limit of the threshold; .09 in Medusa's code.
      delta: factor of the entropy term; .3 in Medusa's code.
    """

    selection = "top"

    epsilon: float = 0.09
    delta: float = 0.3

    def __post_init__(self):
        within("epsilon", self.epsilon, most=1.0, above=True)
        within("delta", self.delta, above=True)

    def outcome(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        greedy: Bool[Array, "B"] | None = None,
        params: Params = None,
    ) -> Outcome:
        """See `OutcomeVerifier.outcome`; only the next token is random."""
        draft, shape = checked_draft(log_p, draft, tree)
        log_probs = target_log_probs(log_p, greedy)
        p = jnp.exp(log_probs)
        entropy = -jnp.sum(jnp.where(p > 0, p * log_probs, 0.0), axis=-1)
        threshold = jnp.minimum(self.epsilon, self.delta * jnp.exp(-entropy))
        token = shape.at_parent(log_probs, draft.tokens[..., None])[..., 0]
        # Strict, as published; a token with all mass is accepted at any threshold.
        match = (token >= 0) | (jnp.exp(token) > shape.gather_parents(threshold))
        match &= draft.valid
        token = jnp.where(match, token, 0.0).at[:, 0].set(0.0)
        path = jnp.sum(jnp.where(shape.ancestors, token[:, None], 0.0), axis=-1)
        return deterministic_outcome(shape, ancestors_all(shape, match), p, path)
