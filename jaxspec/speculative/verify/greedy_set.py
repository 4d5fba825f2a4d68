"""Optimal verification of the likeliest tokens and one sample."""

from dataclasses import dataclass

import jax.numpy as jnp

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


@dataclass(frozen=True)
class GreedySet(OutcomeVerifier):
    """Optimal verification of the drafter's likeliest tokens plus one sample.

    The children of a node are the likeliest tokens `S` under `q` and, last, a sample of
    `q'`, which is `q` restricted to all other tokens. The acceptance `p(S) + sum of
    min(p, q')` is the highest that any lossless verifier can reach for such drafts.

    Source: the draft set is that of arXiv 2502.18779. The verification is ours: accept
    the sample with probability `min(1, p / q')`; else sample a token from `(p - q')+`
    and accept the child with this token, if there is one.
    """

    lossless = True
    selection = "top_and_sample"

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
        draft, log_q = require_samples(self, draft, shape, tree, ("top_and_sample",))
        q = jnp.exp(log_q)
        p_all = jnp.exp(target_log_probs(log_p, greedy))
        p = shape.gather_internal(p_all)
        tokens = shape.gather_children(draft.tokens, 0)
        exists = shape.gather_children(jnp.ones_like(draft.valid), False)
        valid = shape.gather_children(draft.valid, False)
        last = jnp.sum(exists, axis=-1) - 1  # [B, I], rank of the sampled child
        rank = jnp.arange(tokens.shape[2])[None, None]
        is_top = exists & (rank < last[..., None])

        ids = jnp.arange(p.shape[-1])[None, None]
        in_top = jnp.zeros(p.shape, bool)
        for r in range(tokens.shape[2]):
            equal = tokens[..., r, None] == ids
            in_top = in_top | (equal & is_top[..., r, None])
        q_rest = normalized(jnp.where(in_top, 0.0, q), jnp.zeros_like(q))
        index = jnp.maximum(last, 0)[..., None]
        sample = jnp.take_along_axis(tokens, index, axis=-1)[..., 0]
        has_sample = jnp.take_along_axis(valid, index, axis=-1)[..., 0] & (last >= 0)
        ratio = accept_ratio(take_prob(p, sample), take_prob(q_rest, sample))
        chance = jnp.where(has_sample, ratio, 0.0)
        residual = jnp.where(has_sample[..., None], jnp.maximum(p - q_rest, 0.0), p)
        residual = normalized(residual, p)

        # A token sampled from the residual is accepted if a valid child has it.
        usable = is_top & valid
        found = jnp.where(usable, jnp.take_along_axis(residual, tokens, axis=-1), 0.0)
        take = jnp.where(rank == last[..., None], chance[..., None], 0.0)
        take = take + (1.0 - chance)[..., None] * found
        for r in range(tokens.shape[2]):
            equal = (tokens[..., r, None] == ids) & usable[..., r, None]
            residual = jnp.where(equal, 0.0, residual)
        none = (1.0 - chance) * jnp.sum(residual, axis=-1)
        return tree_outcome(shape, draft, p_all, take, none, normalized(residual, p))
