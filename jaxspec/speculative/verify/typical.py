"""Typical acceptance (Medusa, arXiv 2401.10774). Lossy."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.core.numbers import within
from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    LossyVerifier,
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
class Typical(LossyVerifier, OutcomeVerifier):
    """Accepts a child if `p(x) > min(epsilon, delta exp(-entropy of p))`.

    The longest accepted path wins, the likelier one on ties; the token after it is
    drawn from `p`. Greedy rows accept the likeliest token alone.

    Attributes:
      epsilon: most probability that is asked of a token. Medusa's own calls use .09.
      delta: scale of the entropy term; .3.
    """

    epsilon: float = 0.09
    delta: float = 0.3

    def __post_init__(self):
        within("epsilon", self.epsilon, most=1.0, above=True)
        within("delta", self.delta, above=True)

    @property
    def selection(self) -> Selection:
        """The likeliest."""
        return "top"

    def outcome(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        greedy: Bool[Array, "B"] | None = None,
        params: Params = None,
    ) -> Outcome:
        """See `OutcomeVerifier.outcome`; the path is certain, the next token random."""
        draft, shape = checked_draft(log_p, draft, tree)
        normal = target_log_probs(log_p, greedy)
        p = jnp.exp(normal)
        entropy = -jnp.sum(jnp.where(p > 0, p * normal, 0.0), axis=-1)
        least = jnp.minimum(self.epsilon, self.delta * jnp.exp(-entropy))
        before = shape.at_parent(normal, draft.tokens[..., None])[..., 0]
        # Strict, as published; a token of all the mass is typical at any threshold.
        match = (before >= 0) | (jnp.exp(before) > shape.gather_parents(least))
        match &= draft.valid
        before = jnp.where(match, before, 0.0).at[:, 0].set(0.0)
        line = jnp.sum(jnp.where(shape.ancestors, before[:, None], 0.0), axis=-1)
        return deterministic_outcome(shape, ancestors_all(shape, match), p, line)
