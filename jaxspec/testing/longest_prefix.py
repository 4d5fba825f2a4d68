"""Verifier that follows the longest accepted path: a negative control, not exact.

The published sampler of SJD-PAC (arXiv 2603.18599) tests every node with a number of
its own, later siblings with the residual that recursive rejection would leave, and
commits the row with the longest accepted prefix. Recursive rejection commits the first
accepted sibling instead: `Rejection`, which is exact. Whether a sibling is followed
then depends on the nodes below it, which changes the distribution of the first token.
"""

from dataclasses import dataclass
from itertools import product

import jax.numpy as jnp
import numpy as np

from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.topology import Topology
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
    ancestors_all,
    normalized,
    take_prob,
)
from jaxspec.typing import Array, Bool, Float, Params

# Most nodes of a tree; all patterns of accepted nodes are enumerated.
MOST_NODES = 13


@dataclass(frozen=True)
class LongestPrefix(OutcomeVerifier):
    """Commits the longest path whose nodes were accepted, each by itself. LOSSY.

    Attributes:
      selection: selection of candidates by the drafter.
    """

    lossless = False
    selection: Selection = "without_replacement"

    def outcome(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        greedy: Bool[Array, "B"] | None = None,
        params: Params = None,
    ) -> Outcome:
        """See `OutcomeVerifier.outcome`.

        Raises:
          ConfigError: the tree is dynamic or has more than `MOST_NODES` nodes, or the
            draft has no samples.
        """
        if isinstance(tree, DynamicTree) or tree.size > MOST_NODES:
            raise ConfigError(f"use a static tree of at most {MOST_NODES} nodes")
        draft, shape = checked_draft(log_p, draft, tree)
        p = jnp.exp(target_log_probs(log_p, greedy))
        draft, log_q = require_samples(self, draft, shape, tree)
        chance, residual = _node_chances(shape, draft, p, jnp.exp(log_q))
        stop = jnp.zeros(p.shape[:2], p.dtype)
        order = jnp.arange(tree.size)
        for pattern in product((False, True), repeat=tree.size - 1):
            accepted = np.array((True, *pattern))
            weight = jnp.prod(jnp.where(accepted, chance, 1.0 - chance), axis=-1)
            reached = ancestors_all(
                shape, jnp.broadcast_to(jnp.asarray(accepted), stop.shape)
            )
            depth = jnp.where(reached, shape.depths, -1)
            last = jnp.argmax(depth, axis=-1)  # the first of equal length
            stop = stop + weight[:, None] * (order[None] == last[:, None])
        internal = jnp.asarray(tree.internal)
        return Outcome(stop, p.at[:, internal].set(residual))


def _node_chances(
    shape: Topology, draft: Draft, p: Float[Array, "B N V"], q: Float[Array, "B I V"]
) -> tuple[Float[Array, "B N"], Float[Array, "B I V"]]:
    """Chance of each node by itself, and what rejecting all children leaves of `p`."""
    tokens = shape.gather_children(draft.tokens, 0)
    valid = shape.gather_children(draft.valid, False)
    residual = shape.gather_internal(p)
    chances = []
    for r in range(tokens.shape[2]):
        token, exists = tokens[..., r], valid[..., r]
        ratio = accept_ratio(take_prob(residual, token), take_prob(q, token))
        chances.append(jnp.where(exists, ratio, 0.0))
        rest = normalized(jnp.maximum(residual - q, 0.0), residual)
        residual = jnp.where(exists[..., None], rest, residual)
        fewer = jnp.where(jnp.arange(q.shape[-1]) == token[..., None], 0.0, q)
        q = jnp.where(exists[..., None], normalized(fewer, fewer), q)
    nodes = shape.children_to_nodes(jnp.stack(chances, axis=-1))
    return jnp.where(draft.valid, nodes, 0.0).at[:, 0].set(1.0), residual
