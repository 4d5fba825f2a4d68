"""Skipped verification (VVS, arXiv 2511.13587). Lossy."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.core.numbers import within
from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.topology import Topology
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    checked_draft,
    survives,
    target_log_probs,
)
from jaxspec.speculative.verify.outcome import (
    Outcome,
    OutcomeVerifier,
    ancestors_all,
    normalized,
)
from jaxspec.speculative.verify.rejection import Rejection
from jaxspec.typing import Array, Bool, Float, Params


@dataclass(frozen=True)
class Skipped(OutcomeVerifier):
    """Accepts a random path without a test in a share of the rounds.

    A skipped round takes a random path from the root to a leaf, each leaf equally
    likely, and emits its first tokens: as many as the paths have on average, rounded
    down. Other rounds are verified by `rule`. The paper skips every fifth round, or
    rounds whose paths have tokens of near embeddings, over LANTERN; here each round is
    skipped with the same probability, independent of the others.

    The paper saves the target's pass of a skipped round. Here that pass is made, since
    the engine needs its caches and features: the distribution of the output is that of
    the paper, its speed is not.

    Without a rule of its own, it rejects by `Rejection`; the paper's is `Lantern`.

    Attributes:
      share: probability that a round is skipped; .2 in the paper's code.
      rule: verifier of the other rounds.
    """

    share: float = 0.2
    rule: OutcomeVerifier = Rejection()

    def __post_init__(self):
        within("share", self.share, 0.0, 1.0)

    @property
    def selection(self) -> Selection:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Selection of candidates that the rule needs."""
        return self.rule.selection

    def outcome(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        greedy: Bool[Array, "B"] | None = None,
        params: Params = None,
    ) -> Outcome:
        """See `OutcomeVerifier.outcome`."""
        tested = self.rule.outcome(log_p, draft, tree, greedy, params)
        draft, shape = checked_draft(log_p, draft, tree)
        p = jnp.exp(target_log_probs(log_p, greedy))
        skipped = _random_path(shape, draft, p)
        stop = (1 - self.share) * tested.stop + self.share * skipped.stop
        both = (1 - self.share) * tested.stop[..., None] * tested.final
        both = both + self.share * skipped.stop[..., None] * skipped.final
        return Outcome(stop, normalized(both, p))


def _random_path(shape: Topology, draft: Draft, p: Float[Array, "B N V"]) -> Outcome:
    """Outcome that emits the first tokens of the path to a random leaf.

    The last emitted token is the next token of the outcome; where there is no drafted
    token at all it is sampled from `p`.
    """
    alive = survives(shape, jnp.log(p), draft) & draft.valid
    alive = ancestors_all(shape, alive)
    inside = shape.ancestors & alive[..., None]  # [B, node, itself or ancestor]
    leaf = alive & (jnp.sum(inside, axis=1) == 1)
    chance = leaf / jnp.sum(leaf, axis=-1, keepdims=True)
    depths = jnp.broadcast_to(shape.depths, leaf.shape)
    # Rounded down, but not because of rounding errors.
    length = jnp.floor(jnp.sum(depths * chance, axis=-1) + 1e-4)
    end = jnp.minimum(depths, length[:, None].astype(depths.dtype))
    # Chance of each node to be the last emitted one: that of the leaves below it.
    ends = inside & (depths[:, None] == end[..., None])
    last = jnp.sum(ends * chance[..., None], axis=1).astype(p.dtype)
    sequence = jnp.arange(p.shape[0])[:, None]
    parents = jnp.broadcast_to(shape.parents, leaf.shape)[:, 1:]
    stop = jnp.zeros_like(last).at[sequence, parents].add(last[:, 1:])
    stop = stop.at[:, 0].add(last[:, 0])
    mass = jnp.zeros_like(p).at[:, 0].set(last[:, :1] * p[:, 0])
    mass = mass.at[sequence, parents, draft.tokens[:, 1:]].add(last[:, 1:])
    return Outcome(stop, normalized(mass, p))
