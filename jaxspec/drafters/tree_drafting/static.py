"""Static trees, filled level by level."""

import jax.numpy as jnp
import numpy as np

from jaxspec.drafters.tree_drafting.select import (
    choose_children,
    drafter_log_probs,
    inherit,
    rank_tokens,
)
from jaxspec.speculative.draft import Draft, DraftContext
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Float


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


def fill_levels(ctx: DraftContext, logits: Float[Array, "B G V"]) -> Draft:
    """Fills a static tree whose nodes of one depth have the same logits.

    The draft is that of `fill_tree`, without a step for each level.

    Args:
      ctx: the round, with the selection "coupled" or "top".
      logits: logits of the tokens 1 to `G` places after the root.
    """
    tree = ctx.tree
    assert isinstance(tree, Tree)
    root, kept = ctx.root[:, None], jnp.ones((len(ctx.root), 1), bool)
    if tree.size == 1:
        none = jnp.zeros((len(root), 0, ctx.noise.shape[-1]), jnp.float32)
        return Draft(root, kept, log_q=none, selection=ctx.selection)
    levels = drafter_log_probs(ctx, logits[:, : tree.depth])
    ranks = np.array(tree.ranks, np.int32)
    ranked = levels
    if ctx.selection == "coupled":
        ranked = levels + ctx.noise[:, : tree.depth]
    ids, values = rank_tokens(ranked, int(ranks.max()) + 1)
    nodes = slice(None), tree.depths[1:] - 1, ranks[1:]
    return Draft(
        jnp.concatenate([root, ids[nodes]], axis=1),
        jnp.concatenate([kept, values[nodes] > -jnp.inf], axis=1),
        log_q=levels[:, tree.depths[tree.internal]],
        selection=ctx.selection,
    )
