"""Annealed acceptance (Cool-SD, arXiv 2601.09212). Lossy."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxspec.core.numbers import within
from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    LossyVerifier,
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
class Annealed(LossyVerifier, OutcomeVerifier):
    """Accepts with `min(1, w p / q)`, generously at first and strictly later.

    `w` of the `i`-th drafted token (0 is the first) is `delta exp(-decay i - mu)`, with
    `mu` such that its mean over the tree's depths is `delta`: the paper names a
    normalizer and no more, this reading is ours. After a rejection the residual is the
    one best for total variation, `(p - min(q, w p))+`. With `delta = 1` and no decay it
    is `Rejection`.

    Attributes:
      delta: mean factor; 1.1 and 2 in the paper.
      decay: .7.
      selection: how the drafter should draw.
    """

    delta: float = 1.1
    decay: float = 0.7
    selection: Selection = "without_replacement"

    def __post_init__(self):
        within("delta", self.delta, above=True)
        within("decay", self.decay)

    def factors(self, depth: int) -> np.ndarray:
        """`w` of each drafted position, float64 `[depth]`."""
        falling = np.exp(-self.decay * np.arange(depth))
        return self.delta * falling / max(falling.mean() if depth else 1.0, 1e-300)

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

        def taken(now: Siblings):
            w = factors[jnp.clip(now.depth - 1, 0, tree.depth)]
            return jnp.minimum(now.q_all(), w[..., None] * now.p)

        def accept(now: Siblings):
            return accept_ratio(take_prob(taken(now), now.token), now.q_token())

        return sequential_siblings(
            shape,
            draft,
            p,
            log_q,
            accept=accept,
            reject=lambda now: jnp.maximum(now.p - taken(now), 0.0),
            remove=draft.selection == "without_replacement",
        )
