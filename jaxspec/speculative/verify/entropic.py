"""Acceptance scaled by the target's entropy (arXiv 2510.09012). Lossy."""

from dataclasses import dataclass

import jax.numpy as jnp

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
)
from jaxspec.typing import Array, Bool, Float, Params


@dataclass(frozen=True)
class Entropic(OutcomeVerifier):
    """Accepts with probability `min(1, p / (q s))`, where `s` grows with the entropy.

    `s = clip(entropy / scale + floor, 0, 1)`, with the entropy of the target's law in
    nats, so that tokens of sure predictions are accepted more easily. After a rejection
    the residual is `(p - q)+`, that of exact rejection. These are the rule and the
    numbers of the released code for Lumina-mGPT; that for LlamaGen has a scale of 8
    and no floor, and then replaces both by a constant `s = .5`, an ablation that was
    left in it. For further siblings, of which the paper has none, `p` is what is left.
    Where `s = 1` the verifier equals `Rejection`.

    Attributes:
      scale: entropy in nats from which on nothing is relaxed.
      floor: least value of `s`, of a law without entropy.
      selection: selection of candidates by the drafter.
    """

    scale: float = 9.0
    floor: float = 0.05
    selection: Selection = "without_replacement"

    def __post_init__(self):
        within("scale", self.scale, above=True)
        within("floor", self.floor, 0.0, 1.0)

    def factor(self, p: Float[Array, "... V"]) -> Float[Array, "..."]:
        """Factor `s` of laws of the target."""
        entropy = -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-30)), axis=-1)
        return jnp.clip(entropy / self.scale + self.floor, 1e-6, 1.0)

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

        def accept(now: Siblings):
            return accept_ratio(now.p_token(), now.q_token() * self.factor(now.p))

        return sequential_siblings(
            shape,
            draft,
            p,
            log_q,
            accept=accept,
            reject=lambda now: jnp.maximum(now.p - now.q_all(), 0.0),
            remove=draft.selection == "without_replacement",
        )
