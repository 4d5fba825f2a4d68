"""The optimal transport for a greedy draft set: the likeliest tokens and one sample."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    LosslessVerifier,
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
class GreedySet(LosslessVerifier, OutcomeVerifier):
    """Optimal verification of the drafter's likeliest tokens plus one sample.

    The children of a node are the best tokens `S` under `q` and, last, one drawn from
    `q` restricted to the rest. Accepts with the highest probability any verifier can
    reach for such drafts, `p(S) + sum over the rest of min(p, q')`.

    Source: draft set of arXiv 2502.18779; the direct verification is ours: accept the
    sample with `min(1, p / q')`, else draw from `(p - q')+` over all tokens and follow
    the child that holds the result, if one does.
    """

    @property
    def selection(self) -> Selection:
        """The likeliest, and a sample."""
        return "top_and_sample"

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
        every = jnp.exp(target_log_probs(log_p, greedy))
        p = shape.gather_internal(every)
        tokens = shape.gather_children(draft.tokens, 0)
        held = shape.gather_children(jnp.ones_like(draft.valid), False)
        valid = shape.gather_children(draft.valid, False)
        last = jnp.sum(held, axis=-1) - 1  # [B, I], which child is the sample
        place = jnp.arange(tokens.shape[2])[None, None]
        given = held & (place < last[..., None])

        ids = jnp.arange(p.shape[-1])[None, None]
        taken = jnp.zeros(p.shape, bool)
        for r in range(tokens.shape[2]):
            here = tokens[..., r, None] == ids
            taken = taken | (here & given[..., r, None])
        rest = normalized(jnp.where(taken, 0.0, q), jnp.zeros_like(q))
        index = jnp.maximum(last, 0)[..., None]
        sample = jnp.take_along_axis(tokens, index, axis=-1)[..., 0]
        drawn = jnp.take_along_axis(valid, index, axis=-1)[..., 0] & (last >= 0)
        chance = jnp.where(
            drawn, accept_ratio(take_prob(p, sample), take_prob(rest, sample)), 0.0
        )
        left = jnp.where(drawn[..., None], jnp.maximum(p - rest, 0.0), p)
        left = normalized(left, p)

        open_ = given & valid  # a child that is not valid cannot be followed
        caught = jnp.where(open_, jnp.take_along_axis(left, tokens, axis=-1), 0.0)
        take = jnp.where(place == last[..., None], chance[..., None], 0.0)
        take = take + (1.0 - chance)[..., None] * caught
        for r in range(tokens.shape[2]):
            here = (tokens[..., r, None] == ids) & open_[..., r, None]
            left = jnp.where(here, 0.0, left)
        none = (1.0 - chance) * jnp.sum(left, axis=-1)
        return tree_outcome(shape, draft, every, take, none, normalized(left, p))
