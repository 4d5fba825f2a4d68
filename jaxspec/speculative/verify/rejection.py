"""Recursive rejection sampling on chains and trees."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    DETERMINISTIC,
    checked_draft,
    require_samples,
    target_log_probs,
)
from jaxspec.speculative.verify.outcome import (
    Outcome,
    OutcomeVerifier,
    accept_ratio,
    sequential_siblings,
)
from jaxspec.typing import Array, Bool, Float, Params


@dataclass(frozen=True)
class Rejection(OutcomeVerifier):
    """Accepts a child with probability `p(x) / q(x)`, else continues with the residual.

    The algorithm depends on `Draft.selection` and the tree:

    - a chain: speculative sampling (Leviathan, arXiv 2211.17192; Chen, 2302.01318);
    - siblings sampled with replacement: SpecInfer (arXiv 2305.09781);
    - without replacement: RSD-C, and RSD-S on a `StochasticBeam` (arXiv 2402.14160);
    - candidates that are no samples: `q` is one-hot, a child is accepted with
      probability `p(x)` (target-only verification of SGLang). Exact for any such draft.

    Attributes:
      selection: selection of candidates by the drafter.
    """

    lossless = True
    selection: Selection = "without_replacement"

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
        log_q = None
        if draft.selection not in DETERMINISTIC:
            draft, log_q = require_samples(self, draft, shape, tree)
        return sequential_siblings(
            shape,
            draft,
            p,
            log_q,
            accept=lambda now: accept_ratio(now.p_token(), now.q_token()),
            reject=lambda now: jnp.maximum(now.p - now.q_all(), 0.0),
            remove=draft.selection == "without_replacement",
        )
