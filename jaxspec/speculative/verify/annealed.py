"""Annealed acceptance (Cool-SD, arXiv 2601.09212). Lossy."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxspec.core.numbers import within
from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    checked_draft,
    require_samples,
    target_log_probs,
)
from jaxspec.speculative.verify.outcome import (
    Outcome,
    OutcomeVerifier,
    Siblings,
    accept_ratio,
    sequential_siblings,
    take_prob,
)
from jaxspec.typing import Array, Bool, Float, Params


@dataclass(frozen=True)
class Annealed(OutcomeVerifier):
    """Accepts with probability `min(1, w p / q)`, where `w` decreases with the depth.

    For drafted token `i` (the first is 0), `w = delta exp(-decay i - mu)`, with `mu`
    such that the mean of `w` over the depths of the tree is `delta`. The paper does not
    define its normalizer; this definition is ours. After a rejection the residual is
    `(p - min(q, w p))+`, which minimizes the total variation distance. With `delta = 1`
    and `decay = 0` the verifier equals `Rejection`.

    Attributes:
      delta: mean of the factors `w`; 1.1 and 2 in the paper.
      decay: decay of `w` per token; .7 in the paper.
      selection: selection of candidates by the drafter.
    """

    delta: float = 1.1
    decay: float = 0.7
    selection: Selection = "without_replacement"

    def __post_init__(self):
        within("delta", self.delta, above=True)
        within("decay", self.decay)

    def factors(self, depth: int) -> np.ndarray:
        """Factor `w` of each drafted token, float64 [depth]."""
        weights = np.exp(-self.decay * np.arange(depth))
        return self.delta * weights / max(weights.mean() if depth else 1.0, 1e-300)

    def outcome(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        greedy: Bool[Array, "B"] | None = None,
        params: Params = None,
    ) -> Outcome:
        """See `OutcomeVerifier.outcome`."""
        draft, shape = checked_draft(log_p, draft, tree)
        p = jnp.exp(target_log_probs(log_p, greedy))
        draft, log_q = require_samples(self, draft, shape, tree)
        factors = jnp.asarray(np.append(self.factors(tree.depth), 1.0), p.dtype)

        def accepted_mass(now: Siblings):
            w = factors[jnp.clip(now.depth - 1, 0, tree.depth)]
            return jnp.minimum(now.q_all(), w[..., None] * now.p)

        def accept(now: Siblings):
            return accept_ratio(take_prob(accepted_mass(now), now.token), now.q_token())

        return sequential_siblings(
            shape,
            draft,
            p,
            log_q,
            accept=accept,
            reject=lambda now: jnp.maximum(now.p - accepted_mass(now), 0.0),
            remove=draft.selection == "without_replacement",
        )
