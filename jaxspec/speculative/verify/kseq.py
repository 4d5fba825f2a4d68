"""K-SEQ verification of independent samples."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxspec.core.mesh_sync import varying
from jaxspec.speculative.draft import Draft
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
    accept_ratio,
    normalized,
    take_prob,
    tree_outcome,
)
from jaxspec.typing import Array, Bool, Float, Params

_NUM_HALVINGS = 26  # the resolution of float32


@dataclass(frozen=True)
class KSeq(OutcomeVerifier):
    """SpecTr's sequential selection among `k` independent samples (arXiv 2310.15141).

    Each child is accepted with probability `min(1, p / (rho q))`. Bisection finds the
    smallest `rho` for which the residual of `p` is a distribution. The acceptance is at
    least (1 - 1/e) of the highest possible one for such drafts.
    """

    lossless = True
    selection = "with_replacement"

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
        draft, log_q = require_samples(self, draft, shape, tree, ("with_replacement",))
        q = jnp.exp(log_q)
        p_all = jnp.exp(target_log_probs(log_p, greedy))
        p = shape.gather_internal(p_all)
        tokens = shape.gather_children(draft.tokens, 0)
        valid = shape.gather_children(draft.valid, False)
        k = jnp.sum(valid, axis=-1, dtype=p.dtype)  # [B, I]

        def acceptance(rho):
            """Probability to accept one child, and any of `k`."""
            one = jnp.sum(jnp.minimum(p / rho[..., None], q), axis=-1)
            return one, 1.0 - (1.0 - one) ** k

        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            one, any_of_k = acceptance(middle)
            fits = any_of_k <= middle * one
            return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

        ends = varying((jnp.ones_like(k), jnp.maximum(k, 1.0)), p, q)
        _, rho = jax.lax.fori_loop(0, _NUM_HALVINGS, halve, ends)
        one, any_of_k = acceptance(rho)
        share = jnp.where(one > 0, any_of_k / jnp.where(one > 0, one, 1.0), k)
        residual = p - jnp.minimum(q, p / rho[..., None]) * share[..., None]
        residual = normalized(jnp.maximum(residual, 0.0), p)

        none, take = jnp.ones_like(k), []
        for r in range(tokens.shape[2]):
            token = tokens[..., r]
            chance = accept_ratio(take_prob(p, token), rho * take_prob(q, token))
            chance = jnp.where(valid[..., r], chance, 0.0)
            take.append(none * chance)
            none = none * (1.0 - chance)
        take = jnp.stack(take, axis=-1)
        return tree_outcome(shape, draft, p_all, take, none, residual)
