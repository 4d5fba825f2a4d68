"""Pieces that drafters share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.spec.draft import Draft, Round
from jaxspec.spec.sampling import Step, process
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Float, Int


def fill_tree(
    tree: Tree,
    this: Round,
    order: tuple[Step, ...],
    scores: Callable[[int, Int[Array, "B M"]], Float[Array, "B M V"]],
) -> Draft:
    """Fills a static tree level by level with the best children of each node.

    Children are ranked by `log q + noise`, the noise being that which the target's own
    choice at their position will use: rank 0 is the token that the target would choose
    if it agreed with the drafter. Where the noise is 0 (greedy rows) they are ranked
    by likelihood.

    Args:
      tree: the shape.
      this: what is known of the round.
      order: processing steps, the target's.
      scores: `(depth, tokens) -> logits` after nodes of one depth that hold `tokens`,
        guidance merged, not yet processed.
    """
    rows = this.root.shape[0]
    tokens = jnp.zeros((rows, tree.size), jnp.int32).at[:, 0].set(this.root)
    valid = jnp.ones((rows, tree.size), bool)
    for depth in range(tree.depth):
        parents = np.intersect1d(tree.levels[depth], tree.internal)
        children = tree.levels[depth + 1]
        ranks = np.array(tree.ranks)[children]
        place = np.searchsorted(parents, np.array(tree.parents)[children])
        logits = scores(depth, tokens[:, parents])
        ranked = process(logits, this.sampling, order) + this.noise[:, depth, None]
        best, ids = jax.lax.top_k(ranked, int(ranks.max()) + 1)
        tokens = tokens.at[:, children].set(ids[:, place, ranks].astype(jnp.int32))
        valid = valid.at[:, children].set(best[:, place, ranks] > -jnp.inf)
    return Draft(tokens, valid)
