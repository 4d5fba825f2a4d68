"""Static trees, filled level by level."""

import jax.numpy as jnp
import numpy as np

from jaxspec.drafters.tree_drafting.select import (
    choose_children,
    drafter_log_probs,
    inherit,
)
from jaxspec.speculative.draft import Draft, DraftContext
from jaxspec.speculative.trees.tree import Tree


def fill_tree(ctx: DraftContext, step, node_state, carry):
    """Fills a static tree with the best children of each node.

    With the selection "coupled", children are ranked by `log q + noise`, where the
    target will use the same Gumbel noise to sample at their position: rank 0 is the
    token that the target would sample if its distribution were `q`. For greedy
    sequences the noise is 0, and children are ranked by likelihood.

    See `grow` for the arguments.
    """
    tree = ctx.tree
    assert isinstance(tree, Tree)
    batch = ctx.root.shape[0]
    tokens = jnp.zeros((batch, tree.size), jnp.int32).at[:, 0].set(ctx.root)
    valid = jnp.ones((batch, tree.size), bool)
    log_q = {}
    nodes = np.array([0])  # those that `node_state` belongs to
    for depth in range(tree.depth):
        parents = np.intersect1d(tree.levels[depth], tree.internal)
        children = tree.levels[depth + 1]
        ranks = np.array(tree.ranks)[children]
        parent_index = np.searchsorted(parents, np.array(tree.parents)[children])
        node_state = inherit(node_state, np.searchsorted(nodes, parents)[None])
        logits, node_state, carry = step(depth, tokens[:, parents], node_state, carry)
        level = drafter_log_probs(ctx, logits)
        count = jnp.asarray((tree.children[tree.slots[parents]] >= 0).sum(axis=1))
        ids, value = choose_children(ctx, depth, level, int(ranks.max()) + 1, count)
        tokens = tokens.at[:, children].set(ids[:, parent_index, ranks])
        valid = valid.at[:, children].set(value[:, parent_index, ranks] > -jnp.inf)
        log_q.update({n: level[:, i] for i, n in enumerate(parents)})
        node_state = inherit(node_state, parent_index[None])
        nodes = children
    in_order = [log_q[n] for n in tree.internal]
    none = jnp.zeros((batch, 0, ctx.noise.shape[-1]), jnp.float32)
    draft = Draft(
        tokens,
        valid,
        log_q=jnp.stack(in_order, axis=1) if in_order else none,
        selection=ctx.selection,
    )
    return draft, carry
