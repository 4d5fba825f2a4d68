"""Grouped speculative decoding (GSD, arXiv 2508.07747). Lossy."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.core.numbers import whole
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    Filtered,
    check_filtered,
    checked_draft,
    require_param,
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
class Grouped(OutcomeVerifier):
    """Compares the probabilities of groups of similar tokens instead of single ones.

    Candidates for the group of `x` are the `group` tokens around it in the order of
    target probability: itself, and at most one more before it than after it. The group
    are those whose embedding is within `distance` of that of `x` and whose probability
    is within `gap` of that of `x`. A child is accepted with probability
    `min(1, p(group) / q(group))`; the residual is `(p - q)+`.

    Deviation from the release (junhyukso/GSD): the release has embeddings of the first
    10,000 tokens only, here all tokens have one.

    Parameters: `{"embedding": [V, E]}`, embeddings of the tokens; those of the target
    in the release.

    Attributes:
      group: number of candidates of a group; 14 in the release, up to 50 in the paper.
      distance: upper limit of the squared Euclidean distance of embeddings.
      gap: upper limit of the difference of probabilities.
      selection: selection of candidates by the drafter.
      filtered: treatment of tokens that top-k or top-p removed (score -inf): "never"
        accepts none, "published" accepts them by the probability of their group.
    """

    group: int = 14
    distance: float = 0.5
    gap: float = 0.15
    selection: Selection = "without_replacement"
    filtered: Filtered = "never"

    def __post_init__(self):
        whole("group", self.group)
        if not (self.distance >= 0 and self.gap >= 0):  # inf is allowed, NaN is not
            raise ConfigError(f"{self}: use no negative distance or gap")
        check_filtered(self.filtered)

    def outcome(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        greedy: Bool[Array, "B"] | None = None,
        params: Params = None,
    ) -> Outcome:
        """See `OutcomeVerifier.outcome`."""
        table = require_param(self, params, "embedding")
        draft, shape = checked_draft(log_p, draft, tree)
        p = jnp.exp(target_log_probs(log_p, greedy))
        draft, log_q = require_samples(self, draft, shape, tree)
        scores = shape.gather_internal(log_p)
        size = min(self.group, 2 * p.shape[-1])  # covers all tokens from any rank
        offsets = (jnp.arange(size) - size // 2)[None, None]

        def accept(now: Siblings):
            vocabulary = now.p.shape[-1]
            order = jnp.argsort(-now.p, axis=-1)
            p_token = now.p_token()[..., None]
            lower_id = jnp.arange(vocabulary)[None, None] < now.token[..., None]
            before = (now.p > p_token) | ((now.p == p_token) & lower_id)
            ranks = jnp.sum(before, axis=-1)[..., None] + offsets
            inside = (ranks >= 0) & (ranks < vocabulary)
            ids = jnp.take_along_axis(order, jnp.clip(ranks, 0, vocabulary - 1), -1)
            p_ids = jnp.take_along_axis(now.p, ids, axis=-1)
            difference = table[ids] - table[now.token][..., None, :]
            distance = jnp.sum(difference.astype(jnp.float32) ** 2, axis=-1)
            similar = distance < self.distance
            similar &= jnp.abs(p_ids - p_token) < self.gap
            similar = (similar | (ids == now.token[..., None])) & inside
            q_ids = jnp.take_along_axis(now.q_all(), ids, axis=-1)
            p_group, q_group = (
                jnp.sum(jnp.where(similar, x, 0.0), axis=-1) for x in (p_ids, q_ids)
            )
            chance = accept_ratio(p_group, q_group)
            if self.filtered == "published":
                return chance
            return jnp.where(take_prob(scores, now.token) > -jnp.inf, chance, 0.0)

        return sequential_siblings(
            shape,
            draft,
            p,
            log_q,
            accept=accept,
            reject=lambda now: jnp.maximum(now.p - now.q_all(), 0.0),
            remove=draft.selection == "without_replacement",
        )
