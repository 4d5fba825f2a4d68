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
    LossyVerifier,
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
class Grouped(LossyVerifier, OutcomeVerifier):
    """Compares the masses of a group of alike codes instead of one code's.

    The group of `x` are the `group` codes next to it in the target's order of
    probability (itself included, one more before it than after) whose embedding lies
    within `distance` of its own and whose probability lies within `gap` of its own.
    Accept with `min(1, p(group) / q(group))`; the residual is `(p - q)+`, as ever.

    Deviation from the release (junhyukso/GSD): all codes have an embedding there up to
    number 10,000, here all have.

    Parameters: `{"embedding": [V, E]}`; the release takes the target's token
    embeddings.

    Attributes:
      group: `G`; 14 in the release, up to 50 in its paper.
      distance: squared Euclidean distances below this count as near.
      gap: differences of probability below this count as near.
      selection: how the drafter should draw.
      filtered: whether a code that top-k or top-p removed (a score of -inf) is "never"
        accepted, or for the mass of its group, as "published".
    """

    group: int = 14
    distance: float = 0.5
    gap: float = 0.15
    selection: Selection = "without_replacement"
    filtered: Filtered = "never"

    def __post_init__(self):
        whole("group", self.group)
        if not (self.distance >= 0 and self.gap >= 0):  # infinity is no limit
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
        group = min(self.group, 2 * p.shape[-1])  # which is all codes, from any place
        before = group // 2
        offsets = (jnp.arange(group) - before)[None, None]

        def accept(now: Siblings):
            vocabulary = now.p.shape[-1]
            order = jnp.argsort(-now.p, axis=-1)
            own = now.p_token()[..., None]
            first = (
                jnp.arange(vocabulary)[None, None] < now.token[..., None]
            )  # of equals
            rank = jnp.sum((now.p > own) | ((now.p == own) & first), axis=-1)
            place = rank[..., None] + offsets
            inside = (place >= 0) & (place < vocabulary)
            ids = jnp.take_along_axis(order, jnp.clip(place, 0, vocabulary - 1), -1)
            masses = jnp.take_along_axis(now.p, ids, axis=-1)
            apart = table[ids] - table[now.token][..., None, :]
            alike = jnp.sum(apart.astype(jnp.float32) ** 2, axis=-1) < self.distance
            alike &= jnp.abs(masses - own) < self.gap
            alike = (alike | (ids == now.token[..., None])) & inside
            drafted = jnp.take_along_axis(now.q_all(), ids, axis=-1)
            mass, drafted = (
                jnp.sum(jnp.where(alike, x, 0.0), axis=-1) for x in (masses, drafted)
            )
            chance = accept_ratio(mass, drafted)
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
